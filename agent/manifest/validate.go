package manifest

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Validation follows k8s.io/kubernetes/pkg/apis/core/validation of 1.36, so
// that a manifest accepted here is accepted by a cluster too. It is stricter
// where a field would silently do nothing, because this version of Berth or a
// node without an API server cannot honour it, and where a mistake would only
// show when a container starts (image references, probe ports by name,
// runAsNonRoot with user 0).
const unsupported = "not supported by this version"

// podPaths say where in its document a pod's metadata and spec are.
type podPaths struct {
	meta, spec *field.Path
	generated  bool // from a template: the name is the workload's
}

// checkPod identifies, defaults and validates a pod.
func (p *parser) checkPod(doc document, pod *v1.Pod, paths podPaths) {
	before := len(p.rejections)
	if name := pod.Spec.NodeName; name != "" && p.opts.NodeName != "" && name != p.opts.NodeName {
		p.rejectAll(doc, field.ErrorList{field.Invalid(paths.spec.Child("nodeName"), name, "this node is "+p.opts.NodeName)})
	}
	if !paths.generated {
		p.rejectAll(doc, validateMeta(&pod.ObjectMeta, paths.meta))
	}
	if err := p.identify(pod); err != nil {
		p.rejectAt(doc.node.Line, doc.base, "%v", err)
		return
	}
	setPodDefaults(pod, p.opts.NodeName)
	p.rejectAll(doc, sorted(validatePod(pod, paths)))
	if len(p.rejections) == before { // the name with its suffix, when all else is well
		p.rejectAll(doc, invalidWith(validation.IsDNS1123Subdomain(pod.Name), field.NewPath("metadata", "name"), pod.Name))
	}
}

// addPod adds a checked pod to the set.
func (p *parser) addPod(doc document, pod *v1.Pod, paths podPaths) {
	p.pods++
	if p.pods > maxPods {
		if p.pods == maxPods+1 {
			p.rejectAt(doc.node.Line, doc.base, "a file may ask for at most %d pods: split it", maxPods)
		}
		return
	}
	p.checkPod(doc, pod, paths)
	if p.claimName(doc, "Pod", Key{pod.Namespace, pod.Name}) {
		p.set.Pods = append(p.set.Pods, pod)
	}
}

// sorted puts errors found while ranging over maps into a fixed order.
func sorted(errs field.ErrorList) field.ErrorList {
	slices.SortStableFunc(errs, func(a, b *field.Error) int {
		if c := strings.Compare(a.Field, b.Field); c != 0 {
			return c
		}
		return strings.Compare(a.Detail, b.Detail)
	})
	return errs
}

// validateMeta checks the metadata of an object that is named by the manifest.
func validateMeta(meta *metav1.ObjectMeta, path *field.Path) field.ErrorList {
	if meta.Name == "" {
		detail := ""
		if meta.GenerateName != "" {
			detail = "generateName needs an API server"
		}
		return field.ErrorList{field.Required(path.Child("name"), detail)}
	}
	only := metav1.ObjectMeta{Name: meta.Name, Namespace: cmp.Or(meta.Namespace, metav1.NamespaceDefault), Labels: meta.Labels, Annotations: meta.Annotations}
	return apivalidation.ValidateObjectMeta(&only, true, apivalidation.NameIsDNSSubdomain, path)
}

func validatePod(pod *v1.Pod, paths podPaths) field.ErrorList {
	var errs field.ErrorList
	if paths.generated {
		errs = append(errs, metav1validation.ValidateLabels(pod.Labels, paths.meta.Child("labels"))...)
		errs = append(errs, apivalidation.ValidateAnnotations(pod.Annotations, paths.meta.Child("annotations"))...)
	}
	spec, path := &pod.Spec, paths.spec
	volumes, volumeErrs := validateVolumes(spec, path.Child("volumes"))
	errs = append(errs, volumeErrs...)
	errs = append(errs, validateContainers(spec, volumes, path)...)
	errs = append(errs, validateNumbers(spec, path)...)
	errs = append(errs, validateChoices(spec, path)...)
	errs = append(errs, validateNames(spec, path)...)
	errs = append(errs, validateDNS(spec, path)...)
	errs = append(errs, validateHostNetworkPorts(spec, path)...)
	errs = append(errs, validatePodSecurity(spec, path)...)
	errs = append(errs, validateHostUsers(spec, path)...)
	errs = append(errs, validatePodResources(pod, path)...)
	return append(errs, validateUnsupported(spec, path)...)
}

