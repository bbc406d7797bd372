package admit

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/component-helpers/resource"
)

// amounts are whole units of each resource; CPU is in thousandths of a core.
type amounts map[v1.ResourceName]int64

// counted tells whether the scheduler counts the resource.
func counted(name v1.ResourceName) bool {
	switch name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		return true
	}
	return extended(name) || strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) ||
		strings.Contains(string(name), v1.ResourceDefaultNamespacePrefix) ||
		strings.HasPrefix(string(name), v1.ResourceAttachableVolumesPrefix)
}

// extended tells whether the name is of a resource that somebody else than
// Kubernetes defines (pkg/apis/core/v1/helper, IsExtendedResourceName).
func extended(name v1.ResourceName) bool {
	s := string(name)
	if !strings.Contains(s, "/") || strings.Contains(s, v1.ResourceDefaultNamespacePrefix) || strings.HasPrefix(s, v1.DefaultResourceRequestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(v1.DefaultResourceRequestsPrefix+s)) == 0
}

func (a amounts) add(list v1.ResourceList) {
	for name := range list {
		if counted(name) {
			a[name] += amount(name, list)
		}
	}
}

func amount(name v1.ResourceName, list v1.ResourceList) int64 {
	q := list[name]
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// shortage is a resource of which the node has too little left.
type shortage struct {
	name                      v1.ResourceName
	requested, used, capacity int64
}

func (s shortage) rejection() *Rejection {
	return &Rejection{
		Reason: OutOfPrefix + string(s.name),
		Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
			s.name, s.requested, s.used, s.capacity),
	}
}

// missing is how much must become free.
func (s shortage) missing() int64 { return s.requested - (s.capacity - s.used) }

// shortages compares requests with what can be allocated, as the scheduler's
// NodeResourcesFit does, with names in a fixed order: pods, CPU, memory,
// ephemeral storage, then the others by name.
func shortages(in Input) []shortage {
	var short []shortage
	allocatable := in.Node.Status.Allocatable
	if count, room := int64(len(in.Others)), allocatable.Pods().Value(); count+1 > room {
		short = append(short, shortage{name: v1.ResourcePods, requested: 1, used: count, capacity: room})
	}
	wanted := amounts{}
	wanted.add(resource.PodRequests(withoutUnknown(in.Pod, allocatable), resource.PodResourcesOptions{}))
	used := amounts{}
	for _, o := range in.Others {
		used.add(resource.PodRequests(o, resource.PodResourcesOptions{
			UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true,
		}))
	}
	for _, name := range order(wanted) {
		s := shortage{name: name, requested: wanted[name], used: used[name], capacity: amount(name, allocatable)}
		if s.requested > 0 && s.missing() > 0 {
			short = append(short, s)
		}
	}
	return short
}

func order(a amounts) []v1.ResourceName {
	first := []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage}
	names := slices.Sorted(maps.Keys(a))
	return append(first, slices.DeleteFunc(names, func(n v1.ResourceName) bool { return slices.Contains(first, n) })...)
}

// withoutUnknown leaves out requests for extended resources that the node does
// not have: they are of the cluster, or served by dynamic resource allocation
// (pkg/kubelet/lifecycle, removeMissingExtendedResources).
func withoutUnknown(pod *v1.Pod, allocatable v1.ResourceList) *v1.Pod {
	unknown := func(c *v1.Container, name v1.ResourceName) bool {
		if servedByDRA(pod, c.Name, name) {
			return true
		}
		_, found := allocatable[name]
		return extended(name) && !found
	}
	strip := func(containers []v1.Container) []v1.Container {
		kept := slices.Clone(containers)
		for i := range kept {
			c := &kept[i]
			c.Resources.Requests = maps.Clone(c.Resources.Requests)
			for name := range c.Resources.Requests {
				if unknown(c, name) {
					delete(c.Resources.Requests, name)
				}
			}
		}
		return kept
	}
	out := *pod
	out.Spec.Containers = strip(pod.Spec.Containers)
	out.Spec.InitContainers = strip(pod.Spec.InitContainers)
	return &out
}

func servedByDRA(pod *v1.Pod, container string, name v1.ResourceName) bool {
	s := pod.Status.ExtendedResourceClaimStatus
	if s == nil || (!extended(name) && !strings.HasPrefix(string(name), resourcev1.ResourceDeviceClassPrefix)) {
		return false
	}
	return slices.ContainsFunc(s.RequestMappings, func(m v1.ContainerExtendedResourceRequest) bool {
		return m.ResourceName == string(name) && m.ContainerName == container
	})
}
