// Package kubeletconfig reads what the kubelet reads: its command line, a
// KubeletConfiguration file (kubelet.config.k8s.io/v1beta1) and a directory of
// drop-ins, into one Config with the kubelet's defaults. It owns which fields
// and feature gates Berth honours (fields.go), and touches nothing but the
// files that the command line names. Only cmd/ calls it: every other part gets
// the values it needs in its own Config.
package kubeletconfig

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	nodeutil "k8s.io/component-helpers/node/util"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
)

// Config is the kubelet's configuration, validated. Every field has a value
// that the kubelet would have; containerRuntimeEndpoint alone is empty where
// nobody set it, which means Berth's own runtime.
type Config struct {
	kubeletv1beta1.KubeletConfiguration
	Flags

	// Sources are the files this came from, in the order they were read.
	Sources []string
	// Warnings are for the log, one a line: what was accepted and has no
	// effect, and what is deprecated.
	Warnings []string

	gates gates
}

// Flags are the kubelet's flags that no field of KubeletConfiguration stands for.
type Flags struct {
	// Kubeconfig says how to reach the API server. Empty: there is none.
	Kubeconfig string
	// BootstrapKubeconfig is used to get a client certificate where
	// Kubeconfig does not exist.
	BootstrapKubeconfig string
	// ConfigFile and ConfigDir are where KubeletConfiguration came from.
	ConfigFile, ConfigDir string
	// CertDir holds the node's certificates.
	CertDir string
	// RootDir is the kubelet's directory.
	RootDir string
	// HostnameOverride is the node's name where it is not the host's.
	HostnameOverride string
	// NodeIP is as given; NodeIPs reads it.
	NodeIP string
	// NodeLabels are put on the Node when it is registered.
	NodeLabels map[string]string
	// CloudProvider is empty or external.
	CloudProvider string
	// CredentialProviderConfig is the configuration of plugins that give
	// credentials for image pulls; CredentialProviderBinDir holds them.
	CredentialProviderConfig, CredentialProviderBinDir string
	// LockFile, ExitOnLockContention: the process ends when another wants the file.
	LockFile             string
	ExitOnLockContention bool
	// MaxDeadPerContainer and MaxDead are how many dead containers stay of each
	// container and on the node; below zero: all. MinDeadAge is how old one is,
	// from when it was made, before it goes.
	MaxDeadPerContainer, MaxDead int32
	MinDeadAge                   time.Duration
	// IgnoreEvictionThreshold leaves hard eviction thresholds out of what is
	// taken from capacity to get allocatable.
	IgnoreEvictionThreshold bool

	// Given are all of the kubelet's flags with their values on the command
	// line, or their defaults, whatever files say (/flagz shows them).
	Given map[string]string

	// Help and Version ask for text instead of a node. Version is "", "true",
	// "raw", or a version to be reported as the kubelet's.
	Help    bool
	Version string
}

// Default is a configuration that no flag and no file has changed: what a
// kubelet has with an empty --config file.
func Default() *Config {
	c := newConfig()
	c.EvictionHard = defaultEvictionHard()
	return c
}

// Load reads a kubelet's command line, without the program's name, and the
// files it names. As with the kubelet, flags go before drop-ins, drop-ins before
// the file, the file before defaults; and without a file, authentication and
// authorization are off. Errors name the flag, or the file and the field. Where
// Help or Version is asked for, nothing else is read.
func Load(args []string) (*Config, error) {
	base := newConfig()
	setLegacyDefaults(&base.KubeletConfiguration)
	return loadFrom(base, args)
}

// LoadOver is Load for who names files elsewhere than on a kubelet's command
// line: without a --config file it starts from Default.
func LoadOver(args []string) (*Config, error) { return loadFrom(Default(), args) }

