package spec

import (
	"path"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/selinux"
)

// ValidateSandbox refuses a pod configuration that cannot be carried out. The
// error names the field.
func ValidateSandbox(c *runtimeapi.PodSandboxConfig) error {
	m := c.GetMetadata()
	switch {
	case m == nil:
		return fieldError("config.metadata", "it is missing")
	case m.GetName() == "":
		return fieldError("config.metadata.name", "it is empty")
	case m.GetNamespace() == "":
		return fieldError("config.metadata.namespace", "it is empty")
	case m.GetUid() == "":
		return fieldError("config.metadata.uid", "it is empty")
	}
	if h := c.GetHostname(); len(h) > 64 {
		return fieldError("config.hostname", "%q is longer than the 64 bytes that the kernel takes", h)
	}
	if d := c.GetLogDirectory(); d != "" && !path.IsAbs(d) {
		return fieldError("config.log_directory", "%q is not absolute", d)
	}
	if strings.Contains(c.GetLinux().GetCgroupParent(), "..") {
		return fieldError("config.linux.cgroup_parent", "%q must not contain ..", c.GetLinux().GetCgroupParent())
	}
	for _, p := range c.GetPortMappings() {
		if p.GetContainerPort() < 0 || p.GetContainerPort() > 65535 || p.GetHostPort() < 0 || p.GetHostPort() > 65535 {
			return fieldError("config.port_mappings", "%d to %d: a port is at most 65535", p.GetHostPort(), p.GetContainerPort())
		}
	}
	sc := c.GetLinux().GetSecurityContext()
	if err := selinux.Validate(sc.GetSelinuxOptions()); err != nil {
		return err
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return fieldError("config.linux.security_context.run_as_group", "it needs run_as_user beside it")
	}
	o := sc.GetNamespaceOptions()
	if o.GetNetwork() != runtimeapi.NamespaceMode_POD && o.GetNetwork() != runtimeapi.NamespaceMode_NODE {
		return fieldError("config.linux.security_context.namespace_options.network", "a pod's is POD or NODE, not %v", o.GetNetwork())
	}
	if o.GetIpc() != runtimeapi.NamespaceMode_POD && o.GetIpc() != runtimeapi.NamespaceMode_NODE {
		return fieldError("config.linux.security_context.namespace_options.ipc", "a pod's is POD or NODE, not %v", o.GetIpc())
	}
	return validateUserNamespace(o)
}

// ValidateContainer refuses a container configuration that cannot be carried
// out in the given pod. The error names the field.
func ValidateContainer(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	switch {
	case c.GetMetadata() == nil:
		return fieldError("config.metadata", "it is missing")
	case c.GetMetadata().GetName() == "":
		return fieldError("config.metadata.name", "it is empty")
	case c.GetImage().GetImage() == "":
		return fieldError("config.image.image", "it is empty")
	}
	sc := securityContext(c)
	if err := selinux.Validate(sc.GetSelinuxOptions()); err != nil {
		return err
	}
	if err := validateProfiles(sc); err != nil {
		return err
	}
	if err := validateClasses(c, pod); err != nil {
		return err
	}
	if sc.GetPrivileged() && !pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return fieldError("config.linux.security_context.privileged", "the pod was not created privileged")
	}
	if sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "" {
		return fieldError("config.linux.security_context.run_as_username", "run_as_user is set as well")
	}
	o := sc.GetNamespaceOptions()
	if o.GetPid() == runtimeapi.NamespaceMode_TARGET && o.GetTargetId() == "" {
		return fieldError("config.linux.security_context.namespace_options.target_id", "it is empty")
	}
	if !sameUserNamespace(ownUserNamespace(o), UserNamespace(pod)) {
		return fieldError(usernsField, "it is not that of the pod")
	}
	if err := validateLogPath(c, pod); err != nil {
		return err
	}
	for _, e := range c.GetEnvs() {
		if e.GetKey() == "" || strings.ContainsAny(e.GetKey(), "=\x00") || strings.Contains(string(e.GetValue()), "\x00") {
			return fieldError("config.envs", "%q is not a name for an environment variable, or its value has a zero byte", e.GetKey())
		}
	}
	for _, m := range c.GetMounts() {
		if err := validateMount(m); err != nil {
			return err
		}
		if u := UserNamespace(pod); m.GetImage().GetImage() != "" && len(m.GetUidMappings()) > 0 &&
			!(sameMappings(m.GetUidMappings(), u.GetUids()) && sameMappings(m.GetGidMappings(), u.GetGids())) {
			return fieldError("config.mounts["+m.GetContainerPath()+"].uidMappings", "those of an image are the pod's")
		}
	}
	for _, d := range c.GetDevices() {
		if !path.IsAbs(d.GetHostPath()) || !path.IsAbs(d.GetContainerPath()) {
			return fieldError("config.devices", "%q to %q: both must be absolute", d.GetHostPath(), d.GetContainerPath())
		}
		if strings.Trim(d.GetPermissions(), "rwm") != "" {
			return fieldError("config.devices", "permissions %q of %s: only r, w and m are known", d.GetPermissions(), d.GetHostPath())
		}
	}
	return nil
}

