// Package downward resolves what a pod may know of itself: the fieldRef and
// resourceFieldRef of environment variables and of downwardAPI volumes. It does
// no I/O, and its values and error texts are the kubelet's.
package downward

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Pod is a pod with what its own object does not say.
type Pod struct {
	*v1.Pod
	// NodeName stands in where the spec names no node, as for a pod from a file.
	NodeName        string
	HostIPs, PodIPs []string
	// Allocatable is what the node can give to pods: the limit of a container
	// that has none.
	Allocatable v1.ResourceList
}

// Field is the value of a field of the pod.
func (p Pod) Field(ref *v1.ObjectFieldSelector) (string, error) {
	if ref.APIVersion != "" && ref.APIVersion != "v1" {
		return "", fmt.Errorf("unsupported pod version: %s", ref.APIVersion)
	}
	if path, key, ok := subscript(ref.FieldPath); ok {
		return p.subscripted(ref.FieldPath, path, key)
	}
	switch ref.FieldPath {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "metadata.labels":
		return formatMap(p.Labels), nil
	case "metadata.annotations":
		return formatMap(p.Annotations), nil
	case "spec.nodeName", "spec.host":
		if p.Spec.NodeName == "" {
			return p.NodeName, nil
		}
		return p.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		if len(p.HostIPs) == 0 {
			return "", fmt.Errorf("cannot get host IPs: the node has no address")
		}
		return p.HostIPs[0], nil
	case "status.hostIPs":
		return strings.Join(p.HostIPs, ","), nil
	case "status.podIP":
		if len(p.PodIPs) == 0 {
			return "", nil
		}
		return p.PodIPs[0], nil
	case "status.podIPs":
		return strings.Join(p.PodIPs, ","), nil
	case "spec.restartPolicy", "spec.schedulerName", "status.phase":
		return "", fmt.Errorf("unsupported fieldPath: %s", ref.FieldPath)
	default:
		return "", fmt.Errorf("field label not supported: %s", ref.FieldPath)
	}
}

func (p Pod) subscripted(fieldPath, path, key string) (string, error) {
	values, name := p.Labels, key
	switch path {
	case "metadata.labels":
	case "metadata.annotations":
		values, name = p.Annotations, strings.ToLower(key)
	default:
		return "", fmt.Errorf("field label does not support subscript: %s", fieldPath)
	}
	if errs := validation.IsQualifiedName(name); len(errs) > 0 {
		return "", fmt.Errorf("invalid key subscript in %s: %s", fieldPath, strings.Join(errs, ";"))
	}
	return values[key], nil
}

// subscript splits metadata.labels['key'].
func subscript(path string) (field, key string, ok bool) {
	rest, ok := strings.CutSuffix(path, "']")
	if !ok {
		return "", "", false
	}
	field, key, ok = strings.Cut(rest, "['")
	return field, key, ok && field != ""
}

// formatMap writes key="value" lines, sorted.
func formatMap(m map[string]string) string {
	var b []byte
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, '\n')
		}
		b = append(b, k...)
		b = append(b, '=')
		b = strconv.AppendQuote(b, m[k])
	}
	return string(b)
}

// Resource is what a container requests or is limited to, in units of the
// divisor, rounded up. Where the container has no limit, the pod's limit
// applies, and then what the node can give to pods. c is the container meant
// where ref names none; it may be nil.
func (p Pod) Resource(ref *v1.ResourceFieldSelector, c *v1.Container) (string, error) {
	if ref.ContainerName != "" || c == nil {
		if c = p.container(ref.ContainerName); c == nil {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
	}
	kind, rest, _ := strings.Cut(ref.Resource, ".")
	name := v1.ResourceName(rest)
	var list v1.ResourceList
	switch kind {
	case "limits":
		list = c.Resources.Limits
	case "requests":
		list = c.Resources.Requests
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	quantity := list[name]
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		if kind == "limits" && quantity.IsZero() {
			quantity = p.defaultLimit(name)
		}
	default:
		if !strings.HasPrefix(rest, v1.ResourceHugePagesPrefix) {
			return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
		}
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = *resource.NewQuantity(1, resource.DecimalSI)
	}
	n := float64(quantity.Value()) / float64(divisor.Value())
	if name == v1.ResourceCPU {
		n = float64(quantity.MilliValue()) / float64(divisor.MilliValue())
	}
	return strconv.FormatInt(int64(math.Ceil(n)), 10), nil
}

func (p Pod) defaultLimit(name v1.ResourceName) resource.Quantity {
	if r := p.Spec.Resources; r != nil && name != v1.ResourceEphemeralStorage {
		if q := r.Limits[name]; !q.IsZero() {
			return q
		}
	}
	return p.Allocatable[name]
}

func (p Pod) container(name string) *v1.Container {
	for _, list := range [][]v1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
