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
	if host.SELinux && in.SELinux.File == "" && sc.GetSelinuxOptions() != nil && !sc.GetPrivileged() {
		return fieldError("linux.security_context.selinux_options", "this node does not label containers: set selinux.enable in berth.yaml")
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{}, []string{}
	if !sc.GetPrivileged() {
		s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, sc.GetMaskedPaths()...)
		s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, sc.GetReadonlyPaths()...)
	}
	profile, err := seccompProfile(s, sc, in.SeccompProfile, host)
	if err != nil {
		return err
	}
	s.Linux.Seccomp = profile
	s.Process.ApparmorProfile, err = apparmorProfile(sc, host.AppArmor)
	return err
}

// profileOf is a security profile, or what the field from before there were
// typed ones says in its place: runtime/default, unconfined, localhost/NAME.
func profileOf(typed *runtimeapi.SecurityProfile, old string) *runtimeapi.SecurityProfile {
	name, local := strings.CutPrefix(old, "localhost/")
	switch {
	case typed != nil || old == "":
		return typed
	case old == "runtime/default", old == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case old == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	case local:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}
	}
	return &runtimeapi.SecurityProfile{ProfileType: -1}
}

func seccompOf(sc *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.SecurityProfile {
	//lint:ignore SA1019 old clients set nothing else
	return profileOf(sc.GetSeccomp(), sc.GetSeccompProfilePath())
}

func apparmorOf(sc *runtimeapi.LinuxContainerSecurityContext) *runtimeapi.SecurityProfile {
	//lint:ignore SA1019 old clients set nothing else
	return profileOf(sc.GetApparmor(), sc.GetApparmorProfile())
}

// validateProfile: only a Localhost profile has a name.
func validateProfile(field string, p *runtimeapi.SecurityProfile) error {
	name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	switch kind := p.GetProfileType(); {
	case p == nil:
		return nil
	case kind < runtimeapi.SecurityProfile_RuntimeDefault || kind > runtimeapi.SecurityProfile_Localhost:
		return fieldError(field, "profile type %v is not known", kind)
	case kind == runtimeapi.SecurityProfile_Localhost && name == "":
		return fieldError(field+".localhost_ref", "it must name a profile")
	case kind != runtimeapi.SecurityProfile_Localhost && name != "":
		return fieldError(field+".localhost_ref", "it is for profiles of type Localhost, not %v", kind)
	}
	return nil
}

// SeccompFile is the path of the Localhost profile a container asks for, empty
// when it asks for none.
func SeccompFile(sc *runtimeapi.LinuxContainerSecurityContext) string {
	p := seccompOf(sc)
	if sc.GetPrivileged() || p.GetProfileType() != runtimeapi.SecurityProfile_Localhost {
		return ""
	}
	return strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
}

// seccompProfile: no profile means unconfined, and so does privileged. The
// default profile allows more system calls to a container with more
// capabilities, so it is made last.
func seccompProfile(s *specs.Spec, sc *runtimeapi.LinuxContainerSecurityContext, local []byte, host Host) (*specs.LinuxSeccomp, error) {
	p := seccompOf(sc)
	if sc.GetPrivileged() || p == nil {
		return nil, nil
	}
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return defaultProfile(s, host), nil
	case runtimeapi.SecurityProfile_Localhost:
		profile := &specs.LinuxSeccomp{}
		if err := json.Unmarshal(local, profile); err != nil {
			return nil, fmt.Errorf("parse the seccomp profile %s: %w", SeccompFile(sc), err)
		}
		return profile, nil
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, nil
	default:
		return nil, fieldError("linux.security_context.seccomp", "profile type %v is not known", p.GetProfileType())
	}
}

// defaultProfile is containerd's. libseccomp compiles a profile anew for every
// start and every exec, and takes time that grows with the square of its rules
// times its architectures: x32 alone is 10 of 22 ms. Where the kernel serves no
// x32 calls there is nothing to decide about them; who makes one is killed
// instead of being told that there are none.
func defaultProfile(s *specs.Spec, host Host) *specs.LinuxSeccomp {
	p := seccomp.DefaultProfile(s)
	if host.NoX32 {
		p.Architectures = slices.DeleteFunc(p.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	}
	return p
}

// apparmorProfile is what containerd makes of the request: where the kernel has
// AppArmor, a container that says nothing has the default profile, unless it
// is privileged; where it has none, a container that asks for protection is
// refused rather than run without.
func apparmorProfile(sc *runtimeapi.LinuxContainerSecurityContext, runtimeDefault string) (string, error) {
	p := apparmorOf(sc)
	switch {
	case runtimeDefault == "" && p != nil && p.GetProfileType() != runtimeapi.SecurityProfile_Unconfined:
		return "", fieldError("linux.security_context.apparmor", "this host has no AppArmor, and the container is not run without")
	case runtimeDefault == "":
		return "", nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		return strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"), nil
	case sc.GetPrivileged():
		return "", nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		return "unconfined", nil
	}
	return runtimeDefault, nil
}
