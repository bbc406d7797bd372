package spec

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultCapabilities are what an unprivileged container has unless it asks
// otherwise; the same fourteen in every CRI runtime.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD",
	"CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities puts the same list into the bounding, effective and permitted
// sets. Inheritable stays empty, as in current runtimes (CVE-2022-24769), and
// ambient has what the request names for it.
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext, all []string) *specs.LinuxCapabilities {
	if sc.GetPrivileged() {
		return &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	}
	asked := sc.GetCapabilities()
	caps := slices.Clone(defaultCapabilities)
	if hasAll(asked.GetAddCapabilities()) {
		caps = slices.Clone(all)
	}
	if hasAll(asked.GetDropCapabilities()) {
		caps = nil
	}
	ambient := named(asked.GetAddAmbientCapabilities())
	for _, c := range slices.Concat(named(asked.GetAddCapabilities()), ambient) {
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	dropped := named(asked.GetDropCapabilities())
	isDropped := func(c string) bool { return slices.Contains(dropped, c) }
	caps = slices.DeleteFunc(caps, isDropped)
	ambient = slices.DeleteFunc(ambient, isDropped)
	return &specs.LinuxCapabilities{
		Bounding: caps, Effective: caps, Permitted: caps,
		Inheritable: ambient, Ambient: ambient, // ambient needs inheritable (capabilities(7))
	}
}

func hasAll(caps []string) bool {
	return slices.ContainsFunc(caps, func(c string) bool { return strings.EqualFold(c, "ALL") })
}

// named has the kernel's names; the CRI's have no CAP_ in front, users' often do.
func named(caps []string) []string {
	var names []string
	for _, c := range caps {
		if strings.EqualFold(c, "ALL") {
			continue
		}
		names = append(names, "CAP_"+strings.TrimPrefix(strings.ToUpper(c), "CAP_"))
	}
	return names
}

func setSecurity(s *specs.Spec, in Input, host Host) error {
	sc := securityContext(in.Container)
	if host.SELinux && sc.GetSelinuxOptions() != nil && !sc.GetPrivileged() {
		return fieldError("linux.security_context.selinux_options", "labels for SELinux, which this host has, are not supported")
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{}, []string{}
	if !sc.GetPrivileged() {
		s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, sc.GetMaskedPaths()...)
		s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, sc.GetReadonlyPaths()...)
	}
	profile, err := seccompProfile(s, sc, in.SeccompProfile)
	if err != nil {
		return err
	}
	s.Linux.Seccomp = profile
	s.Process.ApparmorProfile, err = apparmorProfile(sc, host.AppArmor)
	return err
}

// SeccompFile is the path of the Localhost profile a container asks for, empty
// when it asks for none.
func SeccompFile(sc *runtimeapi.LinuxContainerSecurityContext) string {
	if sc.GetPrivileged() || sc.GetSeccomp().GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return ""
	}
	return strings.TrimPrefix(sc.GetSeccomp().GetLocalhostRef(), "localhost/")
}

// seccompProfile: no profile means unconfined, and so does privileged. The
// default profile allows more system calls to a container with more
// capabilities, so it is made last.
func seccompProfile(s *specs.Spec, sc *runtimeapi.LinuxContainerSecurityContext, local []byte) (*specs.LinuxSeccomp, error) {
	if sc.GetPrivileged() || sc.GetSeccomp() == nil {
		return nil, nil
	}
	switch kind := sc.GetSeccomp().GetProfileType(); kind {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return seccomp.DefaultProfile(s), nil
	case runtimeapi.SecurityProfile_Localhost:
		profile := &specs.LinuxSeccomp{}
		if err := json.Unmarshal(local, profile); err != nil {
			return nil, fmt.Errorf("parse the seccomp profile %s: %w", SeccompFile(sc), err)
		}
		return profile, nil
	default:
		return nil, fieldError("linux.security_context.seccomp", "profile type %v is not known", kind)
	}
}

// apparmorProfile refuses a profile that cannot be applied: a container must
// not run with less protection than it asks for. Without AppArmor in the
// kernel, the runtime's default is nothing.
func apparmorProfile(sc *runtimeapi.LinuxContainerSecurityContext, runtimeDefault string) (string, error) {
	if sc.GetPrivileged() || sc.GetApparmor() == nil {
		return "", nil
	}
	switch kind := sc.GetApparmor().GetProfileType(); kind {
	case runtimeapi.SecurityProfile_Unconfined:
		if runtimeDefault == "" {
			return "", nil
		}
		return "unconfined", nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return runtimeDefault, nil
	case runtimeapi.SecurityProfile_Localhost:
		if runtimeDefault == "" {
			return "", fieldError("linux.security_context.apparmor", "this host has no AppArmor")
		}
		name := strings.TrimPrefix(sc.GetApparmor().GetLocalhostRef(), "localhost/")
		if name == "" {
			return "", fieldError("linux.security_context.apparmor.localhost_ref", "it must name a profile")
		}
		return name, nil
	default:
		return "", fieldError("linux.security_context.apparmor", "profile type %v is not known", kind)
	}
}
