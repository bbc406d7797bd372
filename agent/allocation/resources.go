package allocation

import (
	"fmt"
	"maps"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Resources are those of a pod that may change while it runs: requests and
// limits of containers and init containers, and of the pod as a whole.
type Resources struct {
	Pod        *v1.ResourceRequirements           `json:"pod,omitempty"` // nil: none at pod level
	Containers map[string]v1.ResourceRequirements `json:"containers,omitempty"`
}

// Of returns the resources in a pod's spec. They are shared with it.
func Of(pod *v1.Pod) Resources {
	r := Resources{Pod: pod.Spec.Resources, Containers: map[string]v1.ResourceRequirements{}}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			r.Containers[list[i].Name] = list[i].Resources
		}
	}
	return r
}

// In returns the pod with these resources. All else is shared with the pod
// that was given; a container that r does not know keeps its own.
func (r Resources) In(pod *v1.Pod) *v1.Pod {
	out := *pod
	out.Spec.Resources = r.Pod
	out.Spec.InitContainers = r.inContainers(pod.Spec.InitContainers)
	out.Spec.Containers = r.inContainers(pod.Spec.Containers)
	return &out
}

func (r Resources) inContainers(list []v1.Container) []v1.Container {
	if list == nil {
		return nil
	}
	out := make([]v1.Container, len(list))
	for i := range list {
		out[i] = list[i]
		if own, known := r.Containers[list[i].Name]; known {
			out[i].Resources = own
		}
	}
	return out
}

// Equal tells whether both say the same of the same containers.
func (r Resources) Equal(o Resources) bool {
	return equality.Semantic.DeepEqual(r.Pod, o.Pod) && maps.EqualFunc(r.Containers, o.Containers,
		func(a, b v1.ResourceRequirements) bool { return equality.Semantic.DeepEqual(a, b) })
}

// With returns r with what o says of one resource.
func (r Resources) With(o Resources, name v1.ResourceName) Resources {
	out := Resources{Pod: r.Pod, Containers: maps.Clone(r.Containers)}
	if o.Pod != nil {
		var own v1.ResourceRequirements
		if r.Pod != nil {
			own = *r.Pod
		}
		merged := With(own, *o.Pod, name)
		out.Pod = &merged
	}
	for container, own := range out.Containers {
		if other, known := o.Containers[container]; known {
			out.Containers[container] = With(own, other, name)
		}
	}
	return out
}

// With returns r with what o says of one resource. Neither is changed.
func With(r, o v1.ResourceRequirements, name v1.ResourceName) v1.ResourceRequirements {
	r.Requests = with(r.Requests, o.Requests, name)
	r.Limits = with(r.Limits, o.Limits, name)
	return r
}

func with(list, other v1.ResourceList, name v1.ResourceName) v1.ResourceList {
	out := maps.Clone(list)
	q, found := other[name]
	if !found {
		delete(out, name)
		return out
	}
	if out == nil {
		out = v1.ResourceList{}
	}
	out[name] = q
	return out
}

// Effective are a container's resources with the pod's limits where it has
// none of its own (kubelet: pkg/kubelet/util, GetLimits).
func Effective(pod *v1.Pod, c *v1.Container) v1.ResourceRequirements {
	r := c.Resources
	if pod.Spec.Resources == nil {
		return r
	}
	for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
		own, inherited := r.Limits[name], pod.Spec.Resources.Limits[name]
		if own.IsZero() && !inherited.IsZero() {
			r.Limits = with(r.Limits, pod.Spec.Resources.Limits, name)
		}
	}
	return r
}

// Amounts are the resources that a resize is about, of a container or a pod:
// CPU in thousandths of a core, memory in bytes. Zero is none.
type Amounts struct {
	CPURequest, CPULimit, MemoryRequest, MemoryLimit int64
}

// AmountsOf returns the amounts of requests and limits.
func AmountsOf(r v1.ResourceRequirements) Amounts {
	return Amounts{
		CPURequest: r.Requests.Cpu().MilliValue(), CPULimit: r.Limits.Cpu().MilliValue(),
		MemoryRequest: r.Requests.Memory().Value(), MemoryLimit: r.Limits.Memory().Value(),
	}
}

func (a Amounts) String() string {
	return fmt.Sprintf("cpu %dm/%dm memory %d/%d", a.CPURequest, a.CPULimit, a.MemoryRequest, a.MemoryLimit)
}

// SameAmounts tells whether a resize from r to o would change nothing.
func (r Resources) SameAmounts(o Resources) bool {
	if (r.Pod == nil) != (o.Pod == nil) || r.Pod != nil && AmountsOf(*r.Pod) != AmountsOf(*o.Pod) {
		return false
	}
	return maps.EqualFunc(r.Containers, o.Containers, func(a, b v1.ResourceRequirements) bool { return AmountsOf(a) == AmountsOf(b) })
}

// Actuated is what a pod's cgroups are set to, as far as this node has set
// them.
type Actuated struct {
	// Cgroup is what the pod's own cgroup was last set from; nil: from what the
	// pod is allocated.
	Cgroup *Resources `json:"cgroup,omitempty"`
	// Containers are by container ID, as Effective has them. One that is missing
	// has what the pod is allocated.
	Containers map[string]v1.ResourceRequirements `json:"containers,omitempty"`
}
