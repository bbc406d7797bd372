package podspec

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxSecurity is the part of a pod's security context that its sandbox has.
func sandboxSecurity(pod *v1.Pod, userNamespace *runtimeapi.UserNamespace) (*runtimeapi.LinuxSandboxSecurityContext, error) {
	ns, err := namespaces(pod, userNamespace)
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: ns,
		Privileged:       anyPrivileged(pod),
		// Whatever runs for the sandbox itself is confined, whatever the pod says.
		Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return out, nil
	}
	out.RunAsUser = int64Value(sc.RunAsUser)
	out.RunAsGroup = int64Value(sc.RunAsGroup)
	out.SelinuxOptions = selinuxOptions(sc.SELinuxOptions)
	out.SupplementalGroups, out.SupplementalGroupsPolicy, err = supplementalGroups(sc)
	return out, err
}

func anyPrivileged(pod *v1.Pod) bool {
	privileged := func(c v1.Container) bool {
		return c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	}
	return slices.ContainsFunc(pod.Spec.InitContainers, privileged) || slices.ContainsFunc(pod.Spec.Containers, privileged)
}

func supplementalGroups(sc *v1.PodSecurityContext) ([]int64, runtimeapi.SupplementalGroupsPolicy, error) {
	var groups []int64
	if sc.FSGroup != nil {
		groups = append(groups, *sc.FSGroup)
	}
	groups = append(groups, sc.SupplementalGroups...)
	if sc.SupplementalGroupsPolicy == nil {
		return groups, runtimeapi.SupplementalGroupsPolicy_Merge, nil
	}
	policy, ok := runtimeapi.SupplementalGroupsPolicy_value[string(*sc.SupplementalGroupsPolicy)]
	if !ok {
		return nil, 0, configErrorf("unsupported supplementalGroupsPolicy: %s", *sc.SupplementalGroupsPolicy)
	}
	return groups, runtimeapi.SupplementalGroupsPolicy(policy), nil
}

// effectiveSecurity is the container's security context with what it leaves
// out taken from the pod's, as far as the pod's has it. It shares memory with
// both and is read only.
func effectiveSecurity(pod *v1.Pod, c *v1.Container) v1.SecurityContext {
	var out v1.SecurityContext
	if c.SecurityContext != nil {
		out = *c.SecurityContext
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return out
	}
	if out.SELinuxOptions == nil {
		out.SELinuxOptions = sc.SELinuxOptions
	}
	if out.RunAsUser == nil {
		out.RunAsUser = sc.RunAsUser
	}
	if out.RunAsGroup == nil {
		out.RunAsGroup = sc.RunAsGroup
	}
	if out.RunAsNonRoot == nil {
		out.RunAsNonRoot = sc.RunAsNonRoot
	}
	if out.SeccompProfile == nil {
		out.SeccompProfile = sc.SeccompProfile
	}
	return out
}

// containerSecurity is a container's security context for the runtime.
func containerSecurity(c Container, node Node) (*runtimeapi.LinuxContainerSecurityContext, error) {
	sc := effectiveSecurity(c.Pod, c.Container)
	uid, username := imageUser(c.Image)
	if err := verifyNonRoot(c, sc, uid, username); err != nil {
		return nil, err
	}
	ns, err := namespaces(c.Pod, c.UserNamespace)
	if err != nil {
		return nil, &ConfigError{Message: err.Error()}
	}
	if c.Target != "" && ns.Pid == runtimeapi.NamespaceMode_CONTAINER {
		ns.Pid, ns.TargetId = runtimeapi.NamespaceMode_TARGET, c.Target
	}
	out := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: ns,
		Capabilities:     capabilities(sc.Capabilities),
		SelinuxOptions:   selinuxOptions(sc.SELinuxOptions),
		RunAsUser:        int64Value(sc.RunAsUser),
		RunAsGroup:       int64Value(sc.RunAsGroup),
		Privileged:       sc.Privileged != nil && *sc.Privileged,
		ReadonlyRootfs:   sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem,
		NoNewPrivs:       sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation,
	}
	if out.RunAsUser == nil {
		out.RunAsUser = int64Value(uid)
		out.RunAsUsername = username
	}
	if sc.ProcMount == nil || *sc.ProcMount != v1.UnmaskedProcMount {
		out.MaskedPaths = append(maskedPaths(), node.MaskedPaths...)
		out.ReadonlyPaths = readonlyPaths()
	}
	if psc := c.Pod.Spec.SecurityContext; psc != nil {
		if out.SupplementalGroups, out.SupplementalGroupsPolicy, err = supplementalGroups(psc); err != nil {
			return nil, err
		}
	}
	if out.Seccomp, err = seccomp(sc.SeccompProfile, node); err != nil {
		return nil, err
	}
	//lint:ignore SA1019 runtimes that know no typed profiles read nothing else
	out.Apparmor, out.ApparmorProfile, err = apparmor(c.Pod, c.Container)
	return out, err
}

// imageUser is the user an image runs as: a UID or a name, never both. An
// image that says nothing runs as root.
func imageUser(image *runtimeapi.Image) (uid *int64, username string) {
	if u := image.GetUid(); u != nil {
		return &u.Value, ""
	}
	if name := image.GetUsername(); name != "" {
		return nil, name
	}
	return new(int64), ""
}

