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
	if !d.Complete {
		return w.stopNow(ctx, obs, d.Actions, stop.Deadline())
	}
	for _, s := range obs.Sandboxes {
		if w.state.ending[s.ID] {
			continue
		}
		// It went down by itself: the runtime is told that it may give back
		// what the sandbox held.
		if err := w.stopSandbox(ctx, s.ID); err != nil {
			return w.cleaned(ctx, "FailedKillPod", err)
		}
	}
	if err := w.parts.Actor.Unprepare(ctx, w.uid); err != nil {
		return w.cleaned(ctx, "FailedUnprepareDynamicResources", err)
	}
	w.endProbes()
	w.move(phase.Stopped)
	return true, time.Time{}
}

// stopNow does what plan.Stop decided.
func (w *Worker) stopNow(ctx context.Context, obs *observed.Pod, actions []plan.Action, deadline time.Time) (acted bool, wake time.Time) {
	if held := w.inVain(actions, obs); !held.IsZero() {
		return false, held
	}
	var err error
	if _, kill := actions[0].(plan.KillContainer); kill {
		err = w.killAll(ctx, obs, actions, deadline)
	} else {
		actions = actions[:1]
		err = w.do(ctx, obs, actions[0])
	}
	if err == nil {
		w.did(actions, obs)
	}
	return w.cleaned(ctx, "FailedKillPod", err)
}

// stepRelease gives back what the pod held, and once nobody wants the pod any
// longer removes what is left of it.
func (w *Worker) stepRelease(ctx context.Context, obs *observed.Pod) (acted bool, wake time.Time) {
	if d := plan.Stop(w.pod, obs, "Killing", ""); !d.Complete {
		// What was being made when the stop came is there only now.
		w.state.released = false
		stop := w.stopRequest()
		return w.stopNow(ctx, obs, d.Actions, stop.Deadline())
	}
	if !w.state.released {
		end := w.steps.Begin(timeline.Release, "")
		err := w.parts.Actor.Release(ctx, w.uid)
		end(err)
		if err != nil {
			return w.cleaned(ctx, "FailedRelease", err)
		}
		w.state.released = true
		w.releasedOnce.Do(func() { close(w.released) })
		w.tellAllocation()
		w.publish(obs, false) // the last word before its object may go
		w.report(w.pod)
	}
	if !w.Forgotten() {
		return false, time.Time{}
	}
	if d := plan.Remove(obs); !d.Complete {
		if held := w.inVain(d.Actions[:1], obs); !held.IsZero() {
			return false, held
		}
		err := w.do(ctx, obs, d.Actions[0])
		if err == nil {
			w.did(d.Actions[:1], obs)
		}
		return w.cleaned(ctx, "FailedRemove", err)
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
	ctx, done := w.interruptible(ctx, deadline)
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
		target := w.target(obs, k.ID, deadline)
		wg.Go(func() {
			defer close(ended[k.ID])
			errs[i] = w.parts.Actor.Kill(ctx, target, k, turn)
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
		stop := Killing(w.pod)
		w.stop = &stop
	}
	return *w.stop
}

// target is a container about to be killed.
func (w *Worker) target(obs *observed.Pod, id string, deadline time.Time) act.Target {
	t := act.Target{Pod: w.actPod(obs), Deadline: deadline, Again: w.state.ending[id]}
	w.state.ending[id] = true
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
	for i := range w.pod.Spec.EphemeralContainers {
		if e := &w.pod.Spec.EphemeralContainers[i]; e.Name == c.Name {
			t.Spec = (*v1.Container)(&e.EphemeralContainerCommon)
		}
	}
	for i := range w.pod.Spec.InitContainers {
		if w.pod.Spec.InitContainers[i].Name == c.Name {
			t.Spec, t.Init = &w.pod.Spec.InitContainers[i], true
		}
	}
	return t
}
