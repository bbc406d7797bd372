// Package harness runs a Berth node of its own for a test: its own network
// namespace, directories and cgroup root, a registry of test images inside the
// namespace, and the real binaries as separate processes. It talks to the node
// as users do: manifests, the command line and the node's API socket.
package harness

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/images"
	"github.com/berth-io/berth/tests/leak"
	"github.com/berth-io/berth/tests/registry"
)

// Registry is the host part of the references of all test images. The node
// finds it through hosts.toml, as it would a mirror.
const Registry = "registry.test"

// Images that every node's registry holds.
const (
	Box        = Registry + "/box:1"        // busybox and testbox
	Configured = Registry + "/configured:1" // the same with USER, ENTRYPOINT, ENV and so on
	Busybox    = Registry + "/busybox:1"    // busybox alone
)

// Options of a node; the zero value is a node for most tests.
type Options struct {
	Bin          string            // directory of the binaries; default BERTH_TEST_BIN, or bin/ of the repository
	Env          []string          // more environment of the daemon
	Amend        func(*Config)     // changes the configuration before it is written
	MoreImages   func(*Node) error // pushes more images
	Mirrors      []string          // more registries that the node's own stands for
	CgroupDriver string            // cgroupfs or systemd; default cgroupfs
}

// Config is the file that berth reads.
type Config struct {
	NodeName         string   `json:"nodeName,omitempty"`
	Roles            []string `json:"roles,omitempty"`
	ManifestDir      string   `json:"manifestDir,omitempty"`
	RootDir          string   `json:"rootDir,omitempty"`
	RunDir           string   `json:"runDir,omitempty"`
	KubeletConfig    string   `json:"kubeletConfig,omitempty"`
	KubeletDir       string   `json:"kubeletDir,omitempty"`
	PodLogsDir       string   `json:"podLogsDir,omitempty"`
	ContainerLogsDir string   `json:"containerLogsDir,omitempty"`
	CgroupRoot       string   `json:"cgroupRoot,omitempty"`
	CgroupDriver     string   `json:"cgroupDriver,omitempty"`
	CRISocket        string   `json:"criSocket,omitempty"`
	APISocket        string   `json:"apiSocket,omitempty"`
	ShimBinary       string   `json:"shimBinary,omitempty"`
	RuntimeBinary    string   `json:"runtimeBinary,omitempty"`

	Runtimes       map[string]Runtime `json:"runtimes,omitempty"`
	DefaultRuntime string             `json:"defaultRuntime,omitempty"`
	NRI            NRI                `json:"nri"`
	CDISpecDirs    []string           `json:"cdiSpecDirs,omitempty"`

	DefaultUlimits []string `json:"defaultUlimits,omitempty"`
	SELinux        SELinux  `json:"selinux,omitzero"`

	CNIConfDir    string   `json:"cniConfDir,omitempty"`
	CNIBinDirs    []string `json:"cniBinDirs,omitempty"`
	CertsDirs     []string `json:"certsDirs,omitempty"`
	ClusterDNS    []string `json:"clusterDNS,omitempty"`
	ClusterDomain string   `json:"clusterDomain,omitempty"`
	Network       Network  `json:"network"`
	Images        Images   `json:"images,omitzero"`
	LogLevel      string   `json:"logLevel,omitempty"`
}

// Runtime is one runtime handler in Config.
type Runtime struct {
	Path    string   `json:"path"`
	Args    []string `json:"args,omitempty"`
	Timeout string   `json:"timeout,omitempty"`
}

// SELinux is the part of Config about labels.
type SELinux struct {
	Enable bool `json:"enable,omitempty"`
}

// NRI is the part of Config about plugins.
type NRI struct {
	Enable         bool   `json:"enable"`
	SocketPath     string `json:"socketPath,omitempty"`
	PluginPath     string `json:"pluginPath,omitempty"`
	ConfigPath     string `json:"configPath,omitempty"`
	RequestTimeout string `json:"requestTimeout,omitempty"`
}

// Images is the image part of Config.
type Images struct {
	PullProgressTimeout string   `json:"pullProgressTimeout,omitempty"`
	MaxLayerSize        string   `json:"maxLayerSize,omitempty"`
	Pinned              []string `json:"pinned,omitempty"`
	AuthFile            string   `json:"authFile,omitempty"`
}

