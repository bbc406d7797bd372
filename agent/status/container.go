package status

import (
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
)

func container(in Input, spec *v1.Container, init bool) v1.ContainerStatus {
	s := v1.ContainerStatus{Name: spec.Name, Image: spec.Image}
	previous := previousContainer(in, spec.Name)
	cur := in.Observed.Container(spec.Name)
	if cur == nil {
		if previous != nil {
			carryOver(in, previous, &s)
		}
		if s.State == (v1.ContainerState{}) {
			s.State.Waiting = waiting(in, spec.Name)
		}
		s.Started = new(false)
		return s
	}
	s.RestartCount = int32(cur.Attempt)
	s.ContainerID = in.RuntimeName + "://" + cur.ID
	s.ImageID = cur.ImageRef
	s.Resources = resources(in, spec, cur)
	s.AllocatedResources = spec.Resources.Requests.DeepCopy()
	if in.Health != nil {
		s.AllocatedResourcesStatus = in.Health(in.Pod, spec.Name)
	}
	if cur.Image != "" {
		s.Image = cur.Image
	}
	if cur.User != nil {
		s.User = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{
			UID: cur.User.UID, GID: cur.User.GID, SupplementalGroups: cur.User.SupplementalGroups,
		}}
	}
	if old := in.Observed.Previous(cur); old != nil {
		s.LastTerminationState.Terminated = terminated(in, old)
	}
	state(in, cur, &s)
	ready(in, spec, cur, init, &s)
	return s
}

// ephemeral is an ephemeral container's status. It is never ready, and the
// kubelet says nothing of whether it has started.
func ephemeral(in Input, spec *v1.EphemeralContainer) v1.ContainerStatus {
	in.round = 0 // it is in none
	s := container(in, (*v1.Container)(&spec.EphemeralContainerCommon), false)
	s.Ready, s.Started = false, nil
	return s
}

// state tells running, terminated or waiting. A container that has ended and
// is going to be started again, but not yet, is waiting.
func state(in Input, cur *observed.Container, s *v1.ContainerStatus) {
	switch cur.State {
	case observed.Running:
		s.State.Running = &v1.ContainerStateRunning{StartedAt: metav1.Time{Time: cur.StartedAt}}
		return
	case observed.Exited:
		w, held := in.Waiting[cur.Name]
		if !held && cur.Round < in.round {
			w, held = restartingAll, true
		}
		if !held || in.Phase >= phase.Terminating {
			s.State.Terminated = terminated(in, cur)
			return
		}
		s.LastTerminationState.Terminated = terminated(in, cur)
		s.State.Waiting = &v1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
		return
	}
	s.State.Waiting = waiting(in, cur.Name)
}

// restartingAll is the kubelet's word on a container that waits for its turn
// after another's end has restarted all of them (pkg/kubelet/kubelet_pods.go).
var restartingAll = plan.Waiting{
	Reason: "RestartingAllContainers", Message: "The container is removed because RestartAllContainers in place",
}

func ready(in Input, spec *v1.Container, cur *observed.Container, init bool, s *v1.ContainerStatus) {
	started, isReady := false, false
	switch {
	case init && !plan.Sidecar(spec):
		started = cur.State == observed.Running
		isReady = cur.State == observed.Exited && cur.ExitCode == 0
	case cur.State == observed.Running:
		p, known := in.Probes[spec.Name]
		known = known && p.ContainerID == cur.ID
		started = spec.StartupProbe == nil || known && p.Started
		isReady = started && (spec.ReadinessProbe == nil || known && p.Ready)
	}
	s.Started, s.Ready = &started, isReady
}

func terminated(in Input, c *observed.Container) *v1.ContainerStateTerminated {
	t := &v1.ContainerStateTerminated{
		ExitCode:    c.ExitCode,
		Reason:      c.Reason,
		Message:     c.Message,
		StartedAt:   metav1.Time{Time: c.StartedAt},
		FinishedAt:  metav1.Time{Time: c.FinishedAt},
		ContainerID: in.RuntimeName + "://" + c.ID,
	}
	if m := in.TerminationMessages[c.ID]; m != "" {
		t.Message = m
	}
	return t
}

// waiting says why a container that does not exist yet does not run.
func waiting(in Input, name string) *v1.ContainerStateWaiting {
	if w, ok := in.Waiting[name]; ok {
		return &v1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
	}
	// The init containers, too, wait for the pod to be initialized: the
	// kubelet's words.
	w := &v1.ContainerStateWaiting{Reason: "ContainerCreating"}
	if len(in.Pod.Spec.InitContainers) > 0 {
		w.Reason = "PodInitializing"
	}
	if in.Problem != nil {
		w.Message = in.Problem.Message
	}
	return w
}

const notLocated = "The container could not be located when the pod was terminated"

// carryOver keeps what is known of a container that the runtime has lost: by a
// reboot, or because a pod that ended was cleaned up. What was running then
// counts as ended, with the exit code the kubelet reports for it.
func carryOver(in Input, previous *v1.ContainerStatus, s *v1.ContainerStatus) {
	s.RestartCount = previous.RestartCount
	s.LastTerminationState = previous.LastTerminationState
	if in.Phase < phase.Terminating {
		return
	}
	s.ContainerID, s.ImageID = previous.ContainerID, previous.ImageID
	s.Ready = previous.State.Terminated != nil && previous.Ready
	switch {
	case previous.State.Terminated != nil:
		s.State.Terminated = previous.State.Terminated
	case previous.State.Running != nil:
		s.State.Terminated = &v1.ContainerStateTerminated{
			ExitCode:    137,
			Reason:      "ContainerStatusUnknown",
			Message:     notLocated,
			StartedAt:   previous.State.Running.StartedAt,
			ContainerID: previous.ContainerID,
		}
	}
}

// lost ends, in the status of a pod that is over, what has no end of its own:
// whether it would have succeeded nobody knows, so it counts as failed. Of a pod
// that never came so far, containers wait on
// (pkg/kubelet/status/status_manager.go, TerminatePod).
func lost(in Input, s *v1.PodStatus) {
	if in.Phase < phase.Terminated {
		return
	}
	begun := 1 // init containers that may have run; the first may always
	for i := range s.InitContainerStatuses {
		if c := &s.InitContainerStatuses[i]; c.State.Waiting == nil || c.LastTerminationState.Terminated != nil {
			begun = i + 1
		}
	}
	for i := range s.InitContainerStatuses[:min(begun, len(s.InitContainerStatuses))] {
		unlocated(&s.InitContainerStatuses[i])
	}
	if !wasInitialized(in, s) {
		return
	}
	for i := range s.ContainerStatuses {
		unlocated(&s.ContainerStatuses[i])
	}
}

func unlocated(c *v1.ContainerStatus) {
	if c.State.Waiting != nil {
		c.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
			ExitCode: 137, Reason: "ContainerStatusUnknown", Message: notLocated, ContainerID: c.ContainerID,
		}}
	}
}

// wasInitialized tells whether a container proper of the pod may have run.
func wasInitialized(in Input, s *v1.PodStatus) bool {
	n := len(in.Pod.Spec.InitContainers)
	if n == 0 || containersBegun(s) {
		return true
	}
	last := &s.InitContainerStatuses[n-1]
	if plan.Sidecar(&in.Pod.Spec.InitContainers[n-1]) {
		return last.State.Running != nil && last.Started != nil && *last.Started
	}
	for _, t := range []*v1.ContainerStateTerminated{last.State.Terminated, last.LastTerminationState.Terminated} {
		if t != nil && t.ExitCode == 0 {
			return true
		}
	}
	return false
}
