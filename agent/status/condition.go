package status

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
)

// conditions returns the node's conditions of a pod, with the transition times
// of the last status where nothing changed, and then those that others own
// (readiness gates), as they were.
func conditions(in Input, s *v1.PodStatus) []v1.PodCondition {
	own := []v1.PodCondition{
		{Type: v1.PodReadyToStartContainers, Status: truth(in.Observed.ReadySandbox() != nil && !unprepared(in))},
		initialized(in, s),
		podReady(in, s),
		containersReady(in, s),
		{Type: v1.PodScheduled, Status: v1.ConditionTrue},
	}
	if plan.MayRestartAll(in.Pod) {
		own = append(own, restarting(in, s))
	}
	own = append(own, in.Disruption...)
	for i := range own {
		c := &own[i]
		c.ObservedGeneration = in.Pod.Generation
		c.LastTransitionTime = metav1.Time{Time: in.Now}
		if old := find(in.Previous.Conditions, c.Type); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	for _, c := range in.Previous.Conditions {
		if find(own, c.Type) == nil && c.Type != v1.PodResizePending && c.Type != v1.PodResizeInProgress {
			own = append(own, c)
		}
	}
	return append(own, resizeConditions(in, s)...)
}

// unprepared tells that a pod may have a sandbox whose volumes never were there:
// the agent that made it was killed before it could remove it again. A pod that
// was ready to start containers before is not one.
func unprepared(in Input) bool {
	was := find(in.Previous.Conditions, v1.PodReadyToStartContainers)
	return in.Unprepared && len(in.Observed.Containers) == 0 && (was == nil || was.Status != v1.ConditionTrue)
}

// own are the conditions that a node says of its pods. Others belong to
// whoever set them.
var own = []v1.PodConditionType{
	v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady, v1.PodScheduled,
	v1.PodResizePending, v1.PodResizeInProgress, v1.AllContainersRestarting,
}

// Adopt returns the node's status with what others have written into the API
// server's: their conditions, and fields that no node writes.
func Adopt(node, api v1.PodStatus) v1.PodStatus {
	out := node
	out.Conditions = nil
	for _, c := range node.Conditions {
		// A disruption is told by whoever disrupts, the node too, and by the
		// node only once nothing of the pod runs.
		if slices.Contains(own, c.Type) || c.Type == v1.DisruptionTarget && terminal(node.Phase) {
			out.Conditions = append(out.Conditions, c)
		}
	}
	for _, c := range api.Conditions {
		if !slices.Contains(own, c.Type) && find(out.Conditions, c.Type) == nil {
			out.Conditions = append(out.Conditions, c)
		}
	}
	if terminal(api.Phase) && node.Phase != api.Phase {
		// A pod does not leave a phase that nothing runs in, nor change it.
		out.Phase, out.Reason, out.Message = api.Phase, api.Reason, api.Message
	}
	foreign(&api, &out)
	return out
}

// foreign copies the fields that no node writes.
func foreign(from, to *v1.PodStatus) {
	to.NominatedNodeName = from.NominatedNodeName
	to.ResourceClaimStatuses = from.ResourceClaimStatuses
	to.ExtendedResourceClaimStatus = from.ExtendedResourceClaimStatus
	to.NodeAllocatableResourceClaimStatuses = from.NodeAllocatableResourceClaimStatuses
}

// restarting tells that all containers of the pod are being restarted, until the
// first of them is there again (pkg/kubelet/status/generate.go,
// GenerateAllContainersRestartingCondition).
func restarting(in Input, s *v1.PodStatus) v1.PodCondition {
	c := v1.PodCondition{Type: v1.AllContainersRestarting, Status: v1.ConditionFalse}
	again := slices.ContainsFunc(in.Observed.Containers, func(o observed.Container) bool { return o.Round == in.round })
	switch {
	case s.Phase == v1.PodSucceeded:
		c.Reason = "PodCompleted"
	case s.Phase == v1.PodFailed:
		c.Reason = "PodFailed"
	case in.round > 0 && !again:
		c.Status, c.Reason, c.Message = v1.ConditionTrue, "RestartAllContainersStarted", "container exited with restart policy rule"
	}
	return c
}

func initialized(in Input, s *v1.PodStatus) v1.PodCondition {
	c := v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionTrue}
	var incomplete []string
	for i := range s.InitContainerStatuses {
		st := &s.InitContainerStatuses[i]
		done := st.Ready
		if plan.Sidecar(&in.Pod.Spec.InitContainers[i]) {
			done = *st.Started
		}
		if !done {
			incomplete = append(incomplete, st.Name)
		}
	}
	switch {
	case s.Phase == v1.PodSucceeded:
		c.Reason = "PodCompleted"
	case len(incomplete) > 0 && !containersBegun(s):
		c.Status, c.Reason = v1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(incomplete, " "))
	}
	return c
}

// containersBegun tells whether a container proper was ever started: then
// initialization is over, whatever a sidecar does later.
func containersBegun(s *v1.PodStatus) bool {
	return slices.ContainsFunc(s.ContainerStatuses, func(c v1.ContainerStatus) bool {
		return c.State.Waiting == nil || c.LastTerminationState.Terminated != nil
	})
}

func containersReady(in Input, s *v1.PodStatus) v1.PodCondition {
	c := v1.PodCondition{Type: v1.ContainersReady, Status: v1.ConditionTrue}
	var unready []string
	for i := range s.InitContainerStatuses {
		if plan.Sidecar(&in.Pod.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			unready = append(unready, s.InitContainerStatuses[i].Name)
		}
	}
	for i := range s.ContainerStatuses {
		if !s.ContainerStatuses[i].Ready {
			unready = append(unready, s.ContainerStatuses[i].Name)
		}
	}
	switch {
	case s.Phase == v1.PodSucceeded:
		c.Status, c.Reason = v1.ConditionFalse, "PodCompleted"
	case s.Phase == v1.PodFailed:
		c.Status, c.Reason = v1.ConditionFalse, "PodFailed"
	case len(unready) > 0:
		c.Status, c.Reason = v1.ConditionFalse, "ContainersNotReady"
		c.Message = fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " "))
	}
	return c
}

func podReady(in Input, s *v1.PodStatus) v1.PodCondition {
	c := containersReady(in, s)
	c.Type = v1.PodReady
	if c.Status != v1.ConditionTrue {
		return c
	}
	var closed []string
	for _, gate := range in.Pod.Spec.ReadinessGates {
		switch old := find(in.Previous.Conditions, gate.ConditionType); {
		case old == nil:
			closed = append(closed, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		case old.Status != v1.ConditionTrue:
			closed = append(closed, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, old.Status))
		}
	}
	if len(closed) > 0 {
		c.Status, c.Reason, c.Message = v1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(closed, ", ")
	}
	return c
}

func find(list []v1.PodCondition, t v1.PodConditionType) *v1.PodCondition {
	if i := slices.IndexFunc(list, func(c v1.PodCondition) bool { return c.Type == t }); i >= 0 {
		return &list[i]
	}
	return nil
}

func truth(b bool) v1.ConditionStatus {
	if b {
		return v1.ConditionTrue
	}
	return v1.ConditionFalse
}