func validateProfiles(sc *runtimeapi.LinuxContainerSecurityContext) error {
	if err := validateProfile("config.linux.security_context.apparmor", apparmorOf(sc)); err != nil {
		return err
	}
	if err := validateProfile("config.linux.security_context.seccomp", seccompOf(sc)); err != nil {
		return err
	}
	if file := SeccompFile(sc); file != "" && !path.IsAbs(file) {
		return fieldError("config.linux.security_context.seccomp.localhost_ref", "%q is not an absolute path", file)
	}
	return nil
}

// validateClasses refuses the classes of resources that annotations can ask for
// in other runtimes: without a configuration there are none here.
func validateClasses(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	for _, kind := range []struct{ name, own, perContainer, perPod string }{
		{"block I/O", "io.kubernetes.cri.blockio-class", "blockio.resources.beta.kubernetes.io/container.", "blockio.resources.beta.kubernetes.io/pod"},
		{"RDT", "io.kubernetes.cri.rdt-class", "rdt.resources.beta.kubernetes.io/container.", "rdt.resources.beta.kubernetes.io/pod"},
	} {
		for _, a := range []struct {
			field, key string
			in         map[string]string
		}{
			{"config.annotations", kind.own, c.GetAnnotations()},
			{"sandbox_config.annotations", kind.perContainer + c.GetMetadata().GetName(), pod.GetAnnotations()},
			{"sandbox_config.annotations", kind.perPod, pod.GetAnnotations()},
		} {
			if class := a.in[a.key]; class != "" {
				return fieldError(a.field+"["+a.key+"]", "%s class %q: there are no %[1]s classes on this node", kind.name, class)
			}
		}
	}
	return nil
}

func validateMount(m *runtimeapi.Mount) error {
	field := "config.mounts[" + m.GetContainerPath() + "]"
	switch {
	case !path.IsAbs(m.GetContainerPath()) || path.Clean(m.GetContainerPath()) == "/":
		return fieldError("config.mounts", "container_path %q is not an absolute path below the root", m.GetContainerPath())
	case m.GetImage().GetImage() == "" && m.GetImageSubPath() != "":
		return fieldError(field+".image_sub_path", "there is no image to have it")
	case m.GetImage().GetImage() != "" && m.GetHostPath() != "":
		return fieldError(field+".host_path", "an image is mounted here: it must be empty")
	case m.GetImage().GetImage() != "" && !m.GetReadonly():
		return fieldError(field+".readonly", "an image can be mounted read-only only")
	case m.GetImage().GetImage() == "" && !path.IsAbs(m.GetHostPath()):
		return fieldError(field+".host_path", "%q is not absolute", m.GetHostPath())
	case len(m.GetUidMappings())+len(m.GetGidMappings()) == 0:
		return nil
	}
	if err := validateMappings(field+".uidMappings", m.GetUidMappings()); err != nil {
		return err
	}
	return validateMappings(field+".gidMappings", m.GetGidMappings())
}

// validateLogPath keeps a container's log inside its pod's directory.
func validateLogPath(c *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) error {
	p := c.GetLogPath()
	if p == "" || pod.GetLogDirectory() == "" {
		return nil
	}
	if path.IsAbs(p) || path.Clean(p) == ".." || strings.HasPrefix(path.Clean(p), "../") {
		return fieldError("config.log_path", "%q is not a path inside the log directory", p)
	}
	return nil
}
