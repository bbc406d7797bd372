// Package config is Berth's configuration file: /etc/berth/berth.yaml, every
// key with its default. An unknown key or a value that cannot be meant is an
// error that names the key.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// DefaultPath is where the configuration is looked for.
const DefaultPath = "/etc/berth/berth.yaml"

// DefaultPodCIDR is the subnet of pods where nothing says another.
const DefaultPodCIDR = "10.85.0.0/16"

// Roles that one daemon can have.
const (
	RoleAgent   = "agent"
	RoleCRI     = "cri"
	RoleNetwork = "network"
)

// Config is the file's content.
type Config struct {
	// NodeName is the name pods know their node by. Default: the host's name.
	NodeName string `json:"nodeName,omitempty"`
	// NodeIPs are the addresses that pods and the cluster know the node by, one
	// of each family at most. Default: those of the links with a default route.
	NodeIPs []string `json:"nodeIPs,omitempty"`
	// Roles this daemon has. Default: agent, cri, network.
	Roles []string `json:"roles,omitempty"`
	// ManifestDir is watched for manifests. Default: /etc/berth/manifests.
	ManifestDir string `json:"manifestDir,omitempty"`
	// Kubeconfig says how the node reaches its cluster's API server. Without it
	// pods come from manifests alone.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// BootstrapKubeconfig has credentials that may ask for a client certificate;
	// Kubeconfig is written with it then.
	BootstrapKubeconfig string `json:"bootstrapKubeconfig,omitempty"`
	// KubeletConfig is the file of a KubeletConfiguration. Without a Kubeconfig
	// what it says of pods, cgroups, eviction and garbage holds.
	KubeletConfig string `json:"kubeletConfig,omitempty"`
	// KubeletConfigDir holds *.conf files that are merged over KubeletConfig.
	KubeletConfigDir string `json:"kubeletConfigDir,omitempty"`
	// CertDir holds the node's certificates. Default: KubeletDir/pki.
	CertDir string `json:"certDir,omitempty"`
	// Rescan is how often the manifest directory is read even without a
	// notice of a change. Default: 20s.
	Rescan metav1.Duration `json:"rescan,omitzero"`

	// RootDir holds what survives a reboot. Default: /var/lib/berth.
	RootDir string `json:"rootDir,omitempty"`
	// RunDir holds what does not. Default: /run/berth.
	RunDir string `json:"runDir,omitempty"`
	// KubeletDir is the kubelet's directory. Default: /var/lib/kubelet.
	KubeletDir string `json:"kubeletDir,omitempty"`
	// PodLogsDir holds the pods' logs. Default: /var/log/pods.
	PodLogsDir string `json:"podLogsDir,omitempty"`
	// ContainerLogsDir holds links to them for log shippers. Default: /var/log/containers.
	ContainerLogsDir string `json:"containerLogsDir,omitempty"`

	// CgroupRoot is the cgroup below which kubepods is made. Default: /.
	CgroupRoot string `json:"cgroupRoot,omitempty"`
	// CgroupDriver is cgroupfs or systemd. Default: cgroupfs.
	CgroupDriver string `json:"cgroupDriver,omitempty"`

	// CRISocket is the runtime's socket: served with the role cri, else
	// connected to. Default: RunDir/cri.sock.
	CRISocket string `json:"criSocket,omitempty"`
	// APISocket is the agent's API for the CLI. Default: RunDir/berth.sock.
	APISocket string `json:"apiSocket,omitempty"`

	// ShimBinary is berth-shim. Default: beside berth, then $PATH.
	ShimBinary string `json:"shimBinary,omitempty"`
	// RuntimeBinary is the OCI runtime of the handler runc. Default: runc beside berth, then $PATH.
	RuntimeBinary string `json:"runtimeBinary,omitempty"`
	// Runtimes are more OCI runtimes, by the name of the runtime handler that
	// a RuntimeClass has. An entry runc takes the place of RuntimeBinary.
	Runtimes map[string]Runtime `json:"runtimes,omitempty"`
	// DefaultRuntime is the handler of pods that name none. Default: runc.
	DefaultRuntime string `json:"defaultRuntime,omitempty"`

	// CNIConfDir holds CNI network lists; the first by name is used. Where it
	// has none, Berth's own network is. Default: /etc/cni/net.d.
	CNIConfDir string `json:"cniConfDir,omitempty"`
	// CNIBinDirs hold CNI plugins other than Berth's. Default: /opt/cni/bin.
	CNIBinDirs []string `json:"cniBinDirs,omitempty"`
	// CertsDirs hold HOST/hosts.toml: registry mirrors and certificates.
	// Default: /etc/berth/certs.d, /etc/containerd/certs.d.
	CertsDirs []string `json:"certsDirs,omitempty"`
	// CDISpecDirs hold the files that describe CDI devices; a later one goes
	// before an earlier one, an empty list switches CDI off. Default: /etc/cdi,
	// /var/run/cdi.
	CDISpecDirs []string `json:"cdiSpecDirs,omitempty"`

	// ClusterDNS are the name servers of pods with dnsPolicy ClusterFirst.
	ClusterDNS []string `json:"clusterDNS,omitempty"`
	// ClusterDomain is the domain of services. Default: cluster.local.
	ClusterDomain string `json:"clusterDomain,omitempty"`

	// DefaultUlimits are the resource limits of containers' processes,
	// NAME=SOFT[:HARD], -1 for none. Default: the daemon's own.
	DefaultUlimits []string `json:"defaultUlimits,omitempty"`

	SELinux SELinux `json:"selinux,omitzero"`
	Network Network `json:"network,omitzero"`
	NRI     NRI     `json:"nri,omitzero"`
	Images  Images  `json:"images,omitzero"`

	// LogLevel is debug, info, warn or error. Default: info.
	LogLevel string `json:"logLevel,omitempty"`
}

