// Package dispatch gives each pod UID its worker. It compares what the sources
// want with the workers there are: a pod without a worker gets one, a worker
// whose pod nobody wants is told so, and what an agent before this one left
// behind (a checkpoint, a sandbox, volumes, a cgroup) gets a worker that ends
// it. It decides who lives; how is the worker's business.
package dispatch

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/worker"
)

// Observations tells what the runtime has, once it is synced.
type Observations interface {
	Synced() <-chan struct{}
	UIDs() []string
	Pod(uid string) observed.Pod
}

// Leftovers are what pods hold outside the runtime, found from the host alone.
type Leftovers interface {
	// Orphans lists the UIDs of pods that have something left.
	Orphans() ([]string, error)
}

// Desired is what all sources together want.
type Desired struct {
	Pods []*v1.Pod
	// Gone are pods that were deleted since the last Desired, as they were last:
	// with the grace period that they were deleted with.
	Gone []*v1.Pod
	// Complete: every source has reported. Before that nothing is ended.
	Complete bool
	// Local: every source of this host has. That is enough to be in control: an
	// API server may be away for long.
	Local bool
	// Objects changed since the last Desired: volumes are to be refreshed.
	Objects bool
	At      time.Time
}

// Config of a Dispatcher.
type Config struct {
	Parts        worker.Parts
	Worker       worker.Config
	Observations Observations
	Leftovers    []Leftovers
	// Admit decides whether new pods may start; nil: every pod may.
	Admit Admit
	// Again tells whether a pod from a manifest that has ended runs once more. It
	// is asked when a pod has ended, and by Retry; nil: none does.
	Again func(pod *v1.Pod) bool
	// Begun is called with each pod before it gets a worker, and when its source
	// says something else of it; Ended with one of which nothing is left. nil:
	// nobody wants to know.
	Begun, Ended func(pod *v1.Pod)
	// Preempted is told of each pod that is ended to make room for another, and
	// of what that wants; nil: nobody counts.
	Preempted func(resource string)
	Counts    Counts // nil: nobody counts
	Log       *slog.Logger
}

// Dispatcher owns the workers.
type Dispatcher struct {
	config  Config
	desired chan Desired // capacity one: the newest
	ended   chan string  // UIDs of workers that are done
	inHand  chan struct{}
	strange chan struct{} // capacity one: strangers has something
	settled chan struct{} // capacity one: a pod has given back what it held
	// answered has the pods for which somebody was asked.
	answered chan *asking

	mu        sync.Mutex
	workers   map[string]*worker.Worker // by UID
	told      map[string]*v1.Pod        // by UID: what its worker was last told of an API server's pod
	held      map[string]waiting        // by UID: admitted once those have ended that make room for it
	asking    map[string]*asking        // by UID: somebody is asked before they are decided about
	waiting   map[string]waiting        // by full name: static pods whose name an ending pod still has
	adopted   bool                      // what was left behind has workers
	strangers map[string]bool           // UIDs that the runtime showed and no worker has
	strays    map[string]bool           // UIDs with a worker that no source has told of
}

// waiting is a pod that starts once its predecessor of the same name is gone.
type waiting struct {
	pod  *v1.Pod
	seen time.Time
	// admit knows what others have answered; nil: nobody was asked.
	admit Admit
}

// New returns a Dispatcher; Run starts it.
func New(c Config) *Dispatcher {
	d := &Dispatcher{
		config: c, desired: make(chan Desired, 1), ended: make(chan string), inHand: make(chan struct{}), strange: make(chan struct{}, 1), settled: make(chan struct{}, 1),
		answered: make(chan *asking), asking: map[string]*asking{},
		held: map[string]waiting{}, workers: map[string]*worker.Worker{}, told: map[string]*v1.Pod{}, waiting: map[string]waiting{}, strangers: map[string]bool{}, strays: map[string]bool{},
	}
	report := c.Worker.Report
	d.config.Worker.Report = func(r worker.Report) {
		if r.Settled {
			d.roomMade()
		}
		if report != nil {
			report(r)
		}
	}
	return d
}

// InControl is closed once every pod of before this agent has its worker again
// and this host's sources were applied for the first time.
func (d *Dispatcher) InControl() <-chan struct{} { return d.inHand }

// Want replaces what is wanted. It never blocks: a newer state takes the place
// of one that was not looked at yet.
func (d *Dispatcher) Want(ctx context.Context, next Desired) {
	for {
		select {
		case d.desired <- next:
			return
		case <-ctx.Done():
			return
		case old := <-d.desired:
			next.Objects = next.Objects || old.Objects
			next.Gone = slices.Concat(old.Gone, next.Gone)
		}
	}
}

// Observed tells the worker of a pod that its observation changed. A pod
// without one is looked at by Run: what its worker had asked for may have come
// up after the worker was done.
func (d *Dispatcher) Observed(uid string) {
	d.mu.Lock()
	w := d.workers[uid]
	if w == nil {
		d.strangers[uid] = true
	}
	d.mu.Unlock()
	if w != nil {
		w.Poke()
		return
	}
	select {
	case d.strange <- struct{}{}:
	default:
	}
}

