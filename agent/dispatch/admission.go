package dispatch

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/worker"
)

// admit returns the worker of a new pod. A rejected one gets a worker, too,
// which never starts anything and says why. One for which others must end first
// gets none yet. A worker is known from here on: whoever looks for what a pod
// holds must not miss one that is about to start. The caller holds the lock.
func (d *Dispatcher) admit(w waiting) *worker.Worker {
	uid := string(w.pod.UID)
	d.told[uid] = w.pod
	d.begun(w.pod)
	made := func() *worker.Worker {
		d.workers[uid] = worker.New(d.config.Parts, d.config.Worker, w.pod, w.seen)
		return d.workers[uid]
	}
	if d.config.Admit == nil || leaving(w.pod) || d.runs(uid) {
		return made()
	}
	decision := d.decide(w.pod)
	if r := decision.Rejection; r != nil {
		d.config.Parts.Events.Pod(w.pod, v1.EventTypeWarning, r.Reason, "%s", r.Message)
		k := made()
		k.Stop(worker.Disrupting(w.pod, disruption.Stop{Reason: r.Reason, Message: r.StatusMessage()}))
		return k
	}
	if len(decision.Victims) == 0 {
		return made()
	}
	for _, v := range decision.Victims {
		if d.disrupt(v.Pod, v.Stop) && d.config.Preempted != nil {
			d.config.Preempted(string(decision.Preemptor))
		}
	}
	d.held[uid] = w
	return nil
}

// decide decides about a new pod. While it does nobody else is given what is
// free: a pod that grows needs it as well.
func (d *Dispatcher) decide(pod *v1.Pod) (decision admit.Decision) {
	allocations := d.config.Parts.Allocations
	if allocations == nil {
		return d.config.Admit(pod, d.active())
	}
	allocations.Admit(pod, func(others []*v1.Pod) bool {
		decision = d.config.Admit(pod, together(others, d.active()))
		return decision.Rejection == nil && len(decision.Victims) == 0
	})
	return decision
}

// together are the pods that were allocated something, as that is counted, and
// those whose workers have not told of it yet.
func together(counted, active []*v1.Pod) []*v1.Pod {
	out := slices.Clone(counted)
	for _, pod := range active {
		if !slices.ContainsFunc(counted, func(p *v1.Pod) bool { return p.UID == pod.UID }) {
			out = append(out, pod)
		}
	}
	return out
}

// leaving tells whether a pod is not to start anyway.
func leaving(pod *v1.Pod) bool {
	return pod.DeletionTimestamp != nil || pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// runs tells whether the runtime has the pod already: one that was admitted by
// an agent whose records are lost is not asked about again.
func (d *Dispatcher) runs(uid string) bool {
	o := d.config.Observations.Pod(uid)
	return o.Sandbox() != nil
}

// active are the pods that were admitted and have not ended.
func (d *Dispatcher) active() []*v1.Pod {
	var pods []*v1.Pod
	for _, w := range d.workers {
		if pod := w.Pod(); pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed && !w.Settled() {
			pods = append(pods, pod)
		}
	}
	return pods
}

// disrupt asks a pod's worker to end it, and tells of it. It is first if nobody
// has asked before.
func (d *Dispatcher) disrupt(pod *v1.Pod, s disruption.Stop) (first bool) {
	w := d.workers[string(pod.UID)]
	if w == nil {
		return false
	}
	first = !w.Stopping()
	if s.Event != nil && first {
		d.config.Parts.Events.Pod(pod, v1.EventTypeWarning, s.Event.Reason, "%s", s.Event.Message)
	}
	w.Stop(worker.Disrupting(pod, s))
	return first
}

// Disrupt asks a pod to end as failed, for a reason of the node's. One that is
// not here has ended.
func (d *Dispatcher) Disrupt(uid types.UID, s disruption.Stop) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w := d.workers[string(uid)]; w != nil {
		d.disrupt(w.Pod(), s)
	}
}

// Active are the pods that were admitted and have not ended.
func (d *Dispatcher) Active() []*v1.Pod {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.active()
}

// ByUID finds the worker of a pod; nil when there is none.
func (d *Dispatcher) ByUID(uid types.UID) *worker.Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.workers[string(uid)]
}

// Complete tells whether every source has reported, and every pod that the
// host knows has its worker.
func (d *Dispatcher) Complete() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.adopted
}

// roomMade tells Run that a pod has given back what it held.
func (d *Dispatcher) roomMade() {
	select {
	case d.settled <- struct{}{}:
	default: // it has not looked at the last one yet
	}
}

// retryHeld asks again about the pods that others made room for.
func (d *Dispatcher) retryHeld() (start []*worker.Worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := d.held
	d.held = map[string]waiting{}
	for _, held := range held {
		if w := d.admit(held); w != nil {
			start = append(start, w)
		}
	}
	return start
}
