package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/moby/sys/atomicwriter"

	"github.com/berth-io/berth/cmd/berth/internal/config"
	"github.com/berth-io/berth/cni/conflist"
)

// podNetwork configures Berth's own pod network. It also keeps the pod subnets
// that a kubelet assigns to this node, in ROOTDIR/pod-cidrs.json, since the
// kubelet tells them once: they are the network's when berth.yaml says none.
type podNetwork struct {
	config config.Config

	mu       sync.Mutex
	assigned []netip.Prefix
}

// assignment is the file's content.
type assignment struct {
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// openPodNetwork reads what was assigned before.
func openPodNetwork(c config.Config) (*podNetwork, error) {
	n := &podNetwork{config: c}
	for _, path := range []string{n.file(), n.conflist()} {
		if err := dropUnfinished(path); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile(n.file())
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the assigned pod subnets: %w", err)
	}
	var a assignment
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("read the assigned pod subnets: %s: %w (remove it, and the kubelet assigns them anew when it starts)", n.file(), err)
	}
	n.assigned = a.PodCIDRs
	return n, nil
}

func (n *podNetwork) file() string { return filepath.Join(n.config.RootDir, "pod-cidrs.json") }

func (n *podNetwork) conflist() string { return filepath.Join(n.config.CNIConfDir, conflist.FileName) }

// dropUnfinished removes what a kill left of writing a file.
func dropUnfinished(path string) error {
	dir, name := filepath.Split(path)
	unfinished, err := filepath.Glob(filepath.Join(dir, ".tmp-"+name+"*"))
	if err != nil {
		return fmt.Errorf("look for unfinished files: %w", err)
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove an unfinished file: %w", err)
		}
	}
	return nil
}

// Assign keeps subnets, also for the next daemon, and configures the network
// with them where nothing else says which. Running pods keep their addresses.
func (n *podNetwork) Assign(cidrs []netip.Prefix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(cidrs, n.assigned) {
		data, err := json.Marshal(assignment{PodCIDRs: cidrs})
		if err != nil {
			return fmt.Errorf("encode the assigned pod subnets: %w", err)
		}
		if err := os.MkdirAll(n.config.RootDir, 0o755); err != nil {
			return fmt.Errorf("keep the assigned pod subnets: %w", err)
		}
		if err := atomicwriter.WriteFile(n.file(), append(data, '\n'), 0o644); err != nil {
			return fmt.Errorf("keep the assigned pod subnets: %w", err)
		}
		n.assigned = slices.Clone(cidrs)
	}
	return n.configure()
}

// Assigned returns the subnets that were assigned, and what came of it.
func (n *podNetwork) Assigned() (cidrs []netip.Prefix, use string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.assigned) == 0 {
		return nil, "nothing was assigned"
	}
	return slices.Clone(n.assigned), n.use()
}

func (n *podNetwork) use() string {
	other, err := n.otherConfiguration()
	switch {
	case !n.config.Has(config.RoleNetwork):
		return "noted: this daemon has not the role network"
	case err != nil:
		return "noted: " + err.Error()
	case other != "":
		return "noted: " + other + " configures the network"
	case len(n.config.Network.PodCIDRs) > 0:
		return "noted: network.podCIDRs is configured"
	}
	return "the pod network has them"
}

// Configure writes Berth's own network configuration where there is no other,
// and brings it up to date where it is there already.
func (n *podNetwork) Configure() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.configure()
}

func (n *podNetwork) configure() error {
	c := n.config
	if !c.Has(config.RoleNetwork) {
		return nil
	}
	if err := os.MkdirAll(c.CNIConfDir, 0o755); err != nil {
		return fmt.Errorf("make the CNI configuration directory: %w", err)
	}
	if other, err := n.otherConfiguration(); err != nil || other != "" {
		return err
	}
	cidrs, err := n.subnets()
	if err != nil {
		return err
	}
	want, err := conflist.Render(conflist.Config{
		PodCIDRs: cidrs, Bridge: c.Network.Bridge, MTU: c.Network.MTU, DataDir: filepath.Join(c.RunDir, "cni"),
	})
	if err != nil {
		return fmt.Errorf("network.podCIDRs: %w", err)
	}
	path := n.conflist()
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	if bytes.Equal(have, want) {
		return nil
	}
	if err := atomicwriter.WriteFile(path, want, 0o644); err != nil {
		return fmt.Errorf("write the network configuration: %w", err)
	}
	return nil
}

// otherConfiguration names a network configuration that is not Berth's own: it
// is somebody's decision, and stays.
func (n *podNetwork) otherConfiguration() (string, error) {
	for _, pattern := range []string{"*.conflist", "*.conf", "*.json"} {
		found, err := filepath.Glob(filepath.Join(n.config.CNIConfDir, pattern))
		if err != nil {
			return "", fmt.Errorf("look for network configurations: %w", err)
		}
		for _, path := range found {
			if filepath.Base(path) != conflist.FileName {
				return path, nil
			}
		}
	}
	return "", nil
}

// subnets are those of berth.yaml, else those assigned, else the default.
func (n *podNetwork) subnets() ([]netip.Prefix, error) {
	texts := n.config.Network.PodCIDRs
	if len(texts) == 0 {
		if len(n.assigned) > 0 {
			return n.assigned, nil
		}
		texts = []string{config.DefaultPodCIDR}
	}
	var cidrs []netip.Prefix
	for i, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("network.podCIDRs[%d]: %w", i, err)
		}
		cidrs = append(cidrs, p)
	}
	return cidrs, nil
}