// leave is how long workers get to notice that the agent ends. One that hangs
// in a system call never does, and loses nothing by being left.
const leave = 5 * time.Second

// Run dispatches until ctx ends, and then waits for its workers, who leave
// their pods running.
func (d *Dispatcher) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer d.await(&running)
	start := func(w *worker.Worker) {
		uid := string(w.Pod().UID)
		d.mu.Lock()
		d.workers[uid] = w
		d.mu.Unlock()
		running.Go(func() {
			if w.Run(ctx) == nil {
				select {
				case d.ended <- uid:
				case <-ctx.Done():
				}
			}
		})
	}
	select {
	case <-d.config.Observations.Synced():
	case <-ctx.Done():
		return ctx.Err()
	}
	for _, w := range d.restore() {
		d.begun(w.Pod())
		start(w)
	}
	inControl := sync.OnceFunc(func() { close(d.inHand) })
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case want := <-d.desired:
			for _, w := range d.apply(want) {
				start(w)
			}
			if want.Complete && !d.Complete() {
				d.adopt(d.leftBehind(), start)
				d.mu.Lock()
				d.adopted = true
				d.mu.Unlock()
			}
			if want.Local {
				inControl()
			}
		case <-d.strange:
			if d.Complete() {
				d.adopt(d.strayed(), start)
			}
		case <-d.settled:
			d.runAgain()
			for _, w := range d.retryHeld() {
				start(w)
			}
		case a := <-d.answered:
			if w := d.answer(a); w != nil {
				start(w)
			}
		case uid := <-d.ended:
			if w := d.remove(uid); w != nil {
				start(w)
			}
		}
		d.askAll(ctx, &running)
	}
}

// await waits for workers to leave their loops.
func (d *Dispatcher) await(running *sync.WaitGroup) {
	left := make(chan struct{})
	go func() {
		running.Wait()
		close(left)
	}()
	select {
	case <-left:
	case <-time.After(leave):
		d.config.Log.Warn("a pod's worker hangs; the agent ends without it")
	}
}

// restore makes workers of what an agent before this one kept.
func (d *Dispatcher) restore() []*worker.Worker {
	kept, errs := d.config.Parts.Checkpoints.Load()
	for _, err := range errs {
		d.config.Log.Error("a pod's history is lost", "err", err)
	}
	out := make([]*worker.Worker, 0, len(kept))
	for _, k := range kept {
		out = append(out, worker.Restore(d.config.Parts, d.config.Worker, k))
	}
	return out
}

// apply compares what is wanted with the workers and returns the new ones.
func (d *Dispatcher) apply(want Desired) (start []*worker.Worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := make(map[string]bool, len(want.Pods))
	for _, pod := range want.Pods {
		wanted[string(pod.UID)] = true
	}
	for _, pod := range want.Gone {
		if w := d.workers[string(pod.UID)]; w != nil && !w.Forgotten() {
			d.update(w, pod)
		}
	}
	for uid, w := range d.workers {
		switch {
		case want.Complete && !wanted[uid] && !w.Forgotten():
			w.Forget()
		case wanted[uid] && want.Objects:
			w.ObjectsChanged()
		}
	}
	clear(d.waiting)
	d.dropUndecided(wanted)
	clear(d.held)
	// For static pods alone: among its own the API server sees to it that names
	// are taken once, and a state of it comes with every change of a pod.
	names := sync.OnceValue(func() map[string]bool { return d.names(wanted) })
	for _, pod := range want.Pods {
		switch w := d.workers[string(pod.UID)]; {
		case w != nil && !w.Forgotten():
			d.update(w, pod)
		case w == nil && !manifest.Static(pod):
			if w := d.admit(waiting{pod: pod, seen: want.At}); w != nil {
				start = append(start, w)
			}
		case w != nil || names()[fullName(pod)]:
			// The same UID wanted again while it ends, or another of its name:
			// two pods of one name never overlap.
			d.waiting[fullName(pod)] = waiting{pod: pod, seen: want.At}
		default:
			names()[fullName(pod)] = true
			if w := d.admit(waiting{pod: pod, seen: want.At}); w != nil {
				start = append(start, w)
			}
		}
	}
	return start
}

// update tells a worker what the API server says of its pod, once. A static pod
// does not change: with other content it is another pod.
func (d *Dispatcher) update(w *worker.Worker, pod *v1.Pod) {
	if uid := string(pod.UID); !manifest.Static(pod) && d.told[uid] != pod {
		d.told[uid] = pod
		d.begun(pod)
		w.Update(pod)
	}
}

func (d *Dispatcher) begun(pod *v1.Pod) {
	if d.config.Begun != nil {
		d.config.Begun(pod)
	}
}

func (d *Dispatcher) over(pod *v1.Pod) {
	if d.config.Ended != nil {
		d.config.Ended(pod)
	}
}

// ObjectsChanged tells a pod's worker that what its volumes are made from has
// changed.
func (d *Dispatcher) ObjectsChanged(uid types.UID) {
	d.mu.Lock()
	w := d.workers[string(uid)]
	d.mu.Unlock()
	if w != nil {
		w.ObjectsChanged()
	}
}

