package worker

import (
	"encoding/json"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/internal/failpoint"
)

// A resize goes through three places. What is wanted is the source's word.
// What is allocated is in the spec of the worker's pod, which is all that
// actions and the status see of it: it is on the disk before anything is done
// about it. What is actuated is set in the kernel; it is kept after each step,
// and a step that is done twice does no harm.

// ResizeCounts are what is counted of resizes (agent/metrics). Nothing in it
// waits.
type ResizeCounts interface {
	// ResizeRequested: a pod's source wants other resources than before, or the same.
	ResizeRequested(before, after *v1.Pod)
	// PodResized: it was tried to give the pod what it is allocated.
	PodResized(took time.Duration, success bool)
}

// resize is what the loop knows of its pod's resources.
type resize struct {
	wanted   *v1.Pod // what the source wants, where it is not what is allocated; nil: it is
	heard    bool    // the source has said what it wants since this agent started
	actuated allocation.Actuated
	// pending and inProgress are the pod's conditions; nil: it has none.
	pending, inProgress *v1.PodCondition
}

// restoreResize goes on with the resize of before a restart.
func (w *Worker) restoreResize(kept checkpoint.Pod) {
	r := &w.state.resize
	for i := range kept.Pod.Status.Conditions {
		switch c := kept.Pod.Status.Conditions[i]; c.Type {
		case v1.PodResizePending:
			r.pending = &c
		case v1.PodResizeInProgress:
			r.inProgress = &c
		}
	}
	if kept.BootID != w.config.BootID {
		return // nothing of it runs any more
	}
	r.actuated.Cgroup = kept.Actuated.Cgroup
	if kept.Actuated.Containers != nil {
		r.actuated.Containers = kept.Actuated.Containers
	}
}

// tellAllocation tells the node's ledger what the pod is now.
func (w *Worker) tellAllocation() {
	switch {
	case w.parts.Allocations == nil:
	case w.state.released:
		w.parts.Allocations.Remove(w.uid) // whatever becomes of its object
	default:
		w.parts.Allocations.Set(w.Pod(), w.Poke)
	}
}

// noteNew remembers what containers that were not seen before were started
// with, before that changes, and forgets those that are gone.
func (w *Worker) noteNew(obs *observed.Pod) {
	has := w.state.resize.actuated.Containers
	for id := range has {
		if obs.ByID(id) == nil {
			delete(has, id)
		}
	}
	for _, list := range [][]v1.Container{w.pod.Spec.InitContainers, w.pod.Spec.Containers} {
		for i := range list {
			c := obs.Container(list[i].Name)
			if c == nil || c.State == observed.Exited {
				continue
			}
			if _, known := has[c.ID]; !known {
				has[c.ID] = allocation.Effective(w.pod, &list[i])
				w.state.dirty = true
			}
		}
	}
}

// wanted returns the spec of what the source says, with the resources that the
// pod is allocated, and remembers where the source wants others.
func (w *Worker) wanted(news *v1.Pod) v1.PodSpec {
	r, allocated := &w.state.resize, allocation.Of(w.pod)
	before := w.pod
	if r.wanted != nil {
		before = r.wanted
	}
	if r.heard {
		w.config.Resizes.ResizeRequested(before, news)
	}
	r.heard, r.wanted = true, nil
	if allocated.Equal(allocation.Of(news)) {
		return news.Spec
	}
	if w.parts.Allocations != nil {
		r.wanted = news
	}
	return allocated.In(news).Spec
}

// allocateAgain is when an allocation that could not be kept is tried again.
const allocateAgain = time.Second

// allocate gives the pod the resources that it wants, if the node has them, and
// tells how far a resize has come.
func (w *Worker) allocate(obs *observed.Pod) (again time.Time) {
	r := &w.state.resize
	if w.parts.Allocations == nil {
		return time.Time{}
	}
	if w.state.phase >= phase.Terminating {
		w.withdraw()
		r.inProgress = nil
		return time.Time{}
	}
	if r.wanted == nil && r.heard {
		w.withdraw()
	}
	if r.wanted != nil {
		switch v := w.parts.Allocations.Resize(r.wanted); v.Outcome {
		case allocation.Allocated:
			if err := w.take(r.wanted); err != nil {
				w.log().Warn("a resize waits until it can be kept", "err", err)
				again = time.Now().Add(allocateAgain)
			}
		case allocation.Deferred:
			w.pend(v1.PodReasonDeferred, "ResizeDeferred", v.Message)
		case allocation.Infeasible:
			w.pend(v1.PodReasonInfeasible, "ResizeInfeasible", v.Message)
		}
	}
	w.progress(obs)
	return again
}

