package cluster

import (
	"fmt"
	"os"

	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/harness"
)

// berthConfig is berth.yaml of a node that joins.
type berthConfig struct {
	harness.Config `json:",inline"`

	Kubeconfig    string `json:"kubeconfig"`
	KubeletConfig string `json:"kubeletConfig"`
}

// podCIDR is the subnet that the controller manager gives the node.
func (n *Node) podCIDR() string { return fmt.Sprintf("10.204.%d.0/24", n.index) }

// APISocket is that of the node's command line: `berth --config` knows it too.
func (n *Node) berthFile() string { return n.path("berth.yaml") }

func (n *Node) startBerth() error {
	bin := n.c.Config.Bin
	config := berthConfig{
		Config: harness.Config{
			NodeName:         n.Name,
			ManifestDir:      n.path("manifests"),
			RootDir:          n.path("root"),
			RunDir:           n.RunDir,
			KubeletDir:       n.KubeletDir(),
			PodLogsDir:       n.path("pods"),
			ContainerLogsDir: n.path("containers"),
			CgroupRoot:       n.CgroupRoot(),
			CgroupDriver:     "cgroupfs",
			CRISocket:        n.criSocket(),
			APISocket:        n.RunDir + "/berth.sock",
			ShimBinary:       bin + "/berth-shim",
			RuntimeBinary:    bin + "/runc",
			CNIConfDir:       n.path("cni"),
			CNIBinDirs:       []string{bin},
			CertsDirs:        []string{n.certsDir()},
			ClusterDNS:       []string{dnsIP},
			ClusterDomain:    dnsDomain,
			Network:          harness.Network{PodCIDRs: []string{n.podCIDR()}, Bridge: "berth0"},
			LogLevel:         "debug",
		},
		Kubeconfig:    n.kubeconfig(),
		KubeletConfig: n.kubeletConfig(),
	}
	data, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.berthFile(), data, 0o644); err != nil {
		return err
	}
	return n.c.start(n.Name, n.agent(), append(n.named(), bin+"/berth", "node", "--config", n.berthFile())...)
}

// named is a command line prefix that gives a program the node's name as its
// host name: pods on the host's network see it too.
func (n *Node) named() []string {
	return []string{"unshare", "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, n.Name}
}