// loadFrom starts from base where there is no --config file.
func loadFrom(base *Config, args []string) (*Config, error) {
	c := newConfig()
	c.KubeletConfiguration = *base.DeepCopy()
	used, values, err := c.parse(args)
	if err != nil {
		return nil, err
	}
	c.Given = values
	if c.Help || c.Version != "" {
		return c, nil
	}
	if c.ConfigFile != "" {
		base = Default()
		if err := c.loadFile(c.ConfigFile); err != nil {
			return nil, err
		}
	}
	if c.ConfigDir != "" {
		if err := c.loadDropIns(c.ConfigDir); err != nil {
			return nil, err
		}
	}
	if len(c.Sources) > 0 {
		if err := c.reparse(args); err != nil {
			return nil, err
		}
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	fields, err := changed(c, base)
	if err != nil {
		return nil, err
	}
	refused, warnings := judge(fields)
	if len(refused) > 0 {
		return nil, fmt.Errorf("%s: %w", c.from(), errors.Join(refused...))
	}
	c.Warnings = slices.Concat(flagWarnings(used), warnings, gateWarnings(c.FeatureGates))
	return c, nil
}

func newConfig() *Config {
	c := &Config{Flags: Flags{CertDir: "/var/lib/kubelet/pki", RootDir: "/var/lib/kubelet", MaxDeadPerContainer: 1, MaxDead: -1}}
	c.gates, _ = newGates(nil) // no gate is named, so none can be wrong
	setDefaults(&c.KubeletConfiguration, c.gates)
	return c
}

// parse reads flags over what c says, and returns the names of those given and
// the values of all.
func (c *Config) parse(args []string) (used []string, values map[string]string, err error) {
	seccomp := false
	fs := newFlagSet(c, &seccomp)
	if err := fs.Parse(args); err != nil {
		return nil, nil, fmt.Errorf("the kubelet's flags: %w", err)
	}
	if rest := fs.Args(); len(rest) > 0 {
		return nil, nil, fmt.Errorf("the kubelet's flags: unknown command %s: only flags are expected", rest[0])
	}
	if seccomp {
		*c.SeccompDefault = true
	}
	values = map[string]string{}
	fs.VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	return given(fs), values, nil
}

// reparse gives flags their precedence over files. Feature gates are the one map
// where a file's entries stay beside those of the flag
// (cmd/kubelet/app/server.go, kubeletConfigFlagPrecedence).
func (c *Config) reparse(args []string) error {
	gates := c.FeatureGates
	flags, sources := c.Flags, c.Sources
	flags.NodeLabels = nil
	c.Flags = flags
	if _, _, err := c.parse(args); err != nil {
		return err
	}
	c.Sources = sources
	for name, on := range gates {
		if _, said := c.FeatureGates[name]; !said {
			if c.FeatureGates == nil {
				c.FeatureGates = map[string]bool{}
			}
			c.FeatureGates[name] = on
		}
	}
	return nil
}

// check validates everything once it has all been read.
func (c *Config) check() error {
	gates, err := newGates(c.FeatureGates)
	if err != nil {
		return fmt.Errorf("%s: featureGates (--feature-gates): %w", c.from(), err)
	}
	c.gates = gates
	if err := validateFlags(&c.Flags); err != nil {
		return fmt.Errorf("the kubelet's flags: %w", err)
	}
	if errs := validate(&c.KubeletConfiguration, gates); len(errs) > 0 {
		return fmt.Errorf("%s: %w", c.from(), errs.ToAggregate())
	}
	return nil
}

// from names where the configuration came from, for errors.
func (c *Config) from() string {
	if len(c.Sources) == 0 {
		return "the kubelet's flags"
	}
	return strings.Join(c.Sources, ", ") + " and flags"
}

// Enabled tells whether a feature gate is on. A name that the kubelet does not
// have is off.
func (c *Config) Enabled(gate string) bool { return c.gates.enabled(gate) }

// Gate is a feature gate. Stage is alpha, beta, ga or deprecated.
type Gate struct {
	Name, Stage string
	On          bool
}

// Gates are the kubelet's feature gates, by name.
func (c *Config) Gates() []Gate {
	var out []Gate
	for _, name := range slices.Sorted(maps.Keys(c.gates)) {
		out = append(out, Gate{Name: name, Stage: c.gates[name].stage, On: c.gates[name].on})
	}
	return out
}

// NodeName is HostnameOverride or the host's name, as the kubelet writes it.
func (c *Config) NodeName() (string, error) {
	name, err := nodeutil.GetHostname(c.HostnameOverride)
	if err != nil {
		return "", fmt.Errorf("name this node by its host name: %w (give --hostname-override)", err)
	}
	return name, nil
}

// NodeIPs are the addresses of NodeIP, at most one of each family.
func (f *Flags) NodeIPs() ([]net.IP, error) {
	if f.NodeIP == "" {
		return nil, nil
	}
	ips, invalid, err := nodeutil.ParseNodeIPArgument(f.NodeIP, f.CloudProvider)
	switch {
	case len(invalid) > 0:
		return nil, fmt.Errorf("--node-ip %q: %q is not an IP address", f.NodeIP, invalid[0])
	case err != nil:
		return nil, fmt.Errorf("--node-ip %q: %w", f.NodeIP, err)
	}
	return ips, nil
}

// labels are sorted, so that what is said of them is always the same.
func (f *Flags) labels() []string { return slices.Sorted(maps.Keys(f.NodeLabels)) }