// Network is the pod network part of Config.
type Network struct {
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	Bridge   string   `json:"bridge,omitempty"`
	MTU      int      `json:"mtu,omitempty"`
}

// Node is one node, as one test sees it: whatever goes wrong fails that test.
// It is torn down, whatever state it is in, when the test that made it ends.
type Node struct {
	*node
	t TB
}

// node is what all views of a node share.
type node struct {
	Name     string // bh-xxxxxx
	Dir      string // everything but sockets and mounts at run time
	Bin      string
	Config   Config
	Registry *registry.Registry

	configFile string
	netns      *namespaces
	api        *apiClient
	before     leak.Snapshot
	env        []string

	daemon *daemon
	starts int
	bootID string // file with that of the last Reboot; empty: the kernel's own
}

// For returns the node as another test sees it: a subtest that shares it.
func (n *Node) For(t TB) *Node { return &Node{node: n.node, t: t} }

// NewNode prepares a node without starting it.
func NewNode(t TB, o Options) *Node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatalf("needs root, for namespaces, mounts and cgroups: sudo make test")
	}
	sweepStale(t)
	id := make([]byte, 3)
	_, _ = rand.Read(id) // never fails
	name := namePrefix + hex.EncodeToString(id)
	n := &Node{t: t, node: &node{
		Name: name,
		Dir:  filepath.Join(nodesDir, name),
		Bin:  binaries(t, o.Bin),
		env:  o.Env,
	}}
	n.Config = n.defaultConfig()
	if o.CgroupDriver == "systemd" {
		// The kubelet's slices hang below the root slice; a machine that has
		// systemd has one node at a time.
		n.Config.CgroupDriver, n.Config.CgroupRoot = "systemd", "/"
	}
	if o.Amend != nil {
		o.Amend(&n.Config)
	}
	n.configFile = filepath.Join(n.Dir, "berth.yaml")
	n.api = newAPIClient(n.Config.APISocket)
	t.Cleanup(n.destroy)
	n.makeDirs(o.Mirrors)
	if err := Own(n.Dir); err != nil {
		t.Fatalf("%v", err)
	}
	ns, err := newNamespaces(n.Name)
	if err != nil {
		t.Fatalf("network namespace: %v", err)
	}
	n.netns = ns
	n.serveImages(o.MoreImages)
	n.before = n.snapshot()
	return n
}

// StartNode is NewNode and Start.
func StartNode(t TB, o Options) *Node {
	t.Helper()
	n := NewNode(t, o)
	n.Start()
	return n
}

func (n *Node) defaultConfig() Config {
	run := "/run/" + n.Name // short: socket paths end at 108 bytes
	return Config{
		NodeName:         n.Name,
		ManifestDir:      n.Dir + "/manifests",
		RootDir:          n.Dir + "/root",
		RunDir:           run,
		KubeletDir:       n.Dir + "/kubelet",
		PodLogsDir:       n.Dir + "/pods",
		ContainerLogsDir: n.Dir + "/containers",
		CgroupRoot:       "/" + n.Name,
		CgroupDriver:     "cgroupfs",
		CRISocket:        run + "/cri.sock",
		APISocket:        run + "/berth.sock",
		ShimBinary:       n.Bin + "/berth-shim",
		RuntimeBinary:    n.Bin + "/runc",
		CNIConfDir:       n.Dir + "/cni",
		CNIBinDirs:       []string{n.Bin},
		CertsDirs:        []string{n.CertsDir()},
		ClusterDNS:       []string{"10.96.0.10"},
		ClusterDomain:    "cluster.local",
		Network:          Network{PodCIDRs: []string{"10.88.0.0/23"}, Bridge: "berth0"},
		LogLevel:         "debug",
	}
}

