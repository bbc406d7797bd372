package podspec

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The API's limits on what ends up in a pod's resolv.conf.
const (
	maxNameservers = 3
	maxSearchPaths = 32
	maxSearchChars = 2048
)

// Warning is something the pod's owner should know although the pod can run;
// Reason and Message are those of the kubelet's event.
type Warning struct{ Reason, Message string }

// DNS is the resolver configuration of a pod, and what had to be left out of
// it or done instead. Sandbox uses it; callers that report events call it too.
func DNS(pod *v1.Pod, node Node) (*runtimeapi.DNSConfig, []Warning) {
	var warnings []Warning
	var cfg *runtimeapi.DNSConfig
	switch policy := effectiveDNSPolicy(pod); {
	case policy == v1.DNSNone:
		cfg = &runtimeapi.DNSConfig{}
	case policy == v1.DNSClusterFirst && len(node.ClusterDNS) > 0:
		cfg = parseResolvConf(node.HostResolv)
		cfg.Servers = slices.Clone(node.ClusterDNS)
		cfg.Options = []string{"ndots:5"}
		if d := node.ClusterDomain; d != "" {
			cluster := []string{pod.Namespace + ".svc." + d, "svc." + d, d}
			cfg.Searches = unique(append(cluster, cfg.Searches...))
		}
	case policy == v1.DNSClusterFirst:
		warnings = append(warnings, Warning{"MissingClusterDNS", fmt.Sprintf(
			"pod: %q. kubelet does not have ClusterDNS IP configured and cannot create Pod using %q policy. Falling back to %q policy.",
			podDesc(pod), v1.DNSClusterFirst, v1.DNSDefault)})
		cfg = hostDNS(node)
	default:
		cfg = hostDNS(node)
	}
	if c := pod.Spec.DNSConfig; c != nil {
		cfg.Servers = unique(append(cfg.Servers, c.Nameservers...))
		cfg.Searches = unique(append(cfg.Searches, c.Searches...))
		for _, o := range c.Options {
			opt := o.Name
			if o.Value != nil && *o.Value != "" {
				opt += ":" + *o.Value
			}
			cfg.Options = setOption(cfg.Options, opt)
		}
	}
	return cfg, append(warnings, fitDNSLimits(cfg)...)
}

// effectiveDNSPolicy folds the policies into ClusterFirst, Default and None.
// An unknown one means ClusterFirst, as in the kubelet.
func effectiveDNSPolicy(pod *v1.Pod) v1.DNSPolicy {
	switch p := pod.Spec.DNSPolicy; {
	case p == v1.DNSNone, p == v1.DNSDefault:
		return p
	case p == v1.DNSClusterFirst && pod.Spec.HostNetwork:
		return v1.DNSDefault
	default:
		return v1.DNSClusterFirst
	}
}

// hostDNS is the node's own configuration. Without a resolv.conf that means a
// resolver on the node's loopback (resolv.conf(5)) and no search list.
func hostDNS(node Node) *runtimeapi.DNSConfig {
	cfg := parseResolvConf(node.HostResolv)
	if len(node.HostResolv) > 0 {
		return cfg
	}
	for _, s := range node.HostIPs {
		loopback := "127.0.0.1"
		if ip, err := netip.ParseAddr(s); err == nil && ip.Is6() {
			loopback = "::1"
		}
		cfg.Servers = append(cfg.Servers, loopback)
	}
	if len(cfg.Servers) == 0 {
		cfg.Servers = []string{"127.0.0.1"}
	}
	cfg.Searches = []string{"."}
	return cfg
}

// parseResolvConf reads what resolv.conf(5) defines: name servers accumulate,
// the last search line wins, options override by name. What it does not know
// it skips: a comment or a broken line on the host must not stop pods.
func parseResolvConf(content []byte) *runtimeapi.DNSConfig {
	cfg := &runtimeapi.DNSConfig{}
	lines := bufio.NewScanner(bytes.NewReader(content))
	lines.Buffer(nil, len(content)+1)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			if len(fields) == 1 && fields[0] == "search" {
				cfg.Searches = nil
			}
			continue
		}
		switch fields[0] {
		case "nameserver":
			cfg.Servers = append(cfg.Servers, fields[1])
		case "search":
			cfg.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					cfg.Searches = append(cfg.Searches, strings.TrimSuffix(s, "."))
				}
			}
		case "options":
			for _, o := range fields[1:] {
				cfg.Options = setOption(cfg.Options, o)
			}
		}
	}
	return cfg
}

// setOption adds a resolver option, or replaces the one of the same name.
func setOption(options []string, opt string) []string {
	name, _, _ := strings.Cut(opt, ":")
	for i, have := range options {
		if n, _, _ := strings.Cut(have, ":"); n == name {
			options[i] = opt
			return options
		}
	}
	return append(options, opt)
}

// fitDNSLimits cuts cfg to what resolvers stand, and says so.
func fitDNSLimits(cfg *runtimeapi.DNSConfig) []Warning {
	var warnings []Warning
	if len(cfg.Servers) > maxNameservers {
		cfg.Servers = cfg.Servers[:maxNameservers]
		warnings = append(warnings, Warning{"DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: " +
			strings.Join(cfg.Servers, " ")})
	}
	before := len(cfg.Searches)
	if before > maxSearchPaths {
		cfg.Searches = cfg.Searches[:maxSearchPaths]
	}
	// glibc 2.28 aborts on a search path longer than a domain name can be.
	cfg.Searches = slices.DeleteFunc(cfg.Searches, func(s string) bool {
		return len(s) > validation.DNS1123SubdomainMaxLength
	})
	for len(strings.Join(cfg.Searches, " ")) > maxSearchChars {
		cfg.Searches = cfg.Searches[:len(cfg.Searches)-1]
	}
	if len(cfg.Searches) < before {
		warnings = append(warnings, Warning{"DNSConfigForming", "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: " +
			strings.Join(cfg.Searches, " ")})
	}
	return warnings
}

// unique keeps the first of equal strings.
func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
