package node

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// maxPods is the kubelet's default.
const maxPods = 110

// podNode gathers what pods inherit from this host, but for its resources.
func podNode(c config.Config, k *kubeletconfig.Config) (podspec.Node, error) {
	resolvConf := "/etc/resolv.conf"
	if k != nil && k.ResolverConfig != nil {
		resolvConf = *k.ResolverConfig
	}
	ips := c.NodeIPs
	if len(ips) == 0 {
		var err error
		if ips, err = hostIPs(c.Network.Bridge); err != nil {
			return podspec.Node{}, err
		}
	}
	resolv, err := os.ReadFile(resolvConf)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return podspec.Node{}, fmt.Errorf("read the host's resolv.conf: %w", err)
	}
	throttles, err := filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle")
	if err != nil {
		return podspec.Node{}, err
	}
	return podspec.Node{
		Name: c.NodeName, HostIPs: ips, ClusterDNS: c.ClusterDNS, ClusterDomain: c.ClusterDomain, HostResolv: resolv,
		PodLogsDir: c.PodLogsDir, KubeletDir: c.KubeletDir, SeccompDir: filepath.Join(c.KubeletDir, "seccomp"),
		MaskedPaths: throttles, SeccompDefault: k != nil && *k.SeccompDefault,
	}, nil
}

// hostIPs returns this host's addresses, IPv4 first: those of the links with a
// default route, else of any link that is up, the pods' bridge apart. A host
// without any is known by its loopback address.
func hostIPs(bridge string) ([]string, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes to find this host's addresses: %w", err)
	}
	egress := map[int]bool{}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			egress[r.LinkIndex] = true
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces to find this host's addresses: %w", err)
	}
	var v4, v6 string
	for _, onlyEgress := range []bool{true, false} {
		for _, l := range links {
			if onlyEgress && !egress[l.Index] || l.Flags&net.FlagUp == 0 || l.Name == bridge {
				continue
			}
			addrs, err := l.Addrs()
			if err != nil {
				return nil, fmt.Errorf("addresses of %s: %w", l.Name, err)
			}
			for _, a := range addrs {
				ip, _, err := net.ParseCIDR(a.String())
				if err != nil || !ip.IsGlobalUnicast() {
					continue
				}
				switch {
				case ip.To4() != nil && v4 == "":
					v4 = ip.String()
				case ip.To4() == nil && v6 == "":
					v6 = ip.String()
				}
			}
		}
		if v4 != "" || v6 != "" {
			break
		}
	}
	var out []string
	for _, ip := range []string{v4, v6} {
		if ip != "" {
			out = append(out, ip)
		}
	}
	if out == nil {
		out = []string{"127.0.0.1"}
	}
	return out, nil
}

// bootID names this boot: what was recorded under another is void.
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