func (n *Node) makeDirs(mirrors []string) {
	n.t.Helper()
	dirs := []string{n.Dir, n.Config.ManifestDir, n.Config.CNIConfDir}
	for _, host := range append(mirrors, Registry) {
		dirs = append(dirs, filepath.Join(n.CertsDir(), host))
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			n.t.Fatalf("%v", err)
		}
	}
	hosts := "server = \"http://" + registryAddress + "\"\n\n[host.\"http://" + registryAddress + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
	for _, host := range append(mirrors, Registry) {
		n.write(filepath.Join(n.CertsDir(), host, "hosts.toml"), []byte(hosts))
	}
	data, err := yaml.Marshal(n.Config)
	if err != nil {
		n.t.Fatalf("%v", err)
	}
	n.write(n.configFile, data)
}

// CertsDir has a hosts.toml for each registry that the node's own stands for.
func (n *Node) CertsDir() string { return filepath.Join(n.Dir, "certs.d") }

func (n *Node) serveImages(more func(*Node) error) {
	n.t.Helper()
	n.Registry = registry.New()
	l, err := n.netns.listen(registryAddress)
	if err != nil {
		n.t.Fatalf("registry: %v", err)
	}
	n.t.Cleanup(func() { l.Close() })
	go n.Registry.Serve(l)
	if err := pushStandard(n.Registry, n.Builder()); err != nil {
		n.t.Fatalf("test images: %v", err)
	}
	if more != nil {
		if err := more(n); err != nil {
			n.t.Fatalf("test images: %v", err)
		}
	}
}

func pushStandard(r *registry.Registry, b *images.Builder) error {
	box, err := b.Box()
	if err != nil {
		return err
	}
	configured, err := b.Configured()
	if err != nil {
		return err
	}
	busybox, err := b.Busybox()
	if err != nil {
		return err
	}
	if err := r.Push("box:1", box); err != nil {
		return err
	}
	if err := r.Push("configured:1", configured); err != nil {
		return err
	}
	return r.Push("busybox:1", busybox)
}

// Builder makes more images.
func (n *Node) Builder() *images.Builder {
	root := filepath.Dir(standardBin(n.Bin))
	return &images.Builder{Bin: filepath.Join(standardBin(n.Bin), "tests"), Debs: filepath.Join(root, "out/debs/root")}
}

func (n *Node) write(path string, data []byte) {
	n.t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		n.t.Fatalf("%v", err)
	}
}

// destroy ends and removes whatever there is of the node.
func (n *Node) destroy() {
	if n.t.Failed() && n.daemon != nil {
		n.t.Logf("end of the log of %s:\n%s", n.Name, n.LogTail(60))
	}
	if n.daemon != nil {
		n.daemon.end()
	}
	for _, err := range n.sweep() {
		n.t.Logf("clean up %s: %v", n.Name, err)
	}
}

// binaries finds the directory of the binaries under test.
func binaries(t TB, dir string) string {
	t.Helper()
	if dir == "" {
		dir = os.Getenv("BERTH_TEST_BIN")
	}
	if dir == "" {
		out, err := exec.Command("go", "env", "GOMOD").Output()
		if err != nil {
			t.Fatalf("BERTH_TEST_BIN is not set, and go env GOMOD: %v", err)
		}
		dir = filepath.Join(filepath.Dir(string(out)), "bin")
	}
	for _, name := range []string{"berth", "berth-shim", "runc"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Fatalf("%v (make build makes the binaries, make failpoints those of the crash test)", err)
		}
	}
	return dir
}

// Bin is the directory of the binaries under test.
func Bin(t TB) string {
	t.Helper()
	return binaries(t, "")
}

// standardBin is bin/ also for those who run bin/failpoints.
func standardBin(bin string) string {
	if filepath.Base(bin) == "failpoints" {
		return filepath.Dir(bin)
	}
	return bin
}

// FailpointBin is where the binaries with failpoints are.
func FailpointBin(t TB) string {
	t.Helper()
	return binaries(t, filepath.Join(binaries(t, ""), "failpoints"))
}

// Eventually calls check until it returns an empty reason, and fails the test
// with the last reason when that takes longer than the timeout.
func Eventually(t TB, timeout time.Duration, what string, check func() (reason string)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	pause := 5 * time.Millisecond
	for {
		reason := check()
		if reason == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %s", what, timeout, reason)
		}
		time.Sleep(pause)
		pause = min(pause*3/2, 100*time.Millisecond)
	}
}
