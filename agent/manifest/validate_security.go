package manifest

import (
	"fmt"
	"regexp"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validatePodSecurity(spec *v1.PodSpec, specPath *field.Path) field.ErrorList {
	sc, path := spec.SecurityContext, specPath.Child("securityContext")
	errs := validateIDs(sc.RunAsUser, sc.RunAsGroup, path)
	if sc.FSGroup != nil {
		errs = append(errs, invalidWith(validation.IsValidGroupID(*sc.FSGroup), path.Child("fsGroup"), *sc.FSGroup)...)
	}
	for i, gid := range sc.SupplementalGroups {
		errs = append(errs, invalidWith(validation.IsValidGroupID(gid), path.Child("supplementalGroups").Index(i), gid)...)
	}
	if p := sc.SupplementalGroupsPolicy; p != nil {
		errs = append(errs, oneOf(*p, path.Child("supplementalGroupsPolicy"), v1.SupplementalGroupsPolicyMerge, v1.SupplementalGroupsPolicyStrict)...)
	}
	if p := sc.FSGroupChangePolicy; p != nil {
		errs = append(errs, oneOf(*p, path.Child("fsGroupChangePolicy"), v1.FSGroupChangeAlways, v1.FSGroupChangeOnRootMismatch)...)
	}
	if p := sc.SELinuxChangePolicy; p != nil {
		errs = append(errs, oneOf(*p, path.Child("seLinuxChangePolicy"), v1.SELinuxChangePolicyMountOption, v1.SELinuxChangePolicyRecursive)...)
	}
	if spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace && spec.HostPID {
		errs = append(errs, field.Invalid(specPath.Child("shareProcessNamespace"), true, "shareProcessNamespace and hostPID cannot both be enabled"))
	}
	errs = append(errs, validateSysctls(spec, path.Child("sysctls"))...)
	errs = append(errs, validateSeccomp(sc.SeccompProfile, path.Child("seccompProfile"))...)
	errs = append(errs, validateAppArmor(sc.AppArmorProfile, path.Child("appArmorProfile"))...)
	if sc.WindowsOptions != nil {
		errs = append(errs, field.Forbidden(path.Child("windowsOptions"), "this node runs Linux"))
	}
	return errs
}

// validateHostUsers: a pod with a user namespace shares none with the node.
func validateHostUsers(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	if spec.HostUsers == nil || *spec.HostUsers {
		return nil
	}
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		set  bool
	}{{"hostNetwork", spec.HostNetwork}, {"hostPID", spec.HostPID}, {"hostIPC", spec.HostIPC}} {
		if f.set {
			errs = append(errs, field.Forbidden(path.Child(f.name), "when `hostUsers` is false"))
		}
	}
	return errs
}

func validateIDs(user, group *int64, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if user != nil {
		errs = append(errs, invalidWith(validation.IsValidUserID(*user), path.Child("runAsUser"), *user)...)
	}
	if group != nil {
		errs = append(errs, invalidWith(validation.IsValidGroupID(*group), path.Child("runAsGroup"), *group)...)
	}
	return errs
}

