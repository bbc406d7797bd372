package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateContainers(spec *v1.PodSpec, volumes map[string]*v1.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(spec.Containers) == 0 {
		errs = append(errs, field.Required(path.Child("containers"), ""))
	}
	names, hostPorts := sets.New[string](), sets.New[string]()
	for i := range spec.Containers {
		c, at := &spec.Containers[i], path.Child("containers").Index(i)
		errs = append(errs, validateContainer(c, spec, volumes, at)...)
		errs = append(errs, uniqueName(names, c.Name, at.Child("name"))...)
		errs = append(errs, uniqueHostPorts(hostPorts, c, at)...)
		errs = append(errs, validateHooks(c, spec, at)...)
		errs = append(errs, validateProbes(c, spec, at)...)
		if c.RestartPolicy != nil {
			errs = append(errs, field.Forbidden(at.Child("restartPolicy"), "may not be set for non-init containers"))
		}
	}
	for i := range spec.InitContainers {
		c, at := &spec.InitContainers[i], path.Child("initContainers").Index(i)
		errs = append(errs, validateContainer(c, spec, volumes, at)...)
		errs = append(errs, uniqueName(names, c.Name, at.Child("name"))...)
		errs = append(errs, uniqueHostPorts(sets.New[string](), c, at)...) // they run one by one
		errs = append(errs, validateInit(c, spec, at)...)
	}
	return errs
}

// uniqueName: within a pod, init containers included.
func uniqueName(seen sets.Set[string], name string, path *field.Path) field.ErrorList {
	if name == "" {
		return nil // required, which is said elsewhere
	}
	if seen.Has(name) {
		return field.ErrorList{field.Duplicate(path, name)}
	}
	seen.Insert(name)
	return nil
}

func uniqueHostPorts(seen sets.Set[string], c *v1.Container, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, port := range c.Ports {
		if port.HostPort == 0 {
			continue
		}
		id := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
		if seen.Has(id) {
			errs = append(errs, field.Duplicate(path.Child("ports").Index(i).Child("hostPort"), id))
		}
		seen.Insert(id)
	}
	return errs
}

// validateInit checks what sets init containers apart: a sidecar (restartPolicy
// Always) may have hooks and probes, any other may not.
func validateInit(c *v1.Container, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	if c.RestartPolicy != nil {
		if errs := oneOf(*c.RestartPolicy, path.Child("restartPolicy"), v1.ContainerRestartPolicyAlways); len(errs) > 0 {
			return errs
		}
		return append(validateHooks(c, spec, path), validateProbes(c, spec, path)...)
	}
	var errs field.ErrorList
	forbid := func(set bool, name string) {
		if set {
			errs = append(errs, field.Forbidden(path.Child(name), "may not be set for init containers without restartPolicy=Always"))
		}
	}
	forbid(c.Lifecycle != nil, "lifecycle")
	forbid(c.LivenessProbe != nil, "livenessProbe")
	forbid(c.ReadinessProbe != nil, "readinessProbe")
	forbid(c.StartupProbe != nil, "startupProbe")
	return errs
}

