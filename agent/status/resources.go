package status

import (
	"maps"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/resource"

	"github.com/berth-io/berth/agent/observed"
)

// resizable are the resources that change while a pod runs.
var resizable = []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}

// resources are those that a container has: what was set last where it runs,
// and what it is allocated otherwise (kubelet: convertContainerStatusResources,
// which asks the runtime and so shows what cgroups round).
func resources(in Input, spec *v1.Container, cur *observed.Container) *v1.ResourceRequirements {
	r := spec.Resources.DeepCopy()
	has, known := in.Actuated.Containers[cur.ID]
	if !known || cur.State != observed.Running {
		return r
	}
	for _, name := range resizable {
		show(r.Requests, has.Requests, name)
		show(r.Limits, has.Limits, name)
	}
	return r
}

// show puts what is set of a resource into a list that is there.
func show(list, has v1.ResourceList, name v1.ResourceName) {
	if q, found := has[name]; found && list != nil {
		list[name] = q
	}
}

// podResources are those of the pod as a whole (kubelet:
// convertToAPIPodLevelResourcesStatus). Before the pod runs they are what its
// parts are allocated together, and then what its cgroup was made from.
func podResources(in Input, s *v1.PodStatus) {
	options := resource.PodResourcesOptions{}
	s.AllocatedResources = resource.PodRequests(in.Pod, options)
	if s.Phase != v1.PodRunning {
		s.Resources = &v1.ResourceRequirements{}
		if level := in.Pod.Spec.Resources; level != nil {
			s.Resources = level.DeepCopy()
		}
		s.Resources.Requests, s.Resources.Limits = resource.PodRequests(in.Pod, options), resource.PodLimits(in.Pod, options)
		return
	}
	pod := in.Pod
	if in.Actuated.Cgroup != nil {
		pod = in.Actuated.Cgroup.In(pod)
	}
	s.Resources = &v1.ResourceRequirements{}
	if level := pod.Spec.Resources; level != nil {
		s.Resources = level.DeepCopy()
	}
	s.Resources.Requests = withResizable(s.Resources.Requests, resource.PodRequests(pod, options))
	s.Resources.Limits = withResizable(s.Resources.Limits, resource.PodLimits(pod, options))
}

func withResizable(list, all v1.ResourceList) v1.ResourceList {
	out := maps.Clone(list)
	if out == nil {
		out = v1.ResourceList{}
	}
	for _, name := range resizable {
		show(out, all, name)
	}
	return out
}

// resizeConditions are there only while they hold. Their times stay as long as
// they say the same; another message alone is no transition (kubelet:
// updatedPodResizeCondition).
func resizeConditions(in Input, s *v1.PodStatus) []v1.PodCondition {
	if terminal(s.Phase) {
		return nil
	}
	var out []v1.PodCondition
	for _, c := range []*v1.PodCondition{in.ResizePending, in.ResizeInProgress} {
		if c == nil {
			continue
		}
		next := *c
		next.Status = v1.ConditionTrue
		next.LastProbeTime, next.LastTransitionTime = metav1.Time{Time: in.Now}, metav1.Time{Time: in.Now}
		if old := find(in.Previous.Conditions, c.Type); old != nil && old.Reason == c.Reason {
			next.LastTransitionTime = old.LastTransitionTime
			if old.Message == c.Message && old.ObservedGeneration == c.ObservedGeneration {
				next.LastProbeTime = old.LastProbeTime
			}
		}
		out = append(out, next)
	}
	return out
}