func (w *Worker) withdraw() {
	r := &w.state.resize
	if r.wanted != nil || r.pending != nil {
		w.parts.Allocations.Withdraw(w.uid)
	}
	r.wanted, r.pending = nil, nil
}

// take makes what was granted the pod's. It is on the disk before anything is
// done with it.
func (w *Worker) take(wanted *v1.Pod) error {
	r := &w.state.resize
	if r.actuated.Cgroup == nil {
		had := allocation.Of(w.pod)
		r.actuated.Cgroup = &had
	}
	before := w.Pod()
	next := allocation.Of(wanted).In(before)
	w.mu.Lock()
	w.pod = next
	w.mu.Unlock()
	if err := w.save(true); err != nil {
		w.mu.Lock()
		w.pod = before
		w.mu.Unlock()
		return err
	}
	failpoint.Hit("agent/resize-allocated")
	w.tellAllocation()
	delete(w.state.failures, plan.ResizeFailure)
	r.wanted, r.pending = nil, nil
	r.inProgress = &v1.PodCondition{Type: v1.PodResizeInProgress, ObservedGeneration: next.Generation}
	w.parts.Events.Pod(next, v1.EventTypeNormal, "ResizeStarted", "%s", resizeMessage("Pod resize started", next, next.Generation, ""))
	w.mu.Lock()
	w.refresh = true // volumes may show resources
	w.mu.Unlock()
	return nil
}

// pend tells why the pod does not have what it wants.
func (w *Worker) pend(reason, event, message string) {
	r := &w.state.resize
	old, generation := r.pending, r.wanted.Generation
	r.pending = &v1.PodCondition{Type: v1.PodResizePending, Reason: reason, Message: message, ObservedGeneration: generation}
	if old == nil || old.Reason != reason || old.ObservedGeneration != generation {
		w.parts.Events.Pod(w.pod, v1.EventTypeWarning, event, "%s", resizeMessage("Pod resize "+reason, r.wanted, generation, message))
	}
}

// progress tells that a resize is under way, or done.
func (w *Worker) progress(obs *observed.Pod) {
	r := &w.state.resize
	switch under := plan.Resizing(w.pod, obs, r.actuated); {
	case under && r.inProgress == nil:
		r.inProgress = &v1.PodCondition{Type: v1.PodResizeInProgress, ObservedGeneration: w.pod.Generation}
	case !under && r.inProgress != nil:
		w.parts.Events.Pod(w.pod, v1.EventTypeNormal, "ResizeCompleted", "%s",
			resizeMessage("Pod resize completed", w.pod, r.inProgress.ObservedGeneration, ""))
		r.inProgress = nil
	}
}

// resizeFailed tells why what is allocated is not set. It stays said until it
// is, or until something else is allocated.
func (w *Worker) resizeFailed(err error) {
	r, message := &w.state.resize, err.Error()
	if r.inProgress == nil || r.inProgress.Reason == v1.PodReasonError && r.inProgress.Message == message {
		return
	}
	r.inProgress = &v1.PodCondition{
		Type: v1.PodResizeInProgress, Reason: v1.PodReasonError, Message: message, ObservedGeneration: r.inProgress.ObservedGeneration,
	}
	w.parts.Events.Pod(w.pod, v1.EventTypeWarning, "ResizeError", "%s",
		resizeMessage("Pod resize error", w.pod, r.inProgress.ObservedGeneration, message))
}

// resizeMessage is the text of the kubelet's events (pkg/kubelet/events,
// podResizeMessage).
func resizeMessage(what string, pod *v1.Pod, generation int64, problem string) string {
	type allocated struct {
		Name      string                  `json:"name"`
		Resources v1.ResourceRequirements `json:"resources"`
	}
	summary := struct {
		InitContainers []allocated `json:"initContainers,omitempty"`
		Containers     []allocated `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{Generation: generation, Error: problem}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		summary.InitContainers = append(summary.InitContainers, allocated{c.Name, c.Resources})
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		summary.Containers = append(summary.Containers, allocated{c.Name, c.Resources})
	}
	text, err := json.Marshal(summary)
	if err != nil {
		return what // quantities always encode; without them the event still says what happened
	}
	return what + ": " + string(text)
}