// Network is Berth's own pod network.
type Network struct {
	// PodCIDRs are this node's pod subnets, at most one of each family.
	// Default: those that a kubelet assigns, before that DefaultPodCIDR.
	PodCIDRs []string `json:"podCIDRs,omitempty"`
	// Bridge is the bridge's name. Default: berth0.
	Bridge string `json:"bridge,omitempty"`
	// MTU of pod interfaces. Default: 0, which takes it from the egress route.
	MTU int `json:"mtu,omitempty"`
}

// Images is how images are pulled and kept.
type Images struct {
	// MaxParallelPulls is how many images are pulled at a time. Default: 4.
	MaxParallelPulls int `json:"maxParallelPulls,omitempty"`
	// MaxParallelDownloads is how many layers of one image are fetched at a
	// time. Default: 3.
	MaxParallelDownloads int `json:"maxParallelDownloads,omitempty"`
	// MaxParallelUnpacks is how many layers of all images are unpacked at a
	// time. Default: as many as processors, at most 4.
	MaxParallelUnpacks int `json:"maxParallelUnpacks,omitempty"`
	// MaxLayerSize bounds one layer, packed and unpacked. Default: 64Gi.
	MaxLayerSize resource.Quantity `json:"maxLayerSize,omitzero"`
	// MaxImageSize bounds what the layers of one image unpack to. Default: 128Gi.
	MaxImageSize resource.Quantity `json:"maxImageSize,omitzero"`
	// MaxLayerEntries bounds the files and directories of one layer. Default: 4194304.
	MaxLayerEntries int64 `json:"maxLayerEntries,omitempty"`
	// PullProgressTimeout is how long a registry may send nothing. Default: 5m.
	PullProgressTimeout metav1.Duration `json:"pullProgressTimeout,omitzero"`
	// Pinned are images that are not collected: references, * for any text.
	Pinned []string `json:"pinned,omitempty"`
	// AuthFile is a docker config.json with the credentials of pulls that
	// bring none.
	AuthFile string `json:"authFile,omitempty"`
}

// Load reads the file and fills in defaults. A missing file at DefaultPath is
// an empty one; elsewhere it was asked for, and its absence is an error.
func Load(path string) (Config, error) {
	var c Config
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && path == DefaultPath:
	case err != nil:
		return c, fmt.Errorf("read the configuration: %w", err)
	default:
		if err := decode(data, &c); err != nil {
			return c, fmt.Errorf("%s: %w", path, err)
		}
	}
	if err := c.setDefaults(); err != nil {
		return c, err
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// decode is strict about unknown and doubled keys and about their case, which
// encoding/json is not.
func decode(data []byte, c *Config) error {
	data, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	strict, err := kjson.UnmarshalStrict(data, c)
	return errors.Join(append(strict, err)...)
}

func (c *Config) setDefaults() error {
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name this node by its host name: %w (set nodeName)", err)
		}
		c.NodeName = strings.ToLower(host)
	}
	for _, d := range []struct {
		field *string
		value string
	}{
		{&c.ManifestDir, "/etc/berth/manifests"},
		{&c.RootDir, "/var/lib/berth"},
		{&c.RunDir, "/run/berth"},
		{&c.KubeletDir, "/var/lib/kubelet"},
		{&c.PodLogsDir, "/var/log/pods"},
		{&c.ContainerLogsDir, "/var/log/containers"},
		{&c.CgroupRoot, "/"},
		{&c.CgroupDriver, "cgroupfs"},
		{&c.DefaultRuntime, runc},
		{&c.CNIConfDir, "/etc/cni/net.d"},
		{&c.ClusterDomain, "cluster.local"},
		{&c.Network.Bridge, "berth0"},
		{&c.LogLevel, "info"},
	} {
		if *d.field == "" {
			*d.field = d.value
		}
	}
	if c.CRISocket == "" {
		c.CRISocket = filepath.Join(c.RunDir, "cri.sock")
	}
	if c.APISocket == "" {
		c.APISocket = filepath.Join(c.RunDir, "berth.sock")
	}
	if c.ShimBinary == "" {
		c.ShimBinary = beside("berth-shim")
	}
	if c.RuntimeBinary == "" {
		c.RuntimeBinary = beside("runc")
	}
	if c.Roles == nil {
		c.Roles = []string{RoleAgent, RoleCRI, RoleNetwork}
	}
	if c.CNIBinDirs == nil {
		c.CNIBinDirs = []string{"/opt/cni/bin"}
	}
	if c.CertsDirs == nil {
		c.CertsDirs = []string{"/etc/berth/certs.d", "/etc/containerd/certs.d"}
	}
	if c.CDISpecDirs == nil {
		c.CDISpecDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	c.SELinux.setDefaults()
	c.NRI.setDefaults()
	if c.Rescan.Duration == 0 {
		c.Rescan.Duration = 20 * time.Second
	}
	return nil
}