// validateContainer checks what init and regular containers have in common.
func validateContainer(c *v1.Container, spec *v1.PodSpec, volumes map[string]*v1.Volume, path *field.Path) field.ErrorList {
	errs := validLabel(c.Name, path.Child("name"))
	errs = append(errs, validateImage(c.Image, path.Child("image"))...)
	errs = append(errs, oneOf(c.ImagePullPolicy, path.Child("imagePullPolicy"), v1.PullAlways, v1.PullIfNotPresent, v1.PullNever)...)
	errs = append(errs, oneOf(c.TerminationMessagePolicy, path.Child("terminationMessagePolicy"),
		v1.TerminationMessageReadFile, v1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, validatePorts(c.Ports, path.Child("ports"))...)
	errs = append(errs, validateEnv(c.Env, volumes, path.Child("env"))...)
	errs = append(errs, validateEnvFrom(c.EnvFrom, path.Child("envFrom"))...)
	errs = append(errs, validateMounts(c, volumes, path.Child("volumeMounts"))...)
	errs = append(errs, validateResources(&c.Resources, path.Child("resources"))...)
	errs = append(errs, validateResizePolicy(c.ResizePolicy, spec, path.Child("resizePolicy"))...)
	errs = append(errs, validateContainerSecurity(c.SecurityContext, spec, path.Child("securityContext"))...)
	if len(c.VolumeDevices) > 0 {
		errs = append(errs, field.Forbidden(path.Child("volumeDevices"), "block volumes are "+unsupported))
	}
	if len(c.RestartPolicyRules) > 0 {
		errs = append(errs, field.Forbidden(path.Child("restartPolicyRules"), unsupported))
	}
	return errs
}

func validateImage(image string, path *field.Path) field.ErrorList {
	if image == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	if strings.TrimSpace(image) != image {
		return field.ErrorList{field.Invalid(path, image, "must not have leading or trailing whitespace")}
	}
	if _, err := reference.ParseNormalizedNamed(image); err != nil {
		return field.ErrorList{field.Invalid(path, image, "not an image reference: "+err.Error())}
	}
	return nil
}

func validatePorts(ports []v1.ContainerPort, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	names := sets.New[string]()
	for i, port := range ports {
		at := path.Index(i)
		if port.Name != "" {
			msgs := validation.IsValidPortName(port.Name)
			errs = append(errs, invalidWith(msgs, at.Child("name"), port.Name)...)
			if len(msgs) == 0 && names.Has(port.Name) {
				errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
			}
			names.Insert(port.Name)
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, invalidWith(validation.IsValidPortNum(int(port.ContainerPort)), at.Child("containerPort"), port.ContainerPort)...)
		}
		if port.HostPort != 0 {
			errs = append(errs, invalidWith(validation.IsValidPortNum(int(port.HostPort)), at.Child("hostPort"), port.HostPort)...)
		}
		if port.HostIP != "" {
			errs = append(errs, validation.IsValidIP(at.Child("hostIP"), port.HostIP)...)
		}
		errs = append(errs, oneOf(port.Protocol, at.Child("protocol"), v1.ProtocolSCTP, v1.ProtocolTCP, v1.ProtocolUDP)...)
	}
	return errs
}

func validateResizePolicy(policies []v1.ContainerResizePolicy, spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := sets.New[v1.ResourceName]()
	for i, p := range policies {
		at := path.Index(i)
		if seen.Has(p.ResourceName) {
			errs = append(errs, field.Duplicate(at, p.ResourceName))
		}
		seen.Insert(p.ResourceName)
		errs = append(errs, oneOf(p.ResourceName, at.Child("resourceName"), v1.ResourceCPU, v1.ResourceMemory)...)
		errs = append(errs, oneOf(p.RestartPolicy, at.Child("restartPolicy"), v1.NotRequired, v1.RestartContainer)...)
		if spec.RestartPolicy == v1.RestartPolicyNever && p.RestartPolicy == v1.RestartContainer {
			errs = append(errs, field.Invalid(at.Child("restartPolicy"), p.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'"))
		}
	}
	return errs
}

// Field paths that the downward API offers to environments.
var envFieldPaths = []string{
	"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
	"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
}

func validateEnv(env []v1.EnvVar, volumes map[string]*v1.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, e := range env {
		at := path.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, invalidWith(validation.IsRelaxedEnvVarName(e.Name), at.Child("name"), e.Name)...)
		}
		if e.ValueFrom != nil {
			errs = append(errs, validateEnvSource(e, volumes, at.Child("valueFrom"))...)
		}
	}
	return errs
}

