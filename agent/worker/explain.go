package worker

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/timeline"
)

// Explanation answers why a pod is where it is.
type Explanation struct {
	Pod   *v1.Pod         `json:"pod"`
	Phase string          `json:"phase"` // of the life cycle: starting, running, ...
	Steps []timeline.Step `json:"steps"`
	// Stuck names what holds the pod up; nil: nothing does.
	Stuck *Stuck `json:"stuck,omitempty"`
}

// Stuck is the step a pod waits in.
type Stuck struct {
	Step      string    `json:"step"`
	Container string    `json:"container,omitempty"`
	Since     time.Time `json:"since"`
	Reason    string    `json:"reason,omitempty"`
	Message   string    `json:"message,omitempty"`
}

// Explain may be called while the worker is in the middle of something: that
// is when it is wanted most.
func (w *Worker) Explain() Explanation {
	w.mu.Lock()
	pod, stop := w.pod, w.stop
	w.mu.Unlock()
	e := Explanation{Pod: pod, Steps: w.steps.Steps(), Phase: w.lifePhase(pod, stop != nil)}
	e.Stuck = stuck(e.Steps, &pod.Status)
	return e
}

// lifePhase says where the pod stands, from what was published: the loop's own
// state is not for others to read.
func (w *Worker) lifePhase(pod *v1.Pod, stopping bool) string {
	switch {
	case terminal(pod.Status.Phase):
		return phase.Terminated.String()
	case stopping:
		return phase.Terminating.String()
	case pod.Status.Phase == v1.PodRunning:
		return phase.Running.String()
	}
	return phase.Starting.String()
}

// stuck finds the step under way; without one, the first container that waits.
func stuck(steps []timeline.Step, s *v1.PodStatus) *Stuck {
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].End.IsZero() {
			return &Stuck{Step: steps[i].Name, Container: steps[i].Container, Since: steps[i].Start}
		}
	}
	if ready(s) || terminal(s.Phase) {
		return nil
	}
	since := time.Time{}
	var lastError string
	for i := len(steps) - 1; i >= 0; i-- {
		if steps[i].Error != "" {
			since, lastError = steps[i].End, steps[i].Name
			break
		}
	}
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if wait := list[i].State.Waiting; wait != nil {
				return &Stuck{Step: stepName(wait.Reason, lastError), Container: list[i].Name, Since: since, Reason: wait.Reason, Message: wait.Message}
			}
			if list[i].State.Running != nil && !list[i].Ready {
				return &Stuck{Step: "readiness", Container: list[i].Name, Since: list[i].State.Running.StartedAt.Time, Reason: "ContainersNotReady", Message: "the container runs and is not ready yet"}
			}
		}
	}
	return nil
}

func stepName(reason, lastError string) string {
	switch reason {
	case "CrashLoopBackOff":
		return timeline.Backoff
	case "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError":
		return timeline.Pull
	case "CreateContainerConfigError", "CreateContainerError":
		return timeline.Create
	case "RunContainerError":
		return timeline.Start
	}
	if lastError != "" {
		return lastError
	}
	return "waiting"
}
