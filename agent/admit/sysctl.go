package admit

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/component-helpers/node/util/sysctl"
)

// safeSysctls are separate for each pod and touch no other, since the kernel
// version given; empty: since ever (pkg/kubelet/sysctl/safe_sysctls.go).
var safeSysctls = map[string]string{
	"kernel.shm_rmid_forced":              "",
	"net.ipv4.ip_local_port_range":        "",
	"net.ipv4.tcp_syncookies":             "",
	"net.ipv4.ping_group_range":           "",
	"net.ipv4.ip_unprivileged_port_start": "",
	"net.ipv4.ip_local_reserved_ports":    "3.16",
	"net.ipv4.tcp_keepalive_time":         "4.5",
	"net.ipv4.tcp_fin_timeout":            "4.6",
	"net.ipv4.tcp_keepalive_intvl":        "4.5",
	"net.ipv4.tcp_keepalive_probes":       "4.5",
	"net.ipv4.tcp_rmem":                   "4.15",
	"net.ipv4.tcp_wmem":                   "4.15",
}

const maxSysctlLength = 253

// sysctlPattern is a sysctl's name, or the beginning of names and a star.
var sysctlPattern = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9*]$`)

// sysctls are the names that pods may set, each with the namespace it is of,
// without which a pod would set the host's.
type sysctls struct {
	names, prefixes map[string]sysctl.Namespace
}

// newSysctls allows the safe sysctls of a kernel and those of the
// configuration.
func newSysctls(unsafe []string, kernel string) (sysctls, error) {
	running, err := version.ParseGeneric(kernel)
	if err != nil {
		return sysctls{}, fmt.Errorf("read the kernel's version: %w", err)
	}
	s := sysctls{names: map[string]sysctl.Namespace{}, prefixes: map[string]sysctl.Namespace{}}
	for name, since := range safeSysctls {
		if since == "" || running.AtLeast(version.MustParseGeneric(since)) {
			s.names[name], _, _ = sysctl.GetNamespace(name)
		}
	}
	for i, pattern := range unsafe {
		field := fmt.Sprintf("allowedUnsafeSysctls[%d]: ", i)
		if len(pattern) > maxSysctlLength || !sysctlPattern.MatchString(pattern) {
			return s, fmt.Errorf("%s%q must be a sysctl's name of at most %d characters, or the beginning of one and a star", field, pattern, maxSysctlLength)
		}
		namespace, name, prefix := sysctl.GetNamespace(pattern)
		switch {
		case namespace == sysctl.UnknownNamespace:
			return s, fmt.Errorf("%s%q is not known to be separate for each pod: a pod would set it for the whole host", field, pattern)
		case prefix:
			s.prefixes[name] = namespace
		default:
			s.names[name] = namespace
		}
	}
	return s, nil
}

func (s sysctls) check(in Input) *Rejection {
	sc := in.Pod.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	for _, set := range sc.Sysctls {
		name := sysctl.NormalizeName(set.Name)
		namespace, allowed := s.find(name)
		var problem string
		switch {
		case !allowed:
			problem = fmt.Sprintf("%q not allowlisted", name)
		case namespace == sysctl.IPCNamespace && in.Pod.Spec.HostIPC,
			namespace == sysctl.NetNamespace && in.Pod.Spec.HostNetwork:
			problem = fmt.Sprintf("%q not allowed with host %s enabled", name, namespace)
		default:
			continue
		}
		return &Rejection{Reason: SysctlForbidden, Message: "forbidden sysctl: " + problem}
	}
	return nil
}

func (s sysctls) find(name string) (sysctl.Namespace, bool) {
	if namespace, found := s.names[name]; found {
		return namespace, true
	}
	for _, prefix := range slices.Sorted(maps.Keys(s.prefixes)) {
		if strings.HasPrefix(name, prefix) {
			return s.prefixes[prefix], true
		}
	}
	return "", false
}
