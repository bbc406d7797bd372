package node

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-io/berth/cmd/berth/internal/config"
	"github.com/berth-io/berth/cni/conflist"
)

func prefixes(texts ...string) []netip.Prefix {
	var list []netip.Prefix
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func networkConfig(t *testing.T, configured ...string) config.Config {
	dir := t.TempDir()
	return config.Config{
		Roles: []string{config.RoleCRI, config.RoleNetwork}, RootDir: filepath.Join(dir, "root"), RunDir: filepath.Join(dir, "run"),
		CNIConfDir: filepath.Join(dir, "net.d"), Network: config.Network{Bridge: "berth0", PodCIDRs: configured},
	}
}

// open starts a daemon, as far as its network goes.
func open(t *testing.T, c config.Config) *podNetwork {
	t.Helper()
	n, err := openPodNetwork(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Configure(); err != nil {
		t.Fatal(err)
	}
	return n
}

// subnetsOf is what the network configuration says, empty when there is none.
func subnetsOf(t *testing.T, c config.Config) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.CNIConfDir, conflist.FileName))
	if os.IsNotExist(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), `"subnets": [`)
	list, _, _ := strings.Cut(rest, "]")
	return strings.Join(strings.Fields(strings.ReplaceAll(list, `"`, "")), " ")
}

func TestWhichSubnetsThePodNetworkHas(t *testing.T) {
	for _, c := range []struct {
		name       string
		configured []string
		other      string // another network configuration
		without    bool   // the role network
		assigned   []netip.Prefix
		want, use  string
	}{
		{name: "nothing said", want: "10.85.0.0/16", use: "nothing was assigned"},
		{name: "configured", configured: []string{"10.1.0.0/24"}, want: "10.1.0.0/24", use: "nothing was assigned"},
		{name: "assigned", assigned: prefixes("10.2.0.0/24", "fd02::/64"), want: "10.2.0.0/24, fd02::/64", use: "the pod network has them"},
		{name: "configured and assigned", configured: []string{"10.1.0.0/24"}, assigned: prefixes("10.2.0.0/24"),
			want: "10.1.0.0/24", use: "noted: network.podCIDRs is configured"},
		{name: "another plugin's configuration", other: "10-other.conflist", assigned: prefixes("10.2.0.0/24"), use: "noted: DIR/10-other.conflist configures the network"},
		{name: "without the role", without: true, assigned: prefixes("10.2.0.0/24"), use: "noted: this daemon has not the role network"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := networkConfig(t, c.configured...)
			if c.without {
				cfg.Roles = []string{config.RoleCRI}
			}
			if c.other != "" {
				if err := os.MkdirAll(cfg.CNIConfDir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(cfg.CNIConfDir, c.other), []byte("{}"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			n := open(t, cfg)
			for range 2 { // the kubelet says it again when it starts
				if c.assigned != nil {
					if err := n.Assign(c.assigned); err != nil {
						t.Fatal(err)
					}
				}
				if got := subnetsOf(t, cfg); got != c.want {
					t.Errorf("the network has %q, want %q", got, c.want)
				}
				assigned, use := n.Assigned()
				if use != strings.ReplaceAll(c.use, "DIR", cfg.CNIConfDir) || len(assigned) != len(c.assigned) {
					t.Errorf("assigned %v: %q, want %q", assigned, use, c.use)
				}
				n = open(t, cfg) // and so does the next daemon
			}
		})
	}
}

func TestAnAssignmentThatCannotBeKeptChangesNothing(t *testing.T) {
	cfg := networkConfig(t)
	n := open(t, cfg)
	if err := os.WriteFile(cfg.RootDir, nil, 0o644); err != nil { // no directory
		t.Fatal(err)
	}
	if err := n.Assign(prefixes("10.2.0.0/24")); err == nil {
		t.Fatal("assigned")
	}
	if got := subnetsOf(t, cfg); got != "10.85.0.0/16" {
		t.Errorf("the network has %q", got)
	}
	if assigned, _ := n.Assigned(); assigned != nil {
		t.Errorf("assigned is %v", assigned)
	}
}

func TestAKillBetweenTheFilesIsMadeUpForAtTheNextStart(t *testing.T) {
	cfg := networkConfig(t)
	n := open(t, cfg)
	if err := n.Assign(prefixes("10.2.0.0/24")); err != nil {
		t.Fatal(err)
	}
	// The network configuration is still to be written, and what was begun of both is there.
	if err := os.Remove(n.conflist()); err != nil {
		t.Fatal(err)
	}
	unfinished := []string{
		filepath.Join(cfg.RootDir, ".tmp-pod-cidrs.json123"), filepath.Join(cfg.CNIConfDir, ".tmp-"+conflist.FileName+"123"),
	}
	for _, path := range unfinished {
		if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	open(t, cfg)
	if got := subnetsOf(t, cfg); got != "10.2.0.0/24" {
		t.Errorf("the network has %q", got)
	}
	for _, path := range unfinished {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestAFileThatCannotBeReadIsNamed(t *testing.T) {
	cfg := networkConfig(t)
	if err := os.MkdirAll(cfg.RootDir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(cfg.RootDir, "pod-cidrs.json")
	if err := os.WriteFile(file, []byte(`{"podCIDRs": ["many"]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := openPodNetwork(cfg); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v", err)
	}
}