// verifyNonRoot refuses a container with runAsNonRoot that would run as root,
// or as an image's user name, which cannot be verified.
func verifyNonRoot(c Container, sc v1.SecurityContext, uid *int64, username string) error {
	if sc.RunAsNonRoot == nil || !*sc.RunAsNonRoot {
		return nil
	}
	pod, name := podDesc(c.Pod), c.Container.Name
	if sc.RunAsUser != nil {
		if *sc.RunAsUser == 0 {
			return configErrorf("container's runAsUser breaks non-root policy (pod: %q, container: %s)", pod, name)
		}
		return nil
	}
	if uid == nil {
		return configErrorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (pod: %q, container: %s)", username, pod, name)
	}
	if *uid == 0 {
		return configErrorf("container has runAsNonRoot and image will run as root (pod: %q, container: %s)", pod, name)
	}
	if errs := validation.IsValidUserID(*uid); len(errs) > 0 {
		return configErrorf("container has runAsNonRoot and image has an invalid user id (%d). (Must be 1-(%d)): %s (pod: %q, container: %s)",
			*uid, 1<<31-1, strings.Join(errs, "; "), pod, name)
	}
	return nil
}

func seccomp(p *v1.SeccompProfile, node Node) (*runtimeapi.SecurityProfile, error) {
	switch {
	case p == nil && node.SeccompDefault, p != nil && p.Type == v1.SeccompProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case p != nil && p.Type == v1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || *p.LocalhostProfile == "" {
			return nil, configErrorf("localhostProfile must be set if seccompProfile type is Localhost.")
		}
		return &runtimeapi.SecurityProfile{
			ProfileType:  runtimeapi.SecurityProfile_Localhost,
			LocalhostRef: filepath.Join(node.SeccompDir, *p.LocalhostProfile),
		}, nil
	default:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	}
}

// apparmor returns the profile of a container, and its name in the form that
// runtimes knew before profiles had a type.
func apparmor(pod *v1.Pod, c *v1.Container) (*runtimeapi.SecurityProfile, string, error) {
	p := apparmorProfile(pod, c)
	if p == nil {
		return nil, "", nil
	}
	switch p.Type {
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			v1.DeprecatedAppArmorBetaProfileRuntimeDefault, nil
	case v1.AppArmorProfileTypeUnconfined:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined},
			v1.DeprecatedAppArmorBetaProfileNameUnconfined, nil
	case v1.AppArmorProfileTypeLocalhost:
		if p.LocalhostProfile == nil {
			return nil, "", configErrorf("missing localhost apparmor profile name")
		}
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: *p.LocalhostProfile},
			v1.DeprecatedAppArmorBetaProfileNamePrefix + *p.LocalhostProfile, nil
	default:
		return nil, "", configErrorf("unknown apparmor profile type: %q", p.Type)
	}
}

// apparmorProfile looks at the container, then at the annotation of manifests
// written before there was a field, then at the pod.
func apparmorProfile(pod *v1.Pod, c *v1.Container) *v1.AppArmorProfile {
	if c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil {
		return c.SecurityContext.AppArmorProfile
	}
	switch name := pod.Annotations[v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]; {
	case name == v1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}
	case name == v1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeUnconfined}
	case strings.HasPrefix(name, v1.DeprecatedAppArmorBetaProfileNamePrefix):
		local := strings.TrimPrefix(name, v1.DeprecatedAppArmorBetaProfileNamePrefix)
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: &local}
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.AppArmorProfile
	}
	return nil
}

func capabilities(c *v1.Capabilities) *runtimeapi.Capability {
	if c == nil {
		return nil
	}
	out := &runtimeapi.Capability{}
	for _, name := range c.Add {
		out.AddCapabilities = append(out.AddCapabilities, string(name))
	}
	for _, name := range c.Drop {
		out.DropCapabilities = append(out.DropCapabilities, string(name))
	}
	return out
}

func selinuxOptions(o *v1.SELinuxOptions) *runtimeapi.SELinuxOption {
	if o == nil {
		return nil
	}
	return &runtimeapi.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

func int64Value(v *int64) *runtimeapi.Int64Value {
	if v == nil {
		return nil
	}
	return &runtimeapi.Int64Value{Value: *v}
}

// maskedPaths are the paths hidden from a container with the default procMount.
// The list is the kubelet's, which is moby's.
func maskedPaths() []string {
	return []string{
		"/proc/asound",
		"/proc/acpi",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/timer_list",
		"/proc/timer_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
}

// readonlyPaths are the paths a container with the default procMount cannot write.
func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// stopSignal is the signal a container's spec asks to be stopped with. Without
// one the image decides, which the CRI's zero value means.
func stopSignal(c *v1.Container) (runtimeapi.Signal, error) {
	if c.Lifecycle == nil || c.Lifecycle.StopSignal == nil {
		return runtimeapi.Signal_RUNTIME_DEFAULT, nil
	}
	name := string(*c.Lifecycle.StopSignal)
	// The CRI spells the real-time signals SIGRTMINPLUS1 and SIGRTMAXMINUS1.
	value, ok := runtimeapi.Signal_value[strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(name)]
	if !ok {
		return 0, fmt.Errorf("unknown stop signal %q", name)
	}
	return runtimeapi.Signal(value), nil
}
