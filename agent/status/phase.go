package status

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
)

// podPhase derives the API's phase from the container statuses. A phase that
// was terminal stays: a pod that had its run does not come back to life.
func podPhase(in Input, s *v1.PodStatus) v1.PodPhase {
	if p := in.Previous.Phase; terminal(p) {
		return p
	}
	if in.Failed != nil && in.Phase >= phase.Terminated {
		return v1.PodFailed
	}
	p := livePhase(in, s)
	if terminal(p) && in.Phase < phase.Terminated && (in.HoldsClaims || anyRunning(s)) {
		// Others take a terminal phase for the word that nothing runs any more and
		// that claims are free (pkg/kubelet/status/status_manager.go, mergePodStatus).
		if in.Previous.Phase == "" {
			return v1.PodPending
		}
		return in.Previous.Phase
	}
	return p
}

// anyRunning tells whether a container of the pod runs, a sidecar or an
// ephemeral one perhaps.
func anyRunning(s *v1.PodStatus) bool {
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].State.Running != nil {
				return true
			}
		}
	}
	return false
}

// livePhase is what the containers alone say.
func livePhase(in Input, s *v1.PodStatus) v1.PodPhase {
	if p, decided := initPhase(in, s); decided {
		return p
	}
	var running, waiting, failed, succeeded, back int
	for i := range s.InitContainerStatuses {
		if s.InitContainerStatuses[i].State.Running != nil {
			running++ // a sidecar: the pod is not over before it is
		}
	}
	for i := range s.ContainerStatuses {
		c := &s.ContainerStatuses[i]
		t := c.State.Terminated
		switch {
		case c.State.Running != nil:
			running++
		case t == nil && c.LastTerminationState.Terminated != nil:
			t = c.LastTerminationState.Terminated // waiting to be started again
			fallthrough
		case t != nil:
			if t.ExitCode == 0 {
				succeeded++
			} else {
				failed++
			}
			if comesBack(in, &in.Pod.Spec.Containers[i], t) {
				back++
			}
		default:
			waiting++
		}
	}
	over := in.Phase >= phase.Terminated
	switch {
	case waiting > 0 && !over:
		return v1.PodPending
	case running > 0:
		return v1.PodRunning
	case over && (failed > 0 || waiting > 0):
		return v1.PodFailed
	case over:
		return v1.PodSucceeded
	case failed+succeeded == 0:
		return v1.PodPending
	case back > 0:
		return v1.PodRunning
	case failed == 0:
		return v1.PodSucceeded
	}
	return v1.PodFailed
}

// comesBack tells whether a container that ended is on its way to be started
// again: by its own rules or policy, the pod's, or because all are.
func comesBack(in Input, spec *v1.Container, t *v1.ContainerStateTerminated) bool {
	if cur := in.Observed.Container(spec.Name); cur != nil && (in.Restarts[cur.ID] || cur.Round < in.round) {
		return true
	}
	return plan.ShouldRestart(in.Pod, spec, false, t.ExitCode)
}

func terminal(p v1.PodPhase) bool { return p == v1.PodSucceeded || p == v1.PodFailed }

// initPhase decides while init containers are at work.
func initPhase(in Input, s *v1.PodStatus) (v1.PodPhase, bool) {
	for i := range in.Pod.Spec.InitContainers {
		spec, c := &in.Pod.Spec.InitContainers[i], &s.InitContainerStatuses[i]
		if plan.Sidecar(spec) {
			// It holds the pod up until it has started once.
			if !*c.Started && c.State.Terminated == nil && c.LastTerminationState.Terminated == nil && in.Phase < phase.Terminated {
				return v1.PodPending, true
			}
			continue
		}
		t := c.State.Terminated
		if t == nil {
			t = c.LastTerminationState.Terminated
		}
		switch {
		case c.State.Running != nil:
			return v1.PodPending, true
		case t != nil && t.ExitCode == 0:
		case in.Phase >= phase.Terminated || t != nil && !comesBack(in, spec, t):
			return v1.PodFailed, true
		case t != nil: // it will run again; how far the pod was its containers tell
		default:
			return v1.PodPending, true
		}
	}
	return "", false
}