func validateEnvSource(e v1.EnvVar, volumes map[string]*v1.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	from, sources := e.ValueFrom, 0
	if ref := from.FieldRef; ref != nil {
		sources++
		errs = append(errs, validateFieldRef(ref, envFieldPaths, path.Child("fieldRef"))...)
	}
	if ref := from.ResourceFieldRef; ref != nil {
		sources++
		errs = append(errs, validateResourceFieldRef(ref, false, path.Child("resourceFieldRef"))...)
	}
	if ref := from.ConfigMapKeyRef; ref != nil {
		sources++
		errs = append(errs, validateKeyRef(ref.Name, ref.Key, path.Child("configMapKeyRef"))...)
	}
	if ref := from.SecretKeyRef; ref != nil {
		sources++
		errs = append(errs, validateKeyRef(ref.Name, ref.Key, path.Child("secretKeyRef"))...)
	}
	if ref := from.FileKeyRef; ref != nil {
		sources++
		errs = append(errs, validateFileKeyRef(ref, volumes, path.Child("fileKeyRef"))...)
	}
	switch {
	case sources == 0:
		errs = append(errs, field.Invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(path, "", "may not be specified when `value` is not empty"))
	case sources > 1:
		errs = append(errs, field.Invalid(path, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func validateKeyRef(name, key string, path *field.Path) field.ErrorList {
	errs := validSubdomain(name, path.Child("name"))
	if key == "" {
		return append(errs, field.Required(path.Child("key"), ""))
	}
	return append(errs, invalidWith(validation.IsConfigMapKey(key), path.Child("key"), key)...)
}

// validateFileKeyRef is validateFileKeySelector of the API server, which does not
// look for the volume: a container of such a pod never starts.
func validateFileKeyRef(ref *v1.FileKeySelector, volumes map[string]*v1.Volume, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if ref.Key == "" {
		errs = append(errs, field.Required(path.Child("key"), ""))
	} else {
		errs = append(errs, invalidWith(validation.IsRelaxedEnvVarName(ref.Key), path.Child("key"), ref.Key)...)
	}
	errs = append(errs, validLabel(ref.VolumeName, path.Child("volumeName"))...)
	if _, found := volumes[ref.VolumeName]; !found && ref.VolumeName != "" {
		errs = append(errs, field.NotFound(path.Child("volumeName"), ref.VolumeName))
	}
	if ref.Path == "" {
		return append(errs, field.Required(path.Child("path"), ""))
	}
	return append(errs, noBacksteps(ref.Path, path.Child("path"))...)
}

func validateEnvFrom(sources []v1.EnvFromSource, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	for i, s := range sources {
		at := path.Index(i)
		if s.Prefix != "" {
			errs = append(errs, invalidWith(validation.IsRelaxedEnvVarName(s.Prefix), at.Child("prefix"), s.Prefix)...)
		}
		switch {
		case s.ConfigMapRef != nil && s.SecretRef != nil:
			errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
		case s.ConfigMapRef != nil:
			errs = append(errs, validSubdomain(s.ConfigMapRef.Name, at.Child("configMapRef", "name"))...)
		case s.SecretRef != nil:
			errs = append(errs, validSubdomain(s.SecretRef.Name, at.Child("secretRef", "name"))...)
		default:
			errs = append(errs, field.Invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"))
		}
	}
	return errs
}

// validateFieldRef checks a downward API reference such as metadata.labels['app'].
func validateFieldRef(ref *v1.ObjectFieldSelector, supported []string, path *field.Path) field.ErrorList {
	if ref.APIVersion != "v1" {
		return field.ErrorList{field.NotSupported(path.Child("apiVersion"), ref.APIVersion, []string{"v1"})}
	}
	if ref.FieldPath == "" {
		return field.ErrorList{field.Required(path.Child("fieldPath"), "")}
	}
	at := path.Child("fieldPath")
	base, key, hasKey := strings.Cut(ref.FieldPath, "['")
	if !hasKey {
		return oneOf(ref.FieldPath, at, supported...)
	}
	key, closed := strings.CutSuffix(key, "']")
	switch {
	case !closed:
		return field.ErrorList{field.Invalid(at, ref.FieldPath, "must end in ']")}
	case base == "metadata.annotations":
		return invalidWith(validation.IsQualifiedName(strings.ToLower(key)), at, ref.FieldPath)
	case base == "metadata.labels":
		return invalidWith(validation.IsQualifiedName(key), at, ref.FieldPath)
	}
	return field.ErrorList{field.Invalid(at, ref.FieldPath, "does not support subscript")}
}

var resourceFields = []string{
	"limits.cpu", "limits.ephemeral-storage", "limits.memory",
	"requests.cpu", "requests.ephemeral-storage", "requests.memory",
}

var (
	cpuDivisors  = []string{"1", "1m"}
	byteDivisors = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
)

func validateResourceFieldRef(ref *v1.ResourceFieldSelector, inVolume bool, path *field.Path) field.ErrorList {
	if inVolume && ref.ContainerName == "" {
		return field.ErrorList{field.Required(path.Child("containerName"), "")}
	}
	if ref.Resource == "" {
		return field.ErrorList{field.Required(path.Child("resource"), "")}
	}
	hugePages := strings.HasPrefix(ref.Resource, "limits.hugepages-") || strings.HasPrefix(ref.Resource, "requests.hugepages-")
	if !hugePages && !slices.Contains(resourceFields, ref.Resource) {
		return field.ErrorList{field.NotSupported(path.Child("resource"), ref.Resource, resourceFields)}
	}
	if ref.Divisor.IsZero() {
		return nil
	}
	divisors := byteDivisors
	if strings.HasSuffix(ref.Resource, ".cpu") {
		divisors = cpuDivisors
	}
	return oneOf(ref.Divisor.String(), path.Child("divisor"), divisors...)
}
