package cluster

import (
	"fmt"
	"os"
	"path/filepath"
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
