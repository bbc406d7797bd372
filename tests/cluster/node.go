package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/leak"
)

const nodeTimeout = 3 * time.Minute

// mirrored are the registries that the cluster's own stands for.
var mirrored = []string{harness.Registry, "registry.k8s.io", "k8s.gcr.io", "gcr.io", "docker.io"}

// Node is one node of a cluster: n1, n2 and so on.
type Node struct {
	Name   string
	IP     string
	Kind   Kind
	Dir    string // everything but sockets
	RunDir string

	c      *Cluster
	config NodeConfig
}

func newNode(c *Cluster, i int, config NodeConfig) *Node {
	name := fmt.Sprintf("n%d", i+1)
	return &Node{
		Name: name, IP: nodeIP(i), Kind: config.Kind, Dir: filepath.Join(c.Dir, name), RunDir: filepath.Join(c.RunDir, name),
		c: c, config: config,
	}
}

// CgroupRoot is the cgroup above the node's kubepods: two agents below one
// root would end each other's pods.
func (n *Node) CgroupRoot() string { return "/" + n.c.name + "-" + n.Name }

// KubeletDir has the volumes of the node's pods.
func (n *Node) KubeletDir() string { return filepath.Join(n.Dir, "kubelet") }

func (n *Node) kubeconfig() string    { return n.c.kubeconfig(n.Name) }
func (n *Node) kubeletConfig() string { return filepath.Join(n.Dir, "kubelet.yaml") }

// ManifestDir has the manifests of the node's static pods.
func (n *Node) ManifestDir() string { return filepath.Join(n.Dir, "manifests") }

// CertsDir has a hosts.toml for each registry that the cluster's stands for.
func (n *Node) CertsDir() string { return filepath.Join(n.Dir, "certs.d") }
func (n *Node) path(name string) string {
	return filepath.Join(n.Dir, name)
}

// criSocket is the CRI runtime's.
func (n *Node) criSocket() string { return filepath.Join(n.RunDir, "cri.sock") }

// startNodes starts one node after the other: the controller manager gives
// them pod subnets in the order in which they register.
func (c *Cluster) startNodes(ctx context.Context) error {
	for _, n := range c.Nodes {
		if err := n.makeHost(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if n.Kind == Host {
			continue
		}
		if err := n.prepare(ctx); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if err := n.Start(); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if err := n.connect(ctx); err != nil {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
	}
	for _, n := range c.Nodes {
		if n.Kind == Host {
			continue
		}
		if err := n.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// makeHost makes the directories and the cgroup that all kinds of nodes stand on.
func (n *Node) makeHost() error {
	for _, dir := range []string{n.KubeletDir(), n.path("pods"), n.path("containers"), n.ManifestDir(), n.path("cni"), n.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// What runs is on a tmpfs, as /run is on hosts. With the cluster's other mounts
	// it goes.
	if err := unix.Mount("tmpfs", n.RunDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", n.RunDir, err)
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", registryListen)
	for _, host := range mirrored {
		dir := filepath.Join(n.CertsDir(), host)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
			return err
		}
	}
	return harness.MakeCgroup(n.CgroupRoot())
}

// prepare makes the node's kubeconfig and configuration.
func (n *Node) prepare(ctx context.Context) error {
	if err := n.c.makeKubeconfig(ctx, n.kubeconfig(), "system:node:"+n.Name, "system:nodes"); err != nil {
		return err
	}
	config := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": n.c.pki("ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"cgroupDriver":             "cgroupfs",
		"cgroupRoot":               n.CgroupRoot(),
		"clusterDNS":               []string{dnsIP},
		"clusterDomain":            dnsDomain,
		"containerRuntimeEndpoint": "unix://" + n.criSocket(),
		"failCgroupV1":             false,
		"failSwapOn":               false,
		"podLogsDir":               n.path("pods"),
		"staticPodPath":            n.ManifestDir(),
		"volumePluginDir":          n.path("volume-plugins"),
		"serializeImagePulls":      false,
		"registryPullQPS":          0,
		"kubeAPIQPS":               100,
		"kubeAPIBurst":             200,
		// The machine's disk is not what is tested.
		"evictionHard":                map[string]string{"memory.available": "50Mi"},
		"imageGCHighThresholdPercent": 100,
	}
	maps.Copy(config, n.config.Kubelet)
	data, err := yaml.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(n.kubeletConfig(), data, 0o644)
}

// Start runs the node's daemons without waiting for them. Those of a Berth node
// can be given more environment.
func (n *Node) Start(env ...string) error {
	if n.Kind == Stock {
		return n.startStock()
	}
	return n.startBerth(env...)
}

// Running tells whether the node's agent was started and has not ended.
func (n *Node) Running() bool {
	p := n.c.part(n.agent())
	return p != nil && p.running()
}

// Stop ends the node's agent; its pods run on. With SIGKILL it has no say.
func (n *Node) Stop(signal syscall.Signal) error { return n.c.stop(n.agent(), signal) }

// agent is the part that speaks for the node.
func (n *Node) agent() string {
	if n.Kind == Stock {
		return n.Name + "-kubelet"
	}
	return n.Name + "-berth"
}

// LogFile is what the node's agent prints.
func (n *Node) LogFile() string { return filepath.Join(n.c.logs(), n.agent()+".log") }

// connect waits for the node's pod subnet and gives the node its pod network.
func (n *Node) connect(ctx context.Context) error {
	var podCIDR string
	err := n.c.eventually(ctx, nodeTimeout, []string{n.agent()}, func(ctx context.Context) error {
		node, err := n.Get(ctx)
		if err != nil {
			return fmt.Errorf("the node does not register: %w", err)
		}
		if podCIDR = node.Spec.PodCIDR; podCIDR == "" {
			return errors.New("the node has no pod subnet")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if n.Kind == Stock {
		if err := n.containerd().WriteNetwork(podCIDR); err != nil {
			return err
		}
	}
	return n.startServiceNetwork(ctx, podCIDR)
}

// Get returns the Node object.
func (n *Node) Get(ctx context.Context) (*corev1.Node, error) {
	return n.c.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
}

// WaitReady waits until the node reports to be Ready.
func (n *Node) WaitReady(ctx context.Context) error {
	err := n.c.eventually(ctx, nodeTimeout, []string{n.agent()}, func(ctx context.Context) error {
		node, err := n.Get(ctx)
		if err != nil {
			return err
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				return nil
			} else if cond.Type == corev1.NodeReady {
				return fmt.Errorf("%s: %s", cond.Reason, cond.Message)
			}
		}
		return errors.New("the node has no condition Ready")
	})
	if err != nil {
		return fmt.Errorf("%s is not Ready: %w", n.Name, err)
	}
	return nil
}

// Inside runs a function in the node's network namespace.
func (n *Node) Inside(f func() error) error { return harness.Inside(n.c.netns(n.Name), f) }

// Processes are those of the node's daemons and of its pods.
func (n *Node) Processes() ([]harness.Process, error) {
	pids, err := leak.Processes(leak.Scope{NetNS: "/run/netns/" + n.c.netns(n.Name), CgroupRoot: n.CgroupRoot()})
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", n.Name, err)
	}
	var all []harness.Process
	for _, pid := range pids {
		if p, err := harness.ReadProcess(pid); err == nil { // otherwise it has just ended
			all = append(all, p)
		}
	}
	return all, nil
}
