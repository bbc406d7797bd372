package podspec

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// fieldValue resolves a fieldRef of an environment variable.
func fieldValue(ref *v1.ObjectFieldSelector, c Container, node Node) (string, error) {
	if ref.APIVersion != "" && ref.APIVersion != "v1" {
		return "", configErrorf("unsupported pod version: %s", ref.APIVersion)
	}
	pod := c.Pod
	if path, key, ok := subscript(ref.FieldPath); ok {
		return subscriptedValue(pod, ref.FieldPath, path, key)
	}
	switch ref.FieldPath {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName", "spec.host":
		if pod.Spec.NodeName == "" {
			return node.Name, nil // a pod from a file has no scheduler to name its node
		}
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		if len(node.HostIPs) == 0 {
			return "", configErrorf("cannot get host IPs: the node has no address")
		}
		return node.HostIPs[0], nil
	case "status.hostIPs":
		return strings.Join(node.HostIPs, ","), nil
	case "status.podIP":
		if len(c.PodIPs) == 0 {
			return "", nil
		}
		return c.PodIPs[0], nil
	case "status.podIPs":
		return strings.Join(c.PodIPs, ","), nil
	case "spec.restartPolicy", "spec.schedulerName", "status.phase":
		return "", configErrorf("unsupported fieldPath: %s", ref.FieldPath)
	default:
		return "", configErrorf("field label not supported: %s", ref.FieldPath)
	}
}

func subscriptedValue(pod *v1.Pod, fieldPath, path, key string) (string, error) {
	values, name := pod.Labels, key
	switch path {
	case "metadata.labels":
	case "metadata.annotations":
		values, name = pod.Annotations, strings.ToLower(key)
	default:
		return "", configErrorf("field label does not support subscript: %s", fieldPath)
	}
	if errs := validation.IsQualifiedName(name); len(errs) > 0 {
		return "", configErrorf("invalid key subscript in %s: %s", fieldPath, strings.Join(errs, ";"))
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

// resourceValue resolves a resourceFieldRef: the quantity in units of its
// divisor, rounded up. Where the container has no limit, the pod's limit
// applies, and then what the node can give to pods.
func resourceValue(ref *v1.ResourceFieldSelector, pod *v1.Pod, c *v1.Container, allocatable v1.ResourceList) (string, error) {
	if ref.ContainerName != "" {
		if c = findContainer(pod, ref.ContainerName); c == nil {
			return "", configErrorf("container %s not found", ref.ContainerName)
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
		return "", configErrorf("unsupported container resource : %v", ref.Resource)
	}
	quantity := list[name]
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		if kind == "limits" && quantity.IsZero() {
			quantity = defaultLimit(pod, name, allocatable)
		}
	default:
		if !strings.HasPrefix(rest, v1.ResourceHugePagesPrefix) {
			return "", configErrorf("unsupported container resource : %v", ref.Resource)
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

func defaultLimit(pod *v1.Pod, name v1.ResourceName, allocatable v1.ResourceList) resource.Quantity {
	if r := pod.Spec.Resources; r != nil && name != v1.ResourceEphemeralStorage {
		if q := r.Limits[name]; !q.IsZero() {
			return q
		}
	}
	return allocatable[name]
}

func findContainer(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
