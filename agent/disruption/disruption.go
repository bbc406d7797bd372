// Package disruption describes how the node itself ends a pod: what the pod's
// status says then, how long its containers have, and which pods are spared.
// Eviction (agent/evict), preemption (agent/admit) and node shutdown
// (agent/shutdown) make the descriptions; the pod's worker acts on them.
package disruption

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

// SystemCriticalPriority is the lowest priority of a critical pod
// (pkg/apis/scheduling).
const SystemCriticalPriority = 2_000_000_000

// Annotations that the kubelet puts on pods which are not from the API server
// (pkg/kubelet/types/pod_update.go).
const (
	sourceAnnotation = "kubernetes.io/config.source"
	mirrorAnnotation = "kubernetes.io/config.mirror"
	apiServer        = "api"
)

// Stop asks a pod's worker to end the pod as failed.
type Stop struct {
	// Reason and Message go into the pod's status, with phase Failed.
	Reason, Message string
	// Conditions are set in the pod's status, each in place of one of its type.
	// Their observedGeneration is the pod's, their transition time the worker's
	// to set.
	Conditions []v1.PodCondition
	// Grace in seconds overrides the pod's own grace period; nil: the pod's
	// own. Zero kills at once. As with every stop, a grace period only shrinks.
	Grace *int64
	// Event is recorded for the pod when the stop is asked for; nil: none is.
	Event *Event
}

// Event is a warning about a pod.
type Event struct {
	Reason, Message string
	// Annotations of the event object.
	Annotations map[string]string
}

// Target is the DisruptionTarget condition of a pod that the node ends.
func Target(pod *v1.Pod, message string) v1.PodCondition {
	return v1.PodCondition{
		Type:               v1.DisruptionTarget,
		ObservedGeneration: pod.Generation,
		Status:             v1.ConditionTrue,
		Reason:             v1.PodReasonTerminationByKubelet,
		Message:            message,
	}
}

// Static tells whether the pod is from this node's files and not from the API
// server.
func Static(pod *v1.Pod) bool {
	source, found := pod.Annotations[sourceAnnotation]
	return found && source != apiServer
}

// Critical tells whether the node depends on the pod: static pods and their
// mirrors, and pods of a system priority. They are not evicted, and admitted
// under pressure (pkg/kubelet/types, IsCriticalPod).
func Critical(pod *v1.Pod) bool {
	_, mirror := pod.Annotations[mirrorAnnotation]
	return mirror || Static(pod) || OfSystem(pod)
}

// OfSystem tells whether the pod has a system priority. On a node without a
// cluster, where every pod is static, it says which ones the node depends on.
func OfSystem(pod *v1.Pod) bool { return Priority(pod) >= SystemCriticalPriority }

// Priority is the pod's priority; zero where admission set none.
func Priority(pod *v1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// Request is what the pod asks for of a resource, and what becomes free when
// it ends: whole units, of CPU thousandths of a core. Where the pod as a whole
// asks for resources, its containers' requests do not count; its overhead counts
// only beside a request (pkg/api/v1/resource, GetResourceRequest).
func Request(pod *v1.Pod, name v1.ResourceName) int64 {
	if name == v1.ResourcePods {
		return 1
	}
	requests := resource.PodRequests(pod, resource.PodResourcesOptions{
		SkipContainerLevelResources: resource.IsPodLevelResourcesSet(pod), ExcludeOverhead: true,
	})
	q, found := requests[name]
	if !found || q.IsZero() {
		return 0
	}
	q.Add(pod.Spec.Overhead[name])
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}
