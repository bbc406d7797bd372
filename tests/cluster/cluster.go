// Package cluster runs a Kubernetes cluster of its own on one machine: a real
// control plane, and nodes of Berth or of the stock stack (kubelet and
// containerd) side by side. Each host is a network namespace on one bridge,
// which has no route to the machine's network.
//
// Tests make one with New and lose it with the test; the program clusterctl
// makes one that stays until it is asked to remove it. Everything that a
// cluster has on the machine carries its name, so that Down finds it again
// whatever was killed when: see sweep.go for the list.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/leak"
	"github.com/berth-io/berth/tests/registry"
)

// Kind of a node.
type Kind string

// Kinds of nodes.
const (
	Berth Kind = "berth" // berth node
	Stock Kind = "stock" // kubelet, containerd and the CNI plugins
	Host  Kind = "host"  // nothing yet: its test makes a node of it, or does not
)

// Config of a cluster. It is kept in the cluster's directory.
type Config struct {
	Name  string       `json:"name"` // lower case letters and digits, at most 8
	Bin   string       `json:"bin"`  // directory of Berth's binaries; peers/ below it has all others
	Nodes []NodeConfig `json:"nodes"`
	// Images is a directory in OCI layout; its images are served beside those
	// that every cluster has. Empty: none.
	Images string `json:"images,omitempty"`
	// NoDNS leaves CoreDNS out.
	NoDNS bool `json:"noDNS,omitempty"`
	// Args are more arguments of a part of the control plane, by its name.
	Args map[string][]string `json:"args,omitempty"`
	// RegistryCommand serves the registry from a process of its own, for a
	// cluster that outlives this one. Empty: this process serves it.
	RegistryCommand []string `json:"-"`

	owned bool // goes with this process
}

// NodeConfig is what one node has of its own.
type NodeConfig struct {
	Kind Kind `json:"kind"`
	// Kubelet are fields of its KubeletConfiguration, over those that every
	// node has.
	Kubelet map[string]any `json:"kubelet,omitempty"`
	// Bin has other binaries of Berth than the cluster's, for a Berth node.
	Bin string `json:"bin,omitempty"`
	// LogLevel of a Berth node; default debug.
	LogLevel string `json:"logLevel,omitempty"`
}

func (cfg Config) kinds() []Kind {
	var kinds []Kind
	for _, n := range cfg.Nodes {
		kinds = append(kinds, n.Kind)
	}
	return kinds
}

const (
	namePrefix = "bc-" // of everything named on the machine
	dirsDir    = "/var/tmp"
	runsDir    = "/run"
)

var validName = regexp.MustCompile(`^[a-z0-9]{1,8}$`)

// Cluster is a cluster on this machine.
type Cluster struct {
	Config Config
	// Dir has everything but sockets and what runs; its logs/ what every
	// component prints.
	Dir string
	// RunDir is short, for sockets.
	RunDir string
	Nodes  []*Node
	// Registry serves the images, unless another process does.
	Registry *registry.Registry
	Client   kubernetes.Interface

	name     string // with the prefix
	mu       sync.Mutex
	parts    map[string]*part
	before   map[string]leak.Snapshot // by node
	closeReg func()
}

func newCluster(cfg Config) (*Cluster, error) {
	if !validName.MatchString(cfg.Name) {
		return nil, fmt.Errorf("cluster name %q: at most 8 lower case letters and digits", cfg.Name)
	}
	name := namePrefix + cfg.Name
	c := &Cluster{
		Config: cfg, name: name, Dir: filepath.Join(dirsDir, name), RunDir: filepath.Join(runsDir, name),
		parts: map[string]*part{}, before: map[string]leak.Snapshot{}, closeReg: func() {},
	}
	for i, nc := range cfg.Nodes {
		if nc.Kind != Berth && nc.Kind != Stock && nc.Kind != Host {
			return nil, fmt.Errorf("node %d: kind %q: %s, %s or %s", i+1, nc.Kind, Berth, Stock, Host)
		}
		c.Nodes = append(c.Nodes, newNode(c, i, nc))
	}
	return c, nil
}

// Start makes a cluster and returns when its nodes are Ready and, with DNS, a
// CoreDNS answers. A cluster that does not come up is left as it is, for its
// logs: Down removes it.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	c, err := newCluster(cfg)
	if err != nil {
		return nil, err
	}
	if os.Getuid() != 0 {
		return nil, errors.New("a cluster needs root, for namespaces, mounts and cgroups")
	}
	if err := Missing(cfg.Bin, cfg.kinds()...); err != nil {
		return nil, err
	}
	if _, err := os.Stat(c.Dir); err == nil {
		return nil, fmt.Errorf("there is a cluster %s already: %s", cfg.Name, c.Dir)
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"make its directories", c.makeDirs},
		{"network", c.makeNetwork},
		{"registry", c.startRegistry},
		{"certificates", c.makeCertificates},
		{"control plane", c.startControlPlane},
		{"access rules", c.bindRoles},
		{"nodes", c.startNodes},
		{"cluster DNS", c.startDNS},
	} {
		if err := step.do(ctx); err != nil {
			return c, fmt.Errorf("cluster %s: %s: %w", cfg.Name, step.what, err)
		}
	}
	return c, nil
}

// Attach returns a cluster that another process started.
func Attach(name string) (*Cluster, error) {
	c, err := newCluster(Config{Name: name})
	if err != nil {
		return nil, err
	}
	cfg, err := readConfig(c.configFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no cluster %s (make cluster starts one)", name)
	} else if err != nil {
		return nil, err
	}
	if c, err = newCluster(cfg); err != nil {
		return nil, err
	}
	c.Client, err = c.newClient("admin")
	return c, err
}

func readConfig(file string) (cfg Config, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return cfg, err
	}
	if err := json.Unmarshal(data, &cfg); err != nil {
		return cfg, fmt.Errorf("%s: %w", file, err)
	}
	return cfg, nil
}

func (c *Cluster) makeDirs(context.Context) error {
	for _, dir := range []string{c.Dir, c.logs(), c.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if c.Config.owned {
		if err := harness.Own(c.Dir); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(c.Config, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(c.configFile(), data, 0o644)
}

func (c *Cluster) configFile() string { return filepath.Join(c.Dir, "cluster.json") }
func (c *Cluster) logs() string       { return filepath.Join(c.Dir, "logs") }
func (c *Cluster) peers() string      { return filepath.Join(c.Config.Bin, "peers") }

// hosts are the names of the cluster's hosts, the control plane first.
func (c *Cluster) hosts() []string {
	hosts := []string{controlPlane}
	for _, n := range c.Nodes {
		hosts = append(hosts, n.Name)
	}
	return hosts
}

// names are those of the clusters on this machine.
func names() ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(dirsDir, namePrefix+"*"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, dir := range dirs {
		if name := filepath.Base(dir)[len(namePrefix):]; validName.MatchString(name) {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all, nil
}

// eventually calls check until it returns nil. It returns the last error when
// the time is over, or when one of the parts has ended meanwhile.
func (c *Cluster) eventually(ctx context.Context, timeout time.Duration, parts []string, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		for _, name := range parts {
			if p := c.part(name); p != nil && !p.running() {
				return fmt.Errorf("%s has ended:\n%s", name, tail(p.log, 20))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w (logs: %s)", timeout, err, c.logs())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
