// Package kubelet brings berth.yaml and the kubelet's configuration together:
// either may say how the node is, and a host that kubeadm set up has only the
// latter.
package kubelet

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// Load reads the kubelet's configuration that berth.yaml names; nil: it names
// neither one nor a cluster.
func Load(c config.Config) (*kubeletconfig.Config, error) {
	if c.Kubeconfig == "" && c.KubeletConfig == "" && c.KubeletConfigDir == "" {
		return nil, nil
	}
	args := []string{"--root-dir", c.KubeletDir, "--hostname-override", c.NodeName}
	for _, f := range []struct{ flag, value string }{
		{"--kubeconfig", c.Kubeconfig}, {"--config", c.KubeletConfig}, {"--config-dir", c.KubeletConfigDir}, {"--bootstrap-kubeconfig", c.BootstrapKubeconfig},
		{"--cert-dir", c.CertDir}, {"--node-ip", strings.Join(c.NodeIPs, ",")},
	} {
		if f.value != "" {
			args = append(args, f.flag, f.value)
		}
	}
	if c.CertDir == "" {
		args = append(args, "--cert-dir", filepath.Join(c.KubeletDir, "pki"))
	}
	return kubeletconfig.LoadOver(args)
}

// Merge puts into c what the kubelet's configuration says: whatever is not at
// its default goes before berth.yaml. Where the runtime is neither unset nor
// Berth's own, this daemon is the agent only.
func Merge(c config.Config, k *kubeletconfig.Config) (config.Config, error) {
	base := kubeletconfig.Default()
	set := func(to *string, value, unset string) {
		if value != unset && value != "" {
			*to = value
		}
	}
	if k.HostnameOverride != "" {
		var err error
		if c.NodeName, err = k.NodeName(); err != nil {
			return c, err
		}
	}
	set(&c.Kubeconfig, k.Kubeconfig, "")
	set(&c.BootstrapKubeconfig, k.BootstrapKubeconfig, "")
	set(&c.KubeletDir, k.RootDir, base.RootDir)
	set(&c.CertDir, k.CertDir, base.CertDir)
	set(&c.PodLogsDir, k.PodLogsDir, base.PodLogsDir)
	set(&c.ManifestDir, k.StaticPodPath, "")
	set(&c.CgroupDriver, k.CgroupDriver, base.CgroupDriver)
	set(&c.CgroupRoot, k.CgroupRoot, "")
	set(&c.ClusterDomain, k.ClusterDomain, "")
	if len(k.ClusterDNS) > 0 {
		c.ClusterDNS = k.ClusterDNS
	}
	if k.FileCheckFrequency != base.FileCheckFrequency {
		c.Rescan.Duration = max(k.FileCheckFrequency.Duration, time.Second)
	}
	if k.MaxParallelImagePulls != nil {
		c.Images.MaxParallelPulls = int(*k.MaxParallelImagePulls)
	}
	if k.PodCIDR != "" && c.Network.PodCIDRs == nil {
		c.Network.PodCIDRs = strings.Split(k.PodCIDR, ",")
	}
	ips, err := k.NodeIPs()
	if err != nil {
		return c, err
	}
	if len(ips) > 0 && !ips[0].IsUnspecified() {
		c.NodeIPs = nil
		for _, ip := range ips {
			c.NodeIPs = append(c.NodeIPs, unmapped(ip.String()))
		}
	}
	runtime(&c, k.ContainerRuntimeEndpoint)
	return c, c.Validate()
}

// unmapped writes an IPv4 address as such.
func unmapped(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	return a.Unmap().String()
}

// runtime takes another runtime's socket for what it is: this daemon then
// serves none, and makes no pod network.
func runtime(c *config.Config, endpoint string) {
	socket := strings.TrimPrefix(endpoint, "unix://")
	if socket == "" || resolved(socket) == resolved(c.CRISocket) {
		return
	}
	c.CRISocket = socket
	c.Roles = slices.DeleteFunc(slices.Clone(c.Roles), func(r string) bool { return r != config.RoleAgent })
	if len(c.Roles) == 0 {
		c.Roles = []string{config.RoleAgent}
	}
}

// resolved is a socket's path by which two names of it are the same: /var/run
// is a link to /run.
func resolved(path string) string {
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	if rest, found := strings.CutPrefix(path, "/var/run/"); found {
		return filepath.Join("/run", rest)
	}
	return filepath.Clean(path)
}
