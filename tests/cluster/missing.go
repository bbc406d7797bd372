package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-io/berth/tests/harness"
)

// made says which programs each target of the Makefile makes below bin/peers.
var made = map[string][]string{
	"control":    {Etcd, APIServer, ControllerManager, Scheduler, "kube-proxy", "kubeadm", "kubectl", "coredns"},
	"kubelet":    {"kubelet"},
	"containerd": {"containerd", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "loopback", "portmap"},
}

// Missing says which program a cluster with nodes of these kinds lacks.
func Missing(bin string, kinds ...Kind) error {
	targets := []string{"control"}
	for _, k := range kinds {
		if k == Stock {
			targets = append(targets, "kubelet", "containerd")
		}
	}
	for _, target := range targets {
		for _, program := range made[target] {
			if _, err := os.Stat(filepath.Join(bin, "peers", program)); err != nil {
				return fmt.Errorf("%w (made by: make %s)", err, target)
			}
		}
	}
	return nil
}

// Need skips a test that lacks what a cluster with nodes of these kinds is made
// of, or fails it where BERTH_TEST_REQUIRE says that clusters are to be tested.
func Need(t interface {
	harness.TB
	Skipf(format string, args ...any)
}, kinds ...Kind) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("needs root, for namespaces, mounts and cgroups")
	}
	if err := Missing(harness.Bin(t), kinds...); err != nil {
		if strings.Contains(os.Getenv("BERTH_TEST_REQUIRE"), "cluster") {
			t.Fatalf("%v", err)
		}
		t.Skipf("%v", err)
	}
}
