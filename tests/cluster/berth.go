package cluster

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/harness"
)

// berthConfig is berth.yaml of a node that joins.
type berthConfig struct {
	harness.Config `json:",inline"`

	Kubeconfig string   `json:"kubeconfig"`
	NodeIPs    []string `json:"nodeIPs"`
}

// berthFile is the node's configuration; the command line finds the node by it.
func (n *Node) berthFile() string { return n.path("berth.yaml") }

// berth is the configuration of a Berth node.
func (n *Node) berth() berthConfig {
	bin := n.bin()
	return berthConfig{
		Config: harness.Config{
			NodeName:         n.Name,
			ManifestDir:      n.ManifestDir(),
			RootDir:          n.path("root"),
			RunDir:           n.RunDir,
			KubeletConfig:    n.kubeletConfig(),
			KubeletDir:       n.KubeletDir(),
			PodLogsDir:       n.path("pods"),
			ContainerLogsDir: n.path("containers"),
			CgroupRoot:       n.CgroupRoot(),
			CgroupDriver:     "cgroupfs",
			CRISocket:        n.criSocket(),
			APISocket:        n.apiSocket(),
			ShimBinary:       bin + "/berth-shim",
			RuntimeBinary:    bin + "/runc",
			CNIConfDir:       n.path("cni"),
			CNIBinDirs:       []string{bin},
			CertsDirs:        []string{n.CertsDir()},
			ClusterDNS:       []string{dnsIP},
			ClusterDomain:    dnsDomain,
			Network:          harness.Network{Bridge: "berth0"},
			NRI:              harness.NRI{SocketPath: n.RunDir + "/nri.sock", PluginPath: n.path("nri"), ConfigPath: n.path("nri")},
			LogLevel:         cmp.Or(n.config.LogLevel, "debug"),
		},
		Kubeconfig: n.kubeconfig(),
		NodeIPs:    []string{n.IP},
	}
}

// bin has the node's binaries of Berth.
func (n *Node) bin() string { return cmp.Or(n.config.Bin, n.c.Config.Bin) }

// apiSocket is that of the command line.
func (n *Node) apiSocket() string { return n.RunDir + "/berth.sock" }

// Explain is what the node's own command line says of a pod.
func (n *Node) Explain(ctx context.Context, namespace, name string) (string, error) {
	line := append(n.c.InHost(n.Name), n.bin()+"/berth", "explain", "pod", name, "--namespace", namespace)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(n.c.environ(), "BERTH_CONFIG="+n.berthFile())
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("berth explain pod %s: %w: %s", name, err, out)
	}
	return string(out), nil
}

// startBerth runs the daemon with more environment.
func (n *Node) startBerth(env ...string) error {
	data, err := yaml.Marshal(n.berth())
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.berthFile(), data, 0o644); err != nil {
		return err
	}
	line := append(append(n.named(), "env"), env...)
	return n.c.start(n.Name, n.agent(), append(line, n.bin()+"/berth", "node", "--config", n.berthFile())...)
}

// named is a command line prefix that gives a program the node's name as its
// host name: pods on the host's network see it too.
func (n *Node) named() []string {
	return []string{"unshare", "--uts", "sh", "-c", `hostname "$0" && exec "$@"`, n.Name}
}

// Pods are those that a Berth node itself knows, with their status.
func (n *Node) Pods() ([]corev1.Pod, error) { return harness.PodsAt(n.apiSocket()) }
