// Package worker is the life of one pod on this node: an actor with a mailbox.
//
// A Worker is the only one that starts or kills anything of its pod. Others
// (the source, a deadline, an eviction, the user) send it requests. It looks at
// what is observed, asks agent/plan what to do, has agent/act do the first of
// it, looks again, and so on until there is nothing to do; then it sleeps until
// something changes. A pod that is stuck blocks only its own worker, and says
// where.
//
//	worker.go   mailbox and loop
//	step.go     one look, one decision, one action
//	stop.go     killing
//	vain.go     actions that do nothing
//	resize.go   what the pod is allocated and has
//	publish.go  status, checkpoint, termination messages
//	explain.go  what it is doing now
package worker

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/probe"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/csi/volume"
)

// Observations are what the runtime says of a pod.
type Observations interface {
	Pod(uid string) observed.Pod
	Refresh(ctx context.Context, uid string) (observed.Pod, error)
}

// Allocations tell what the node has given to its pods.
type Allocations interface {
	// Admit adds a new pod if check lets it, which is given all others.
	Admit(pod *v1.Pod, check func(others []*v1.Pod) bool) bool
	// Set tells what a pod is allocated and has. Wake is called when the answer
	// to Resize has changed.
	Set(pod *v1.Pod, wake func())
	// Resize asks for other resources for a pod, or what has become of that.
	Resize(wanted *v1.Pod) allocation.Verdict
	Withdraw(podUID string)
	Remove(podUID string)
}

// Counts are what is counted of pods (agent/metrics). Nothing in it waits.
type Counts interface {
	// PodBegun: a pod has got its worker; its source told of it at seen.
	PodBegun(pod *v1.Pod, seen time.Time)
	// PodChanged: a pod has another status. Seen is zero for a pod of an agent
	// before this one.
	PodChanged(before, after *v1.Pod, seen time.Time)
	// PodSynced: the worker has done what there was to do. Operation is "create",
	// "update", "sync" or "terminated".
	PodSynced(operation string, took time.Duration)
	// ContainerStarted: it was tried to; code is why it could not be, or empty.
	ContainerStarted(pod *v1.Pod, container, code string)
}

// uncounted is for who counts nothing.
type uncounted struct{}

func (uncounted) PodBegun(*v1.Pod, time.Time)              {}
func (uncounted) PodChanged(_, _ *v1.Pod, _ time.Time)     {}
func (uncounted) PodSynced(string, time.Duration)          {}
func (uncounted) ContainerStarted(_ *v1.Pod, _, _ string)  {}
func (uncounted) ResizeRequested(_, _ *v1.Pod)             {}
func (uncounted) PodResized(_ time.Duration, success bool) {}

// Parts are what workers share.
type Parts struct {
	Actor        *act.Actor
	Observations Observations
	Events       *event.Recorder
	Checkpoints  *checkpoint.Store
	// Allocations decides about resizes; nil: pods are not resized.
	Allocations Allocations
}

// Config of a Worker.
type Config struct {
	Backoff     plan.Backoff
	KeepDead    int // dead containers of a name that stay beside the newest, at least one
	ProbeExec   probe.Exec
	HostIPs     []string
	RuntimeName string
	BootID      string
	// Health tells of the devices of a container; nil: nobody knows of any.
	Health func(pod *v1.Pod, container string) []v1.ResourceStatus
	// Probed is told of each probe; it must not wait. nil: nobody counts.
	Probed func(pod *v1.Pod, container string, kind probe.Kind, result string, took time.Duration)
	// Counts and Resizes count; nil: nobody does.
	Counts  Counts
	Resizes ResizeCounts
	// NotStarted is told when a sandbox or a container could not be started, once
	// until it is; it must not wait. nil: nobody counts.
	NotStarted func(pod *v1.Pod)
	// Ended is told of each container that ended: kind is container, init_container
	// or ephemeral_container. It must not wait. nil: nobody counts.
	Ended func(kind string, how *v1.ContainerStateTerminated)
	// Report is called after the pod's status changed, or Settled did. It must
	// not wait for anything; nil: nobody wants to know.
	Report func(Report)
	Log    *slog.Logger
}

// Report is what others are told of a pod.
type Report struct {
	Pod *v1.Pod
	// Settled: nothing of the pod runs, and what it held is given back. Its
	// object may be deleted.
	Settled bool
	// Pulled is how long images of the pod were pulled.
	Pulled time.Duration
}

// Worker is one pod's actor. Create it with New or Restore, run it with Run;
// its other methods may be called by anyone at any time.
type Worker struct {
	parts  Parts
	config Config
	uid    string
	seen   time.Time     // when its source told of it; zero: an agent before this one knew it
	wake   chan struct{} // capacity one: something changed
	steps  *timeline.Log
	done   chan struct{}
	// released is closed when nothing of the pod runs and what it held is
	// given back.
	released     chan struct{}
	releasedOnce sync.Once

	// mail is what others have told the worker.
	mu        sync.Mutex
	pod       *v1.Pod // with the last published status
	news      *v1.Pod // what its source says since; nil: nothing new
	stop      *checkpoint.Stop
	forgotten bool
	restored  bool               // nothing has been heard from the source since Restore
	refresh   bool               // objects that volumes are made from have changed
	interrupt context.CancelFunc // of the action under way; nil when a stop must not interrupt it

	// state is the loop's own.
	state state
}