func validateContainerSecurity(sc *v1.SecurityContext, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	if sc == nil {
		sc = &v1.SecurityContext{}
	}
	errs := validateIDs(sc.RunAsUser, sc.RunAsGroup, path)
	errs = append(errs, validateNonRoot(sc, spec.SecurityContext, path)...)
	errs = append(errs, validateSeccomp(sc.SeccompProfile, path.Child("seccompProfile"))...)
	errs = append(errs, validateAppArmor(sc.AppArmorProfile, path.Child("appArmorProfile"))...)
	errs = append(errs, validateCapabilities(sc.Capabilities, path.Child("capabilities"))...)
	if p := sc.ProcMount; p != nil {
		errs = append(errs, oneOf(*p, path.Child("procMount"), v1.DefaultProcMount, v1.UnmaskedProcMount)...)
		if *p == v1.UnmaskedProcMount && (spec.HostUsers == nil || *spec.HostUsers) {
			errs = append(errs, field.Invalid(path.Child("procMount"), *p, "`hostUsers` must be false to use `Unmasked`"))
		}
	}
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		at := path.Child("allowPrivilegeEscalation")
		if sc.Privileged != nil && *sc.Privileged {
			errs = append(errs, field.Invalid(at, false, "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if sc.Capabilities != nil && hasSysAdmin(sc.Capabilities.Add) {
			errs = append(errs, field.Invalid(at, false, "cannot set `allowPrivilegeEscalation` to false and `capabilities.add` CAP_SYS_ADMIN"))
		}
	}
	if sc.WindowsOptions != nil {
		errs = append(errs, field.Forbidden(path.Child("windowsOptions"), "this node runs Linux"))
	}
	return errs
}

// validateNonRoot finds containers that can never start: a numeric user 0
// that runAsNonRoot forbids. Users of the image are checked when it is there.
func validateNonRoot(sc *v1.SecurityContext, podSC *v1.PodSecurityContext, path *field.Path) field.ErrorList {
	nonRoot, user := sc.RunAsNonRoot, sc.RunAsUser
	if nonRoot == nil {
		nonRoot = podSC.RunAsNonRoot
	}
	if user == nil {
		user = podSC.RunAsUser
	}
	if nonRoot == nil || !*nonRoot || user == nil || *user != 0 {
		return nil
	}
	return field.ErrorList{field.Invalid(path.Child("runAsUser"), 0, "`runAsNonRoot` is true, so the user cannot be root")}
}

func hasSysAdmin(caps []v1.Capability) bool {
	for _, c := range caps {
		if c == "CAP_SYS_ADMIN" || c == "SYS_ADMIN" {
			return true
		}
	}
	return false
}

var capabilityName = regexp.MustCompile(`^(CAP_)?[A-Z][A-Z0-9_]*$`)

// validateCapabilities checks the form only: which capabilities there are is the kernel's to say.
func validateCapabilities(c *v1.Capabilities, path *field.Path) field.ErrorList {
	if c == nil {
		return nil
	}
	var errs field.ErrorList
	check := func(list []v1.Capability, path *field.Path) {
		for i, name := range list {
			if !capabilityName.MatchString(strings.ToUpper(string(name))) {
				errs = append(errs, field.Invalid(path.Index(i), name, "must be a capability such as NET_ADMIN, or ALL"))
			}
		}
	}
	check(c.Add, path.Child("add"))
	check(c.Drop, path.Child("drop"))
	return errs
}

func validateSeccomp(p *v1.SeccompProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := oneOf(p.Type, path.Child("type"), v1.SeccompProfileTypeLocalhost, v1.SeccompProfileTypeRuntimeDefault, v1.SeccompProfileTypeUnconfined)
	at := path.Child("localhostProfile")
	switch {
	case p.Type == v1.SeccompProfileTypeLocalhost && (p.LocalhostProfile == nil || *p.LocalhostProfile == ""):
		errs = append(errs, field.Required(at, "must be set when seccomp type is Localhost"))
	case p.Type == v1.SeccompProfileTypeLocalhost:
		errs = append(errs, relativePath(*p.LocalhostProfile, at)...)
	case p.LocalhostProfile != nil:
		errs = append(errs, field.Invalid(at, *p.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return errs
}

func validateAppArmor(p *v1.AppArmorProfile, path *field.Path) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := oneOf(p.Type, path.Child("type"), v1.AppArmorProfileTypeLocalhost, v1.AppArmorProfileTypeRuntimeDefault, v1.AppArmorProfileTypeUnconfined)
	at := path.Child("localhostProfile")
	switch {
	case p.Type == v1.AppArmorProfileTypeLocalhost && (p.LocalhostProfile == nil || strings.TrimSpace(*p.LocalhostProfile) == ""):
		errs = append(errs, field.Required(at, "must be set when AppArmor type is Localhost"))
	case p.Type != v1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		errs = append(errs, field.Invalid(at, *p.LocalhostProfile, "can only be set when AppArmor type is Localhost"))
	}
	return errs
}

const maxSysctlName = 253

// sysctlName is dotted, or with slashes where a part has dots of its own.
var sysctlName = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?([./][a-z0-9]([-_a-z0-9]*[a-z0-9])?)*$`)

func validateSysctls(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[string]()
	for i, s := range spec.SecurityContext.Sysctls {
		at := path.Index(i).Child("name")
		name := strings.ReplaceAll(s.Name, "/", ".")
		switch {
		case s.Name == "":
			errs = append(errs, field.Required(at, ""))
		case len(s.Name) > maxSysctlName || !sysctlName.MatchString(s.Name):
			errs = append(errs, field.Invalid(at, s.Name, fmt.Sprintf("must have at most %d characters and match regex %s", maxSysctlName, sysctlName)))
		case seen.Has(name):
			errs = append(errs, field.Duplicate(at, s.Name))
		case spec.HostNetwork && strings.HasPrefix(name, "net."):
			errs = append(errs, field.Invalid(at, s.Name, "may not be specified when 'hostNetwork' is true"))
		case spec.HostIPC && isIPCSysctl(name):
			errs = append(errs, field.Invalid(at, s.Name, "may not be specified when 'hostIPC' is true"))
		}
		seen.Insert(name)
	}
	return errs
}

// isIPCSysctl: these belong to the IPC namespace (ipc_namespaces(7)).
func isIPCSysctl(name string) bool {
	return name == "kernel.sem" || strings.HasPrefix(name, "kernel.shm") ||
		strings.HasPrefix(name, "kernel.msg") || strings.HasPrefix(name, "fs.mqueue.")
}
