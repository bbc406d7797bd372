package cluster

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"

	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/harness"
)

// berthConfig is berth.yaml of a node that joins.
type berthConfig struct {
	harness.Config `json:",inline"`

	Kubeconfig    string   `json:"kubeconfig"`
	KubeletConfig string   `json:"kubeletConfig"`
	NodeIPs       []string `json:"nodeIPs"`
}

// berthFile is the node's configuration; the command line finds the node by it.
func (n *Node) berthFile() string { return n.path("berth.yaml") }

// berth is the configuration of a Berth node.
func (n *Node) berth() berthConfig {
	bin := n.c.Config.Bin
	return berthConfig{
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
			Network:          harness.Network{Bridge: "berth0"},
			NRI:              harness.NRI{SocketPath: n.RunDir + "/nri.sock", PluginPath: n.path("nri"), ConfigPath: n.path("nri")},
			LogLevel:         cmp.Or(n.config.LogLevel, "debug"),
		},
		Kubeconfig:    n.kubeconfig(),
		KubeletConfig: n.kubeletConfig(),
		NodeIPs:       []string{n.IP},
	}
}

// Explain is what the node's own command line says of a pod.
func (n *Node) Explain(ctx context.Context, namespace, name string) (string, error) {
	line := append(n.c.InHost(n.Name), n.c.Config.Bin+"/berth", "explain", "pod", name, "--namespace", namespace)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(n.c.environ(), "BERTH_CONFIG="+n.berthFile())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("berth explain pod %s: %w: %s", name, err, out)
	}
	return string(out), nil
}

func (n *Node) startBerth() error {
	data, err := yaml.Marshal(n.berth())
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.berthFile(), data, 0o644); err != nil {
		return err
	}
	return n.c.start(n.Name, n.agent(), append(n.named(), n.c.Config.Bin+"/berth", "node", "--config", n.berthFile())...)
}

// named is a command line prefix that gives a program the node's name as its
// host name: pods on the host's network see it too.
func (n *Node) named() []string {
	return []string{"unshare", "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, n.Name}
}
