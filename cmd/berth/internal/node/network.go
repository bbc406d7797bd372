package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/moby/sys/atomicwriter"

	"github.com/berth-io/berth/cmd/berth/internal/config"
	"github.com/berth-io/berth/cni/conflist"
)

// configureNetwork writes Berth's own network configuration where there is no
// other (any other file is somebody's decision, and stays), and brings it up to date where it is there already.
func configureNetwork(c config.Config) error {
	if err := os.MkdirAll(c.CNIConfDir, 0o755); err != nil {
		return fmt.Errorf("make the CNI configuration directory: %w", err)
	}
	for _, pattern := range []string{"*.conflist", "*.conf", "*.json"} {
		found, err := filepath.Glob(filepath.Join(c.CNIConfDir, pattern))
		if err != nil {
			return fmt.Errorf("look for network configurations: %w", err)
		}
		for _, path := range found {
			if filepath.Base(path) != conflist.FileName {
				return nil
			}
		}
	}
	list := conflist.Config{Bridge: c.Network.Bridge, MTU: c.Network.MTU, DataDir: filepath.Join(c.RunDir, "cni")}
	for i, cidr := range c.Network.PodCIDRs {
		p, err := netip.ParsePrefix(cidr)
		if err != nil {
			return fmt.Errorf("network.podCIDRs[%d]: %w", i, err)
		}
		list.PodCIDRs = append(list.PodCIDRs, p)
	}
	want, err := conflist.Render(list)
	if err != nil {
		return fmt.Errorf("network.podCIDRs: %w", err)
	}
	path := filepath.Join(c.CNIConfDir, conflist.FileName)
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