// state is touched by the loop alone.
type state struct {
	phase     phase.Phase
	mounted   map[string]volume.Mounted // nil: not set up by this agent yet
	released  bool
	probes    *probe.Set
	previous  map[string]probe.Result // from before a restart
	failures  map[string]plan.Failure
	restarts  map[string]bool // containers killed to be started again, by ID
	past      map[string]plan.Past
	waiting   map[string]plan.Waiting
	messages  map[string]string // termination messages by container ID
	ending    map[string]bool   // IDs of containers that are being killed and sandboxes that were stopped
	cleanup   int               // failed attempts to clean up in a row
	unseen    bool              // what the last action did was not observed yet
	vain      vain
	updated   time.Time // when an image was changed last
	remount   time.Time // when volumes are to be refreshed; zero: they are fresh
	resize    resize
	operation string // what there is to do, in the words of Counts; empty: nothing new
	kept      mail   // as in the checkpoint
	dirty     bool   // the phase is not as in the checkpoint
}

// mail is what others want of the pod's end.
type mail struct {
	stop      *checkpoint.Stop
	forgotten bool
}

// New returns the worker of a pod that this node has not seen before.
func New(parts Parts, config Config, pod *v1.Pod, seen time.Time) *Worker {
	w := newWorker(parts, config, pod)
	w.steps = &timeline.Log{}
	w.steps.Span(timeline.Queued, "", seen, time.Now())
	w.seen, w.state.operation = seen, "create"
	w.config.Counts.PodBegun(pod, seen)
	w.tellAllocation()
	// A pod that ran here before, of which nothing was kept, goes on counting.
	pastOf(&pod.Status, w.state.past)
	if over(pod) {
		w.Stop(Killing(pod))
	}
	return w
}

// Restore returns the worker of a pod that an agent before this one has kept.
// What containers run is observed; a pod that runs is left alone.
func Restore(parts Parts, config Config, kept checkpoint.Pod) *Worker {
	w := newWorker(parts, config, kept.Pod)
	w.steps = timeline.Restore(kept.Steps, time.Now())
	if now := time.Now(); kept.Stop != nil && kept.Stop.At.After(now) {
		stop := *kept.Stop
		stop.At, kept.Stop = now, &stop // the clock was set back
	}
	w.state.phase, w.stop, w.forgotten = kept.Phase, kept.Stop, kept.Forgotten
	w.state.kept = mail{stop: kept.Stop, forgotten: kept.Forgotten}
	w.state.previous = kept.Probes
	maps.Copy(w.state.past, kept.Past)
	w.restored = true
	w.restoreResize(kept)
	w.tellAllocation()
	if kept.BootID != config.BootID {
		// The host has booted since: what ran is no longer the runtime's to know.
		pastOf(&kept.Pod.Status, w.state.past)
	}
	return w
}

// pastOf adds what a status says of containers that existed.
func pastOf(s *v1.PodStatus, past map[string]plan.Past) {
	for _, list := range [][]v1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			c := &list[i]
			if c.ContainerID == "" {
				continue
			}
			p := plan.Past{Attempt: uint32(c.RestartCount)}
			end := c.State.Terminated
			if end == nil && c.State.Waiting != nil {
				end = c.LastTerminationState.Terminated // it was waiting to be started again
			}
			if end != nil {
				p.Exited, p.ExitCode = true, end.ExitCode
			}
			past[c.Name] = p
		}
	}
}

func newWorker(parts Parts, config Config, pod *v1.Pod) *Worker {
	if config.Counts == nil {
		config.Counts = uncounted{}
	}
	if config.Resizes == nil {
		config.Resizes = uncounted{}
	}
	return &Worker{
		parts: parts, config: config, uid: string(pod.UID), pod: pod,
		wake: make(chan struct{}, 1), done: make(chan struct{}), released: make(chan struct{}),
		state: state{
			failures: map[string]plan.Failure{},
			restarts: map[string]bool{},
			past:     map[string]plan.Past{},
			messages: map[string]string{},
			ending:   map[string]bool{},
			resize:   resize{actuated: allocation.Actuated{Containers: map[string]v1.ResourceRequirements{}}},
		},
	}
}

// Poke tells the worker that something it looks at has changed.
func (w *Worker) Poke() {
	select {
	case w.wake <- struct{}{}:
	default: // it has not looked at the last poke yet
	}
}

// ObjectsChanged tells the worker that ConfigMaps, Secrets or claims changed:
// volumes are refreshed, and what failed for want of one is tried again.
func (w *Worker) ObjectsChanged() {
	w.mu.Lock()
	w.refresh = true
	w.mu.Unlock()
	w.Poke()
}

