package node

import (
	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// Kubelet is the kubelet's configuration as berth.yaml names it; nil: the node
// belongs to no cluster.
func Kubelet(c config.Config) (*kubeletconfig.Config, error) {
	if c.Kubeconfig == "" {
		return nil, nil
	}
	args := []string{"--kubeconfig", c.Kubeconfig, "--root-dir", c.KubeletDir, "--hostname-override", c.NodeName}
	if c.KubeletConfig != "" {
		args = append(args, "--config", c.KubeletConfig)
	}
	return kubeletconfig.Load(args)
}