// beside finds a program next to this one, as they are installed together.
func beside(name string) string {
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), name); exists(path) {
			return path
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return name
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Validate checks what can be checked without the host; an error names the key.
func (c *Config) Validate() error {
	var errs []error
	reject := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	for _, p := range []struct{ key, path string }{
		{"manifestDir", c.ManifestDir}, {"rootDir", c.RootDir}, {"runDir", c.RunDir}, {"kubeletDir", c.KubeletDir},
		{"podLogsDir", c.PodLogsDir}, {"containerLogsDir", c.ContainerLogsDir}, {"cgroupRoot", c.CgroupRoot},
		{"criSocket", c.CRISocket}, {"apiSocket", c.APISocket}, {"cniConfDir", c.CNIConfDir},
	} {
		if !filepath.IsAbs(p.path) {
			reject(p.key, "%q must be an absolute path", p.path)
		}
	}
	if c.CgroupDriver != "cgroupfs" && c.CgroupDriver != "systemd" {
		reject("cgroupDriver", "%q must be cgroupfs or systemd", c.CgroupDriver)
	}
	c.validateRuntimes(reject)
	c.SELinux.validate(reject)
	c.NRI.validate(reject)
	if _, err := c.Ulimits(); err != nil {
		errs = append(errs, err)
	}
	for i, role := range c.Roles {
		if !slices.Contains([]string{RoleAgent, RoleCRI, RoleNetwork}, role) {
			reject(fmt.Sprintf("roles[%d]", i), "%q must be one of agent, cri, network", role)
		}
	}
	if len(c.Roles) == 0 {
		reject("roles", "must name at least one of agent, cri, network")
	}
	for i, cidr := range c.Network.PodCIDRs {
		if _, err := netip.ParsePrefix(cidr); err != nil {
			reject(fmt.Sprintf("network.podCIDRs[%d]", i), "%q is not a subnet such as 10.85.0.0/16", cidr)
		}
	}
	for i, ip := range c.NodeIPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			reject(fmt.Sprintf("nodeIPs[%d]", i), "%q is not an IP address", ip)
		}
	}
	for _, p := range []struct{ key, path string }{
		{"kubeconfig", c.Kubeconfig}, {"bootstrapKubeconfig", c.BootstrapKubeconfig}, {"kubeletConfig", c.KubeletConfig},
		{"kubeletConfigDir", c.KubeletConfigDir}, {"certDir", c.CertDir},
	} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			reject(p.key, "%q must be an absolute path", p.path)
		}
	}
	for i, ip := range c.ClusterDNS {
		if _, err := netip.ParseAddr(ip); err != nil {
			reject(fmt.Sprintf("clusterDNS[%d]", i), "%q is not an IP address", ip)
		}
	}
	if n := len(c.Network.Bridge); n > 15 {
		reject("network.bridge", "%q is longer than the 15 characters of an interface name", c.Network.Bridge)
	}
	if c.Network.MTU < 0 {
		reject("network.mtu", "%d must not be negative", c.Network.MTU)
	}
	if c.Rescan.Duration < time.Second {
		reject("rescan", "%s must be at least 1s", c.Rescan.Duration)
	}
	c.Images.validate(reject)
	if _, err := c.Level(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (i *Images) validate(reject func(key, format string, args ...any)) {
	for _, n := range []struct {
		key   string
		value int64
	}{
		{"maxParallelPulls", int64(i.MaxParallelPulls)}, {"maxParallelDownloads", int64(i.MaxParallelDownloads)},
		{"maxParallelUnpacks", int64(i.MaxParallelUnpacks)}, {"maxLayerEntries", i.MaxLayerEntries},
		{"maxLayerSize", i.MaxLayerSize.Value()}, {"maxImageSize", i.MaxImageSize.Value()},
		{"pullProgressTimeout", int64(i.PullProgressTimeout.Duration)},
	} {
		if n.value < 0 {
			reject("images."+n.key, "must not be negative")
		}
	}
	if i.AuthFile != "" && !filepath.IsAbs(i.AuthFile) {
		reject("images.authFile", "%q must be an absolute path", i.AuthFile)
	}
	for n, ref := range i.Pinned {
		if ref == "" {
			reject(fmt.Sprintf("images.pinned[%d]", n), "it is empty")
		}
	}
}

// Level is LogLevel as slog knows it.
func (c *Config) Level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return l, fmt.Errorf("logLevel: %q must be debug, info, warn or error", c.LogLevel)
	}
	return l, nil
}

// Has tells whether this daemon has a role.
func (c *Config) Has(role string) bool { return slices.Contains(c.Roles, role) }