func validateNumbers(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if s := *spec.TerminationGracePeriodSeconds; s < 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), s, "must be greater than or equal to 0"))
	}
	if s := spec.ActiveDeadlineSeconds; s != nil && (*s < 1 || *s > math.MaxInt32) {
		errs = append(errs, field.Invalid(path.Child("activeDeadlineSeconds"), *s, validation.InclusiveRangeError(1, math.MaxInt32)))
	}
	return errs
}

func validateChoices(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	errs = append(errs, oneOf(spec.RestartPolicy, path.Child("restartPolicy"),
		v1.RestartPolicyAlways, v1.RestartPolicyNever, v1.RestartPolicyOnFailure)...)
	errs = append(errs, oneOf(spec.DNSPolicy, path.Child("dnsPolicy"),
		v1.DNSClusterFirst, v1.DNSClusterFirstWithHostNet, v1.DNSDefault, v1.DNSNone)...)
	errs = append(errs, oneOf(*spec.PreemptionPolicy, path.Child("preemptionPolicy"), v1.PreemptLowerPriority, v1.PreemptNever)...)
	if spec.OS != nil {
		if spec.OS.Name == v1.Windows {
			errs = append(errs, field.Invalid(path.Child("os", "name"), spec.OS.Name, "this node runs Linux"))
		} else {
			errs = append(errs, oneOf(spec.OS.Name, path.Child("os", "name"), v1.Linux)...)
		}
	}
	return errs
}

// oneOf refuses a value that is not among the supported ones.
func oneOf[T ~string](value T, path *field.Path, supported ...T) field.ErrorList {
	if slices.Contains(supported, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, supported)}
}

// invalidWith turns the messages of a k8s validation function into errors.
func invalidWith(messages []string, path *field.Path, value any) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range messages {
		errs = append(errs, field.Invalid(path, value, msg))
	}
	return errs
}

// validLabel asks for a DNS label (RFC 1123).
func validLabel(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return invalidWith(validation.IsDNS1123Label(name), path, name)
}

// validSubdomain asks for the name of an API object.
func validSubdomain(name string, path *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return invalidWith(validation.IsDNS1123Subdomain(name), path, name)
}

func validateNames(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if spec.Hostname != "" {
		errs = append(errs, validLabel(spec.Hostname, path.Child("hostname"))...)
	}
	if spec.Subdomain != "" {
		errs = append(errs, validLabel(spec.Subdomain, path.Child("subdomain"))...)
	}
	if name := spec.HostnameOverride; name != nil {
		errs = append(errs, validateHostnameOverride(spec, *name, path.Child("hostnameOverride"))...)
	}
	if spec.ServiceAccountName != "" {
		errs = append(errs, validSubdomain(spec.ServiceAccountName, path.Child("serviceAccountName"))...)
	}
	for i, ref := range spec.ImagePullSecrets {
		errs = append(errs, validSubdomain(ref.Name, path.Child("imagePullSecrets").Index(i).Child("name"))...)
	}
	for i, alias := range spec.HostAliases {
		aliasPath := path.Child("hostAliases").Index(i)
		errs = append(errs, validation.IsValidIP(aliasPath.Child("ip"), alias.IP)...)
		for j, name := range alias.Hostnames {
			errs = append(errs, validSubdomain(name, aliasPath.Child("hostnames").Index(j))...)
		}
	}
	for i, gate := range spec.ReadinessGates {
		errs = append(errs, invalidWith(validation.IsQualifiedName(string(gate.ConditionType)),
			path.Child("readinessGates").Index(i).Child("conditionType"), gate.ConditionType)...)
	}
	return append(errs, metav1validation.ValidateLabels(spec.NodeSelector, path.Child("nodeSelector"))...)
}

