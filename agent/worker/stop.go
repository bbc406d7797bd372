package worker

import (
	"context"
	"errors"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/timeline"
)

// stepStop brings a pod that shall stop one step further down.
func (w *Worker) stepStop(ctx context.Context, obs *observed.Pod) (acted bool, wake time.Time) {
	w.stopLiveness()
	stop := w.stopRequest()
	d := plan.Stop(w.pod, obs, stop.Reason, stop.Message)
	if d.Complete {
		w.endProbes()
		w.move(phase.Stopped)
		return true, time.Time{}
	}
	var err error
	if _, kill := d.Actions[0].(plan.KillContainer); kill {
		err = w.killAll(ctx, obs, d.Actions, stop.Deadline())
	} else {
		err = w.do(ctx, obs, d.Actions[0])
	}
	return w.cleaned(ctx, "FailedKillPod", err)
}

// stepRelease gives back what the pod held, and once nobody wants the pod any
// longer removes what is left of it.
func (w *Worker) stepRelease(ctx context.Context, obs *observed.Pod) (acted bool, wake time.Time) {
	if !w.state.released {
		end := w.steps.Begin(timeline.Release, "")
		err := w.parts.Actor.Release(ctx, w.uid)
		end(err)
		if err != nil {
			return w.cleaned(ctx, "FailedRelease", err)
		}
		w.state.released = true
	}
	if !w.Forgotten() {
		return false, time.Time{}
	}
	if d := plan.Remove(obs); !d.Complete {
		return w.cleaned(ctx, "FailedRemove", w.do(ctx, obs, d.Actions[0]))
	}
	if err := w.parts.Actor.Forget(w.uid, w.parts.Actor.LogDir(w.pod)); err != nil {
		return w.cleaned(ctx, "FailedRemove", err)
	}
	if err := w.parts.Checkpoints.Remove(w.uid); err != nil {
		return w.cleaned(ctx, "FailedRemove", err)
	}
	w.state.phase = phase.Next(w.state.phase, phase.Forgotten)
	return false, time.Time{}
}

// cleaned paces the attempts to stop or clean up: at once after a success,
// ever slower up to half a minute after failures, which are told as events.
func (w *Worker) cleaned(ctx context.Context, reason string, err error) (acted bool, wake time.Time) {
	if err == nil || ctx.Err() != nil {
		w.state.cleanup = 0
		return true, time.Time{}
	}
	if errors.Is(err, context.Canceled) {
		return true, time.Time{} // interrupted by a shorter grace period
	}
	w.parts.Events.Pod(w.pod, v1.EventTypeWarning, reason, "%v", err)
	w.state.cleanup++
	return false, time.Now().Add(min(time.Second<<min(w.state.cleanup-1, 5), 30*time.Second))
}

// killAll kills containers side by side. One that has to wait for others gets
// its turn when all of them have ended.
func (w *Worker) killAll(ctx context.Context, obs *observed.Pod, actions []plan.Action, deadline time.Time) error {
	ctx, done := w.interruptible(ctx)
	defer done()
	ended := map[string]chan struct{}{}
	for _, a := range actions {
		ended[a.(plan.KillContainer).ID] = make(chan struct{})
	}
	errs := make([]error, len(actions))
	var wg sync.WaitGroup
	for i, a := range actions {
		k := a.(plan.KillContainer)
		k.Message = killMessage(k)
		turn := make(chan struct{})
		go func() { // ends with its predecessors, which all end with ctx
			defer close(turn)
			for _, id := range k.After {
				<-ended[id]
			}
		}()
		wg.Go(func() {
			defer close(ended[k.ID])
			errs[i] = w.parts.Actor.Kill(ctx, w.target(obs, k.ID, deadline), k, turn)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// killMessage is the kubelet's text where the request has none of its own.
func killMessage(k plan.KillContainer) string {
	if k.Reason == "Killing" {
		return "Stopping container " + k.Name
	}
	return "Stopping container " + k.Name + ": " + k.Message
}

// stopRequest is why the pod stops. One that ended by itself was asked by
// nobody: what is left of it, sidecars mostly, has the pod's grace period from
// now on, and the request is kept like any other.
func (w *Worker) stopRequest() checkpoint.Stop {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop == nil {
		w.stop = &checkpoint.Stop{At: time.Now(), Grace: graceOf(w.pod), Reason: "Killing"}
	}
	return *w.stop
}

func (w *Worker) target(obs *observed.Pod, id string, deadline time.Time) act.Target {
	t := act.Target{Pod: w.actPod(obs), Deadline: deadline}
	c := obs.ByID(id)
	if c == nil {
		t.Container = observed.Container{ID: id}
		return t
	}
	t.Container = *c
	for i := range w.pod.Spec.Containers {
		if w.pod.Spec.Containers[i].Name == c.Name {
			t.Spec = &w.pod.Spec.Containers[i]
		}
	}
	for i := range w.pod.Spec.InitContainers {
		if w.pod.Spec.InitContainers[i].Name == c.Name {
			t.Spec, t.Init = &w.pod.Spec.InitContainers[i], true
		}
	}
	return t
}
