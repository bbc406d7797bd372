package qos

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

// OOM score adjustments of the kubelet (pkg/kubelet/qos/policy.go).
const (
	guaranteedOOMScoreAdj = -997
	bestEffortOOMScoreAdj = 1000
)

const (
	// systemNodeCritical is the priority class of pods that are killed last.
	systemNodeCritical = "system-node-critical"
	// systemCriticalPriority is the lowest priority of a critical pod.
	systemCriticalPriority = 2_000_000_000
	// configSourceAnnotation and configMirrorAnnotation are how the kubelet tells
	// static and mirror pods, which are always critical, from API server pods.
	configSourceAnnotation = "kubernetes.io/config.source"
	configMirrorAnnotation = "kubernetes.io/config.mirror"
	apiServerSource        = "api"
)

// Class is the pod's QoS class. A class already in the pod's status stands,
// because the pod's cgroup was named after it. Otherwise, as in the kubelet:
// best effort without any CPU or memory request or limit, guaranteed when every
// container (or the pod level) limits both and requests what it limits,
// burstable in between.
func Class(pod *v1.Pod) v1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	requests, limits := computeTotals{}, computeTotals{}
	limitedThroughout := true
	if r := pod.Spec.Resources; r != nil {
		requests.add(r.Requests)
		limits.add(r.Limits)
		limitedThroughout = len(r.Limits) == 0 || limitsBoth(r.Limits)
	} else {
		for _, containers := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range containers {
				r := &containers[i].Resources
				requests.add(r.Requests)
				limits.add(r.Limits)
				limitedThroughout = limitedThroughout && limitsBoth(r.Limits)
			}
		}
	}
	switch {
	case len(requests) == 0 && len(limits) == 0:
		return v1.PodQOSBestEffort
	case limitedThroughout && requests.equal(limits):
		return v1.PodQOSGuaranteed
	default:
		return v1.PodQOSBurstable
	}
}

// computeTotals sums the two resources that decide the class: CPU in
// thousandths of a core, memory in bytes. Zero quantities count as absent.
type computeTotals map[v1.ResourceName]int64

func (t computeTotals) add(list v1.ResourceList) {
	if q := list.Cpu(); q.Sign() > 0 {
		t[v1.ResourceCPU] += q.MilliValue()
	}
	if q := list.Memory(); q.Sign() > 0 {
		t[v1.ResourceMemory] += q.Value()
	}
}

func (t computeTotals) equal(other computeTotals) bool {
	if len(t) != len(other) {
		return false
	}
	for name, value := range t {
		if o, found := other[name]; !found || o != value {
			return false
		}
	}
	return true
}

func limitsBoth(list v1.ResourceList) bool {
	return list.Cpu().Sign() > 0 && list.Memory().Sign() > 0
}

// OOMScoreAdj is the kubelet's oom_score_adj for the container's processes:
// -997 for guaranteed and node-critical pods, 1000 for best effort, and for
// burstable ones the less the more of the node's memory the container asked
// for, within 3..999. memoryCapacity is the node's memory in bytes.
func OOMScoreAdj(pod *v1.Pod, container *v1.Container, memoryCapacity int64) int64 {
	if isNodeCritical(pod) {
		return guaranteedOOMScoreAdj
	}
	switch Class(pod) {
	case v1.PodQOSGuaranteed:
		return guaranteedOOMScoreAdj
	case v1.PodQOSBestEffort:
		return bestEffortOOMScoreAdj
	}
	request := container.Resources.Requests.Memory().Value()
	if isSidecar(pod, container) {
		// A sidecar must not die before the containers that it serves.
		request = max(request, leastMemoryRequest(pod))
	}
	request += unassignedMemoryRequest(pod)
	adj := int64(bestEffortOOMScoreAdj)
	if memoryCapacity > 0 {
		adj -= 1000 * request / memoryCapacity
	}
	return min(max(adj, 1000+guaranteedOOMScoreAdj), bestEffortOOMScoreAdj-1)
}

func isNodeCritical(pod *v1.Pod) bool {
	return pod.Spec.PriorityClassName == systemNodeCritical && isCritical(pod)
}

func isCritical(pod *v1.Pod) bool {
	source, hasSource := pod.Annotations[configSourceAnnotation]
	_, mirror := pod.Annotations[configMirrorAnnotation]
	return mirror || (hasSource && source != apiServerSource) ||
		(pod.Spec.Priority != nil && *pod.Spec.Priority >= systemCriticalPriority)
}

func isSidecar(pod *v1.Pod, container *v1.Container) bool {
	if container.RestartPolicy == nil || *container.RestartPolicy != v1.ContainerRestartPolicyAlways {
		return false
	}
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container.Name {
			return true
		}
	}
	return false
}

func leastMemoryRequest(pod *v1.Pod) int64 {
	var least int64
	for i := range pod.Spec.Containers {
		request := pod.Spec.Containers[i].Resources.Requests.Memory().Value()
		if i == 0 || request < least {
			least = request
		}
	}
	return least
}

// unassignedMemoryRequest is each container's even share, in bytes, of the
// memory that was requested for the pod as a whole but not by any container
// (KEP-2837).
func unassignedMemoryRequest(pod *v1.Pod) int64 {
	if !resource.IsPodLevelRequestsSet(pod) || pod.Spec.Resources.Requests.Memory().IsZero() {
		return 0
	}
	own := resource.AggregateContainerRequests(pod, resource.PodResourcesOptions{})
	unassigned := pod.Spec.Resources.Requests.Memory().Value() - own.Memory().Value()
	return unassigned / int64(len(pod.Spec.Containers)+len(pod.Spec.InitContainers))
}