// names are the full names that are not free: those of pods with a worker, and
// those of pods that run, are wanted by nobody and have no worker yet: adopt gives
// them one. Its caller holds mu.
func (d *Dispatcher) names(wanted map[string]bool) map[string]bool {
	names := map[string]bool{}
	for _, w := range d.workers {
		names[fullName(w.Pod())] = true
	}
	for _, uid := range d.config.Observations.UIDs() {
		if d.workers[uid] == nil && !wanted[uid] {
			o := d.config.Observations.Pod(uid)
			names[o.Namespace+"/"+o.Name] = true
		}
	}
	return names
}

// remove drops a worker that is done and returns its successor in name, if one waits.
func (d *Dispatcher) remove(uid string) *worker.Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := d.workers[uid]
	delete(d.workers, uid)
	delete(d.told, uid)
	delete(d.strays, uid)
	d.config.Parts.Actor.Images.Forget(w.Pod())
	d.roomMade()
	d.over(w.Pod())
	name := fullName(w.Pod())
	next, ok := d.waiting[name]
	if !ok {
		return nil
	}
	delete(d.waiting, name)
	if string(next.pod.UID) == uid {
		d.restarted(true)
	}
	return d.admit(next)
}

// Retry looks again whether pods that have ended run once more, or that were
// held can start.
func (d *Dispatcher) Retry() { d.roomMade() }

// runAgain forgets the pods that run once more: each gets a new worker when
// nothing of it is left.
func (d *Dispatcher) runAgain() {
	if d.config.Again == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.workers {
		pod := w.Pod()
		_, followed := d.waiting[fullName(pod)]
		if followed || !w.Settled() || w.Forgotten() || !manifest.Static(pod) || !d.config.Again(pod) {
			continue
		}
		anew := *pod
		anew.Status = v1.PodStatus{Phase: v1.PodPending}
		d.waiting[fullName(pod)] = waiting{pod: &anew, seen: time.Now()}
		w.Forget()
	}
}

// leftBehind are all pods that the runtime, the volumes or the cgroups know.
func (d *Dispatcher) leftBehind() map[string]*v1.Pod {
	orphans := map[string]*v1.Pod{}
	for _, uid := range d.config.Observations.UIDs() {
		o := d.config.Observations.Pod(uid)
		orphans[uid] = orphan(uid, o.Namespace, o.Name, o.Containers)
	}
	for _, l := range d.config.Leftovers {
		uids, err := l.Orphans()
		if err != nil {
			d.config.Log.Error("leftovers of pods cannot be looked for; they are at the next start", "err", err)
		}
		for _, uid := range uids {
			if orphans[uid] == nil {
				orphans[uid] = orphan(uid, "unknown", uid, nil)
			}
		}
	}
	return orphans
}

// strayed are pods that the runtime has shown since and that are still there.
func (d *Dispatcher) strayed() map[string]*v1.Pod {
	d.mu.Lock()
	strangers := d.strangers
	d.strangers = map[string]bool{}
	d.mu.Unlock()
	orphans := map[string]*v1.Pod{}
	for uid := range strangers {
		if o := d.config.Observations.Pod(uid); o.Sandbox() != nil {
			orphans[uid] = orphan(uid, o.Namespace, o.Name, o.Containers)
		}
	}
	return orphans
}

// adopt gives those of the pods that nobody has a worker that ends them. It is
// called with every source heard and the runtime fully observed, never before.
func (d *Dispatcher) adopt(orphans map[string]*v1.Pod, start func(*worker.Worker)) {
	for uid, pod := range orphans {
		d.mu.Lock()
		known := d.workers[uid] != nil ||
			slices.ContainsFunc(slices.Concat(d.waitingPods(), d.undecided()), func(p *v1.Pod) bool { return string(p.UID) == uid })
		d.mu.Unlock()
		if known {
			continue
		}
		d.config.Log.Info("a pod that no source knows is ended", "pod", pod.Namespace+"/"+pod.Name, "uid", uid)
		d.found(uid)
		w := worker.New(d.config.Parts, d.config.Worker, pod, time.Now())
		w.Forget()
		start(w)
	}
}

func (d *Dispatcher) waitingPods() []*v1.Pod {
	var pods []*v1.Pod
	for _, w := range d.waiting {
		pods = append(pods, w.pod)
	}
	return pods
}

// orphan is all that is known of a pod that no source and no checkpoint has.
func orphan(uid, namespace, name string, containers []observed.Container) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}}
	for i := range containers {
		c := &containers[i]
		if slices.ContainsFunc(pod.Spec.Containers, func(o v1.Container) bool { return o.Name == c.Name }) {
			continue // an earlier run of it
		}
		pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: c.Name, Image: c.Image, Lifecycle: &v1.Lifecycle{PreStop: c.PreStop}})
		if c.GracePeriod != nil {
			pod.Spec.TerminationGracePeriodSeconds = c.GracePeriod
		}
	}
	return pod
}