func validateHostnameOverride(spec *v1.PodSpec, name string, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if spec.SetHostnameAsFQDN != nil && *spec.SetHostnameAsFQDN {
		errs = append(errs, field.Forbidden(path, "may not be specified when setHostnameAsFQDN is true"))
	}
	if spec.HostNetwork {
		errs = append(errs, field.Forbidden(path, "may not be specified when hostNetwork is true"))
	}
	if len(name) > 64 {
		errs = append(errs, field.TooLong(path, "", 64))
	}
	return append(errs, validSubdomain(name, path)...)
}

// The limits of resolv.conf that Kubernetes documents for dnsConfig.
const (
	maxNameservers     = 3
	maxSearches        = 32
	maxSearchListChars = 2048
)

func validateDNS(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	config, path := spec.DNSConfig, path.Child("dnsConfig")
	if spec.DNSPolicy == v1.DNSNone && (config == nil || len(config.Nameservers) == 0) {
		return field.ErrorList{field.Required(path.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")}
	}
	if config == nil {
		return nil
	}
	var errs field.ErrorList
	if n := len(config.Nameservers); n > maxNameservers {
		errs = append(errs, field.TooMany(path.Child("nameservers"), n, maxNameservers))
	}
	for i, ns := range config.Nameservers {
		errs = append(errs, validation.IsValidIP(path.Child("nameservers").Index(i), ns)...)
	}
	if n := len(config.Searches); n > maxSearches {
		errs = append(errs, field.TooMany(path.Child("searches"), n, maxSearches))
	}
	if n := len(strings.Join(config.Searches, " ")); n > maxSearchListChars {
		errs = append(errs, field.Invalid(path.Child("searches"), n, fmt.Sprintf("must not have more than %d characters in all, spaces included", maxSearchListChars)))
	}
	for i, search := range config.Searches {
		if search != "." {
			errs = append(errs, invalidWith(validation.IsDNS1123SubdomainWithUnderscore(strings.TrimSuffix(search, ".")), path.Child("searches").Index(i), search)...)
		}
	}
	for i, option := range config.Options {
		if option.Name == "" {
			errs = append(errs, field.Required(path.Child("options").Index(i), "must not be empty"))
		}
	}
	return errs
}

func validateHostNetworkPorts(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	if !spec.HostNetwork {
		return nil
	}
	var errs field.ErrorList
	for i, c := range spec.Containers {
		for j, port := range c.Ports {
			if port.HostPort != port.ContainerPort {
				errs = append(errs, field.Invalid(path.Child("containers").Index(i).Child("ports").Index(j).Child("hostPort"),
					port.HostPort, "must match `containerPort` when `hostNetwork` is true"))
			}
		}
	}
	return errs
}

// validateUnsupported refuses what would otherwise be ignored without a word.
// Scheduling (affinity, tolerations, topologySpreadConstraints and the like) is
// accepted: with one node there is nothing to choose.
func validateUnsupported(spec *v1.PodSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	refuse := func(set bool, name, why string) {
		if set {
			errs = append(errs, field.Forbidden(path.Child(name), why))
		}
	}
	refuse(len(spec.EphemeralContainers) > 0, "ephemeralContainers", "ephemeral containers not allowed in a manifest")
	refuse(spec.RuntimeClassName != nil, "runtimeClassName", unsupported)
	refuse(len(spec.ResourceClaims) > 0, "resourceClaims", unsupported)
	refuse(len(spec.SchedulingGates) > 0, "schedulingGates", "a pod from a manifest is bound to this node already")
	refuse(spec.SchedulingGroup != nil, "schedulingGroup", unsupported)
	return errs
}
