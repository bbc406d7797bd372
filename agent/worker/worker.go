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
//	publish.go  status, checkpoint, termination messages
//	explain.go  what it is doing now
package worker

import (
	"context"
	"log/slog"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/checkpoint"
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

// Parts are what workers share.
type Parts struct {
	Actor        *act.Actor
	Observations Observations
	Events       *event.Recorder
	Checkpoints  *checkpoint.Store
}

// Config of a Worker.
type Config struct {
	Backoff     plan.Backoff
	ProbeExec   probe.Exec
	HostIPs     []string
	RuntimeName string
	BootID      string
	// Changed is called with the pod after its status changed.
	Changed func(*v1.Pod)
	Log     *slog.Logger
}

// Worker is one pod's actor. Create it with New or Restore, run it with Run;
// its other methods may be called by anyone at any time.
type Worker struct {
	parts  Parts
	config Config
	uid    string
	wake   chan struct{} // capacity one: something changed
	steps  *timeline.Log
	done   chan struct{}

	// mail is what others have told the worker.
	mu        sync.Mutex
	pod       *v1.Pod // with the last published status
	stop      *checkpoint.Stop
	forgotten bool
	refresh   bool               // objects that volumes are made from have changed
	interrupt context.CancelFunc // of the action under way; nil when a stop must not interrupt it

	// state is the loop's own.
	state state
}

// state is touched by the loop alone.
type state struct {
	phase    phase.Phase
	mounted  map[string]volume.Mounted // nil: not set up by this agent yet
	released bool
	probes   *probe.Set
	previous map[string]probe.Result // from before a restart
	failures map[string]plan.Failure
	restarts map[string]bool
	attempts map[string]uint32
	waiting  map[string]plan.Waiting
	messages map[string]string // termination messages by container ID
	cleanup  int               // failed attempts to clean up in a row
	bootID   string
}

// New returns the worker of a pod that this node has not seen before.
func New(parts Parts, config Config, pod *v1.Pod, seen time.Time) *Worker {
	w := newWorker(parts, config, pod)
	w.steps = &timeline.Log{}
	w.steps.Span(timeline.Queued, "", seen, time.Now())
	return w
}

// Restore returns the worker of a pod that an agent before this one has kept.
// What containers run is observed; a pod that runs is left alone.
func Restore(parts Parts, config Config, kept checkpoint.Pod) *Worker {
	w := newWorker(parts, config, kept.Pod)
	w.steps = timeline.Restore(kept.Steps, time.Now())
	w.state.phase, w.stop = kept.Phase, kept.Stop
	w.state.previous = kept.Probes
	if kept.BootID != config.BootID {
		// The host has booted since: attempts are no longer the runtime's to know.
		for _, list := range [][]v1.ContainerStatus{kept.Pod.Status.InitContainerStatuses, kept.Pod.Status.ContainerStatuses} {
			for i := range list {
				if list[i].ContainerID != "" {
					w.state.attempts[list[i].Name] = uint32(list[i].RestartCount)
				}
			}
		}
	}
	return w
}

func newWorker(parts Parts, config Config, pod *v1.Pod) *Worker {
	return &Worker{
		parts: parts, config: config, uid: string(pod.UID), pod: pod,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		state: state{
			failures: map[string]plan.Failure{},
			restarts: map[string]bool{},
			attempts: map[string]uint32{},
			messages: map[string]string{},
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
	grace := int64(30)
	if s := w.pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = *s
	}
	stopped := w.stop != nil
	w.mu.Unlock()
	if stopped {
		w.Poke()
		return
	}
	w.Stop(checkpoint.Stop{At: time.Now(), Grace: grace, Reason: "Killing", Message: "Stopping container"})
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
		wake := w.settle(ctx)
		if w.state.phase == phase.Finished {
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

// settle acts until there is nothing to do now, and returns when to look
// again without being told to; zero is never.
func (w *Worker) settle(ctx context.Context) time.Time {
	for ctx.Err() == nil {
		acted, wake := w.step(ctx)
		if !acted {
			return wake
		}
		if _, err := w.parts.Observations.Refresh(ctx, w.uid); err != nil && ctx.Err() == nil {
			w.log().Warn("the runtime cannot be asked about a pod", "err", err)
			return time.Now().Add(time.Second)
		}
	}
	return time.Time{}
}

func (w *Worker) log() *slog.Logger {
	return w.config.Log.With("pod", w.pod.Namespace+"/"+w.pod.Name, "uid", w.uid)
}
