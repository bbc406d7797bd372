package dispatch

import (
	"context"
	"slices"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/worker"
)

// Admit decides whether a new pod may start beside the others, which were
// admitted, or are being, and have not ended. It waits for nobody: where somebody
// has to be asked who may take his time, it returns how, in place of a decision.
type Admit func(pod *v1.Pod, others []*v1.Pod) (admit.Decision, Ask)

// Ask asks, while other pods go on, and returns the Admit that knows the answer;
// its ctx ends when nobody wants the pod any more. Active tells which pods hold
// something now, the new one included.
type Ask func(ctx context.Context, active func() []*v1.Pod) Admit

// asking is a pod that is decided about when somebody has answered.
type asking struct {
	waiting
	ask    Ask
	cancel context.CancelFunc // nil: it was not begun yet
}

// admit returns the worker of a new pod. A rejected one gets a worker, too,
// which never starts anything and says why. One for which others must end first,
// or somebody must be asked, gets none yet. A worker is known from here on:
// whoever looks for what a pod holds must not miss one that is about to start.
// The caller holds the lock.
func (d *Dispatcher) admit(w waiting) *worker.Worker {
	uid := string(w.pod.UID)
	d.told[uid] = w.pod
	d.begun(w.pod)
	made := func() *worker.Worker {
		d.stopAsking(uid)
		d.workers[uid] = worker.New(d.config.Parts, d.config.Worker, w.pod, w.seen)
		return d.workers[uid]
	}
	if d.config.Admit == nil || leaving(w.pod) || d.runs(uid) {
		return made()
	}
	if a := d.asking[uid]; a != nil {
		a.pod = w.pod // its source may say something else of it
		return nil
	}
	decision, ask := d.decide(w)
	if ask != nil {
		d.asking[uid] = &asking{waiting: w, ask: ask}
		return nil
	}
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
	w.admit = nil // by then what it was given may be another's
	d.held[uid] = w
	return nil
}

// decide decides about a new pod. While it does nobody else is given what is
// free: a pod that grows needs it as well.
func (d *Dispatcher) decide(w waiting) (decision admit.Decision, ask Ask) {
	decider := w.admit
	if decider == nil {
		decider = d.config.Admit
	}
	allocations := d.config.Parts.Allocations
	if allocations == nil {
		return decider(w.pod, d.active())
	}
	allocations.Admit(w.pod, func(others []*v1.Pod) bool {
		decision, ask = decider(w.pod, together(others, d.active()))
		return ask == nil && decision.Rejection == nil && len(decision.Victims) == 0
	})
	return decision, ask
}

// askAll begins to ask for those pods for which nobody has begun yet.
func (d *Dispatcher) askAll(ctx context.Context, group *sync.WaitGroup) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.asking {
		if a.cancel != nil {
			continue
		}
		var asked context.Context
		asked, a.cancel = context.WithCancel(ctx)
		group.Go(func() {
			a.admit = a.ask(asked, d.Active)
			select {
			case d.answered <- a:
			case <-ctx.Done():
			}
		})
	}
}

// answer decides about a pod for which somebody was asked, unless that has been
// done otherwise meanwhile.
func (d *Dispatcher) answer(a *asking) *worker.Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	uid := string(a.pod.UID)
	if d.asking[uid] != a {
		return nil
	}
	d.stopAsking(uid)
	return d.admit(a.waiting)
}

// stopAsking ends what is asked for a pod. The caller holds the lock.
func (d *Dispatcher) stopAsking(uid string) {
	if a := d.asking[uid]; a != nil && a.cancel != nil {
		a.cancel()
	}
	delete(d.asking, uid)
}

// dropUndecided forgets the pods that nobody wants any more and that no worker
// has yet. The caller holds the lock.
func (d *Dispatcher) dropUndecided(wanted map[string]bool) {
	drop := func(uid string, pod *v1.Pod) {
		if wanted[uid] {
			return
		}
		d.stopAsking(uid)
		delete(d.held, uid)
		delete(d.told, uid)
		d.over(pod)
	}
	for uid, a := range d.asking {
		drop(uid, a.pod)
	}
	for uid, h := range d.held {
		drop(uid, h.pod)
	}
}

// undecided are the pods that no worker has yet and that hold a place.
func (d *Dispatcher) undecided() []*v1.Pod {
	var pods []*v1.Pod
	for _, a := range d.asking {
		pods = append(pods, a.pod)
	}
	for _, h := range d.held {
		pods = append(pods, h.pod)
	}
	return pods
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

// active are the pods that were admitted, or are being, and have not ended.
func (d *Dispatcher) active() []*v1.Pod {
	var pods []*v1.Pod
	for _, a := range d.asking {
		pods = append(pods, a.pod)
	}
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

// Active are the pods that were admitted, or are being, and have not ended.
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