// Update tells the worker what its source says of the pod now: the same pod
// with other labels, one that is being deleted, one with a container more.
func (w *Worker) Update(pod *v1.Pod) {
	w.mu.Lock()
	w.news = pod
	if w.restored {
		// What its volumes are made from may have changed while no agent ran.
		w.restored, w.refresh = false, true
	}
	ended := terminal(w.pod.Status.Phase)
	w.mu.Unlock()
	if over(pod) && !ended {
		w.Stop(Killing(pod))
	}
	w.Poke()
}

// over tells whether a pod's source wants it to end: it is being deleted, or
// somebody has given it a phase that nothing runs in.
func over(pod *v1.Pod) bool { return pod.DeletionTimestamp != nil || terminal(pod.Status.Phase) }

// Stop asks the pod to end. A further request can only shorten the grace
// period; the first reason stands.
func (w *Worker) Stop(s checkpoint.Stop) {
	w.mu.Lock()
	shorter := w.stop == nil || s.Deadline().Before(w.stop.Deadline())
	switch {
	case w.stop == nil:
		w.stop = &s
	case shorter:
		stop := *w.stop
		stop.At, stop.Grace = s.At, s.Grace
		w.stop = &stop
	}
	if shorter && w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.Poke()
}

// Forget tells the worker that no source wants its pod any more: it ends it,
// gracefully, and removes every trace. Done is closed when nothing is left.
func (w *Worker) Forget() {
	w.mu.Lock()
	w.forgotten = true
	pod, stopped := w.pod, w.stop != nil
	w.mu.Unlock()
	if stopped {
		w.Poke()
		return
	}
	w.Stop(Killing(pod))
}

// Killing is the request to end a pod with its own grace period from now on.
func Killing(pod *v1.Pod) checkpoint.Stop {
	return checkpoint.Stop{At: time.Now(), Grace: graceOf(pod), Reason: "Killing"}
}

// Disrupting is the request to end a pod as failed that the node makes for
// reasons of its own.
func Disrupting(pod *v1.Pod, s disruption.Stop) checkpoint.Stop {
	stop := Killing(pod)
	stop.Reason, stop.Message = s.Reason, s.Message
	stop.Failed = &plan.Waiting{Reason: s.Reason, Message: s.Message}
	stop.Conditions = s.Conditions
	if s.Grace != nil {
		stop.Grace = *s.Grace
	}
	return stop
}

// Released is closed when nothing of the pod runs any more and what it held
// is given back.
func (w *Worker) Released() <-chan struct{} { return w.released }

// Settled tells whether Released is closed.
func (w *Worker) Settled() bool {
	select {
	case <-w.released:
		return true
	default:
		return false
	}
}

// Stopping tells whether the pod was asked to end.
func (w *Worker) Stopping() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stop != nil
}

// Done is closed when the worker has finished its pod.
func (w *Worker) Done() <-chan struct{} { return w.done }

// Forgotten tells whether no source wants the pod any more.
func (w *Worker) Forgotten() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.forgotten
}

// Pod returns the pod with its last status. It is not changed any more.
func (w *Worker) Pod() *v1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pod
}

// Run lives the pod's life. It returns nil when the pod is finished, and ctx's
// error when the agent ends before.
func (w *Worker) Run(ctx context.Context) error {
	defer w.endProbes()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		began := time.Now()
		wake := w.settle(ctx)
		w.synced(time.Since(began))
		if w.state.phase == phase.Finished {
			w.tellAllocation()
			close(w.done)
			return nil
		}
		timer.Stop()
		if !wake.IsZero() {
			timer.Reset(max(0, time.Until(wake)))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		case <-w.probesChanged():
		case <-timer.C:
		}
	}
}

// synced counts what was done since something changed.
func (w *Worker) synced(took time.Duration) {
	operation := w.state.operation
	switch {
	case w.state.phase == phase.Finished:
		operation = "terminated"
	case operation == "":
		operation = "sync"
	}
	w.state.operation = ""
	w.config.Counts.PodSynced(operation, took)
}

// settle acts until there is nothing to do now, and returns when to look
// again without being told to; zero is never.
func (w *Worker) settle(ctx context.Context) time.Time {
	for ctx.Err() == nil {
		if w.state.unseen {
			// Decided on what was known before the last action, the next would
			// be the same again.
			if _, err := w.parts.Observations.Refresh(ctx, w.uid); err != nil {
				if ctx.Err() == nil {
					w.log().Warn("the runtime cannot be asked about a pod", "err", err)
				}
				return time.Now().Add(time.Second)
			}
			w.state.unseen = false
		}
		acted, wake := w.step(ctx)
		if !acted {
			return wake
		}
		w.state.unseen = true
	}
	return time.Time{}
}

func (w *Worker) log() *slog.Logger {
	return w.config.Log.With("pod", w.pod.Namespace+"/"+w.pod.Name, "uid", w.uid)
}
