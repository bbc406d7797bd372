// Package status projects what is known of a pod onto the API's PodStatus. It
// is pure: facts in, status out. The rules of phase, conditions and container
// states are the kubelet's (pkg/kubelet/kubelet_pods.go, getPhase and
// convertToAPIContainerStatuses; pkg/kubelet/status/generate.go).
//
//	status.go     the whole
//	phase.go      Pending, Running, Succeeded, Failed
//	condition.go  PodScheduled, Initialized, ContainersReady, Ready, ...
//	container.go  one container's state
//	resources.go  what is allocated, what it has, and a resize in between
package status

import (
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/probe"
)

// Input is what a status is made from.
type Input struct {
	Pod      *v1.Pod
	Observed *observed.Pod
	Phase    phase.Phase
	Probes   map[string]probe.Result
	// Waiting is why containers do not run, by name: the plan's word.
	Waiting map[string]plan.Waiting
	// Restarts are IDs of containers that were killed to be started again.
	Restarts map[string]bool
	// Problem holds the whole pod up (volumes, sandbox); nil: nothing does.
	Problem *plan.Waiting
	// Unprepared: this agent has not seen the pod's volumes set up.
	Unprepared bool
	// Failed says why the pod is ended by the node (DeadlineExceeded, Evicted,
	// ...); nil: it is not.
	Failed *plan.Waiting
	// Disruption are the conditions that go with Failed.
	Disruption []v1.PodCondition
	// TerminationMessages are by container ID.
	TerminationMessages map[string]string
	// Health tells of the devices of a container; nil: nobody knows of any.
	Health func(pod *v1.Pod, container string) []v1.ResourceStatus
	// HoldsClaims: drivers have devices ready for the pod.
	HoldsClaims bool
	HostIPs     []string
	RuntimeName string // the scheme of container IDs
	QOSClass    v1.PodQOSClass
	// Actuated is what the pod's cgroups are set to.
	Actuated allocation.Actuated
	// ResizePending and ResizeInProgress are the conditions of a resize, but for
	// their times; nil: it has none of them.
	ResizePending, ResizeInProgress *v1.PodCondition
	// Previous is the last status: transition times, the start time and
	// restart counts of before this boot are taken from it.
	Previous *v1.PodStatus
	Now      time.Time

	round uint32 // plan.Round
}

// Of returns the pod's status.
func Of(in Input) v1.PodStatus {
	in.round = plan.Round(in.Pod, in.Observed)
	s := v1.PodStatus{
		ObservedGeneration: in.Pod.Generation,
		QOSClass:           in.QOSClass,
		StartTime:          in.Previous.StartTime,
	}
	if s.StartTime == nil {
		s.StartTime = &metav1.Time{Time: in.Now}
	}
	foreign(in.Previous, &s)
	addresses(in, &s)
	for i := range in.Pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, container(in, &in.Pod.Spec.InitContainers[i], true))
	}
	for i := range in.Pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, container(in, &in.Pod.Spec.Containers[i], false))
	}
	for i := range in.Pod.Spec.EphemeralContainers {
		s.EphemeralContainerStatuses = append(s.EphemeralContainerStatuses, ephemeral(in, &in.Pod.Spec.EphemeralContainers[i]))
	}
	lost(in, &s)
	s.Phase = podPhase(in, &s)
	switch {
	case s.Phase == in.Previous.Phase:
		// Whoever said it said it of this phase.
		s.Reason, s.Message = in.Previous.Reason, in.Previous.Message
	case in.Failed != nil && terminal(s.Phase):
		s.Reason, s.Message = in.Failed.Reason, in.Failed.Message
	}
	s.Conditions = conditions(in, &s)
	podResources(in, &s)
	return s
}

// addresses fills the host's and the pod's. A stopped sandbox's addresses are
// kept while the status still speaks of it, as the kubelet does.
func addresses(in Input, s *v1.PodStatus) {
	for _, ip := range in.HostIPs {
		s.HostIPs = append(s.HostIPs, v1.HostIP{IP: ip})
	}
	if len(in.HostIPs) > 0 {
		s.HostIP = in.HostIPs[0]
	}
	var ips []string
	if in.Pod.Spec.HostNetwork {
		if in.Observed.Sandbox() != nil {
			ips = in.HostIPs
		}
	} else if sb := in.Observed.ReadySandbox(); sb != nil {
		ips = sb.IPs
	} else if in.Phase >= phase.Terminating {
		for _, ip := range in.Previous.PodIPs {
			ips = append(ips, ip.IP)
		}
	}
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, v1.PodIP{IP: ip})
	}
	if len(ips) > 0 {
		s.PodIP = ips[0]
	}
}

// previousContainer finds a container in the last status.
func previousContainer(in Input, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{
		in.Previous.InitContainerStatuses, in.Previous.ContainerStatuses, in.Previous.EphemeralContainerStatuses,
	} {
		if i := slices.IndexFunc(list, func(c v1.ContainerStatus) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}
