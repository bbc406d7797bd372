package manifest

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxAffinitySeconds is a day.
const maxAffinitySeconds = 86400

func validateService(s *v1.Service) field.ErrorList {
	meta, path := field.NewPath("metadata"), field.NewPath("spec")
	errs := validateMeta(&s.ObjectMeta, meta)
	if s.Name != "" {
		errs = append(errs, invalidWith(validation.IsDNS1035Label(s.Name), meta.Child("name"), s.Name)...)
	}
	spec := &s.Spec
	errs = append(errs, oneOf(spec.Type, path.Child("type"),
		v1.ServiceTypeClusterIP, v1.ServiceTypeExternalName, v1.ServiceTypeLoadBalancer, v1.ServiceTypeNodePort)...)
	errs = append(errs, oneOf(spec.SessionAffinity, path.Child("sessionAffinity"), v1.ServiceAffinityClientIP, v1.ServiceAffinityNone)...)
	errs = append(errs, metav1validation.ValidateLabels(spec.Selector, path.Child("selector"))...)
	if spec.Type == v1.ServiceTypeExternalName {
		return append(errs, validSubdomain(spec.ExternalName, path.Child("externalName"))...)
	}
	if spec.SessionAffinity == v1.ServiceAffinityClientIP {
		if t := *spec.SessionAffinityConfig.ClientIP.TimeoutSeconds; t <= 0 || t > maxAffinitySeconds {
			errs = append(errs, field.Invalid(path.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), t, validation.InclusiveRangeError(1, maxAffinitySeconds)))
		}
	}
	if ip := spec.ClusterIP; ip != "" && ip != v1.ClusterIPNone {
		errs = append(errs, validation.IsValidIP(path.Child("clusterIP"), ip)...)
	}
	for i, ip := range spec.ExternalIPs {
		errs = append(errs, validation.IsValidIP(path.Child("externalIPs").Index(i), ip)...)
	}
	if spec.ExternalTrafficPolicy != "" {
		errs = append(errs, oneOf(spec.ExternalTrafficPolicy, path.Child("externalTrafficPolicy"),
			v1.ServiceExternalTrafficPolicyCluster, v1.ServiceExternalTrafficPolicyLocal)...)
	}
	return append(errs, validateServicePorts(spec, path.Child("ports"))...)
}

func validateServicePorts(spec *v1.ServiceSpec, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(spec.Ports) == 0 && spec.ClusterIP != v1.ClusterIPNone {
		errs = append(errs, field.Required(path, ""))
	}
	names, numbers := sets.New[string](), sets.New[string]()
	for i, port := range spec.Ports {
		at := path.Index(i)
		switch {
		case port.Name == "" && len(spec.Ports) > 1:
			errs = append(errs, field.Required(at.Child("name"), "a port of several needs a name"))
		case port.Name != "" && names.Has(port.Name):
			errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
		case port.Name != "":
			errs = append(errs, validLabel(port.Name, at.Child("name"))...)
		}
		names.Insert(port.Name)
		errs = append(errs, invalidWith(validation.IsValidPortNum(int(port.Port)), at.Child("port"), port.Port)...)
		errs = append(errs, oneOf(port.Protocol, at.Child("protocol"), v1.ProtocolSCTP, v1.ProtocolTCP, v1.ProtocolUDP)...)
		if port.TargetPort.Type == intstr.Int {
			errs = append(errs, invalidWith(validation.IsValidPortNum(port.TargetPort.IntValue()), at.Child("targetPort"), port.TargetPort.IntValue())...)
		} else {
			errs = append(errs, invalidWith(validation.IsValidPortName(port.TargetPort.StrVal), at.Child("targetPort"), port.TargetPort.StrVal)...)
		}
		if port.NodePort != 0 {
			if spec.Type == v1.ServiceTypeClusterIP {
				errs = append(errs, field.Forbidden(at.Child("nodePort"), "may not be used when `type` is 'ClusterIP'"))
			}
			errs = append(errs, invalidWith(validation.IsValidPortNum(int(port.NodePort)), at.Child("nodePort"), port.NodePort)...)
		}
		id := fmt.Sprintf("%s/%d", port.Protocol, port.Port)
		if numbers.Has(id) {
			errs = append(errs, field.Duplicate(at, id))
		}
		numbers.Insert(id)
	}
	return errs
}
