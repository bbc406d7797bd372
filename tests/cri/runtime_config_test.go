package cri

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/leak"
)

func TestThePodSubnetThatTheKubeletAssignsIsTheNetworks(t *testing.T) {
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) { c.Network.PodCIDRs = nil }})
	equal(t, "before", r.assignment().PodCIDRsUse, "nothing was assigned")
	before := r.serving("before")
	inSubnet(t, before.ip, "10.85.0.0/16")

	for _, bad := range []string{"10.99.4.1/24", "many", "10.99.4.0/24,10.99.5.0/24"} {
		err := r.assign(bad)
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "runtime_config.network_config.pod_cidr") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	must(t, r.assign(""))
	equal(t, "after what is no assignment", r.assignment().PodCIDRsUse, "nothing was assigned")

	const subnet = "10.99.4.0/24"
	for range 2 {
		must(t, r.assign(subnet))
	}
	after := r.serving("after")
	inSubnet(t, after.ip, subnet)
	// The pod of before runs on, and they reach each other.
	equal(t, "from the new subnet", r.exec(after.id, "testbox", "get", "http://"+before.ip+":8080/"), "before")
	equal(t, "from the old subnet", r.exec(before.id, "testbox", "get", "http://"+after.ip+":8080/"), "after")

	r.Kill()
	r.Start()
	got := r.assignment()
	if got.PodCIDRsUse != "the pod network has them" || len(got.PodCIDRs) != 1 || got.PodCIDRs[0] != subnet {
		t.Errorf("after a restart: %+v", got)
	}
	restarted := r.serving("restarted")
	inSubnet(t, restarted.ip, subnet)
	for _, p := range []served{before, after, restarted} {
		r.removePod(p.sandbox, p.config)
	}
	r.CheckNothingLeft(leak.Allowed{
		Kind: "file", Pattern: filepath.Join(r.Config.RootDir, `pod-cidrs\.json`), Reason: "the assignment is the node's",
	})
}

func TestAConfiguredPodSubnetIsNotReplaced(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	must(t, r.assign("10.99.4.0/24"))
	got := r.assignment()
	if got.PodCIDRsUse != "noted: network.podCIDRs is configured" || len(got.PodCIDRs) != 1 {
		t.Errorf("got %+v", got)
	}
	p := r.serving("pod")
	inSubnet(t, p.ip, r.Config.Network.PodCIDRs[0])
	r.removePod(p.sandbox, p.config)
}

func (r *runtime) assign(cidr string) error {
	_, err := r.UpdateRuntimeConfig(r.ctx(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
	})
	return err
}

// assignment is what a verbose status says of it.
type assignment struct {
	PodCIDRs    []string
	PodCIDRsUse string
}

func (r *runtime) assignment() assignment {
	r.t.Helper()
	resp, err := r.Status(r.ctx(), &runtimeapi.StatusRequest{Verbose: true})
	must(r.t, err)
	var a assignment
	must(r.t, json.Unmarshal([]byte(resp.Info["info"]), &a))
	return a
}

// served is a pod that answers HTTP with its name.
type served struct {
	sandbox, id, ip string
	config          *runtimeapi.PodSandboxConfig
}

func (r *runtime) serving(name string) served {
	r.t.Helper()
	pod := r.podConfig(name)
	p := served{config: pod, sandbox: r.runPod(pod)}
	config := r.containerConfig("main", "testbox", "serve", "--name", name)
	p.id = r.run(p.sandbox, pod, config)
	r.waitLog(pod, config, "serving")
	resp, err := r.PodSandboxStatus(r.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandbox})
	must(r.t, err)
	p.ip = resp.Status.Network.Ip
	return p
}

func inSubnet(t *testing.T, ip, subnet string) {
	t.Helper()
	if addr, err := netip.ParseAddr(ip); err != nil || !netip.MustParsePrefix(subnet).Contains(addr) {
		t.Errorf("%q is not in %s", ip, subnet)
	}
}
