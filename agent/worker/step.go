package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
)

// step looks once, decides once and does the first thing decided. It tells
// whether it did something, so that the world has to be looked at again.
func (w *Worker) step(ctx context.Context) (acted bool, wake time.Time) {
	obs := w.parts.Observations.Pod(w.uid)
	if w.takeMail() {
		w.move(phase.Stop)
	}
	switch w.state.phase {
	case phase.Starting, phase.Running:
		acted, wake = w.stepRun(ctx, &obs)
	case phase.Terminating:
		acted, wake = w.stepStop(ctx, &obs)
	case phase.Terminated:
		acted, wake = w.stepRelease(ctx, &obs)
	}
	if w.state.phase != phase.Finished {
		w.publish(&obs)
	}
	return acted, wake
}

// takeMail reads what others have asked for and tells whether the pod shall stop.
func (w *Worker) takeMail() (stop bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stop != nil
}

func (w *Worker) move(e phase.Event) {
	next := phase.Next(w.state.phase, e)
	if next == w.state.phase {
		return
	}
	w.state.phase = next
	w.checkpoint(true)
}

func (w *Worker) stepRun(ctx context.Context, obs *observed.Pod) (acted bool, wake time.Time) {
	now := time.Now()
	overdue, deadline := w.deadline(now)
	if overdue {
		return true, time.Time{}
	}
	w.syncProbes(ctx, obs)
	if wake, ok := w.refreshVolumes(ctx, obs); !ok {
		return false, wake
	}
	d := plan.Run(plan.Input{
		Pod: w.pod, Observed: obs, Probes: w.results(), Failures: w.state.failures,
		Restarts: w.state.restarts, Attempts: w.state.attempts, Backoff: w.config.Backoff, Now: now,
	})
	w.state.waiting = d.Waiting
	switch {
	case len(d.Actions) > 0:
		w.perform(ctx, obs, d.Actions[0])
		return true, time.Time{}
	case d.Complete:
		w.move(phase.Completed)
		return true, time.Time{}
	}
	return false, sooner(d.Wake, deadline)
}

// deadline ends a pod whose activeDeadlineSeconds are over.
func (w *Worker) deadline(now time.Time) (overdue bool, at time.Time) {
	seconds, start := w.pod.Spec.ActiveDeadlineSeconds, w.pod.Status.StartTime
	if seconds == nil || start == nil {
		return false, time.Time{}
	}
	at = start.Add(time.Duration(*seconds) * time.Second)
	if at.After(now) {
		return false, at
	}
	const text = "Pod was active on the node longer than the specified deadline"
	w.parts.Events.Pod(w.pod, v1.EventTypeNormal, "DeadlineExceeded", text)
	w.Stop(checkpoint.Stop{
		At: now, Grace: graceOf(w.pod), Reason: "DeadlineExceeded", Message: text,
		Failed: &plan.Waiting{Reason: "DeadlineExceeded", Message: text},
	})
	return true, at
}

// refreshVolumes brings volumes up to date after the objects behind them
// changed, and forgets failures that the change may have mended.
func (w *Worker) refreshVolumes(ctx context.Context, obs *observed.Pod) (wake time.Time, ok bool) {
	w.mu.Lock()
	due := w.refresh
	w.refresh = false
	w.mu.Unlock()
	if !due {
		return time.Time{}, true
	}
	clear(w.state.failures)
	if obs.ReadySandbox() == nil {
		return time.Time{}, true // they are set up with the sandbox
	}
	if err := w.parts.Actor.Refresh(ctx, w.actPod(obs)); err != nil {
		// The pod runs on with what it has, as the API promises.
		w.parts.Events.Pod(w.pod, v1.EventTypeWarning, "FailedMount", "%v", err)
		w.mu.Lock()
		w.refresh = true
		w.mu.Unlock()
		return time.Now().Add(10 * time.Second), false
	}
	return time.Time{}, true
}

// perform does one action of a pod that shall run. What goes wrong is kept as
// a failure with its time to try again; the plan takes it from there.
func (w *Worker) perform(ctx context.Context, obs *observed.Pod, a plan.Action) {
	key := plan.PodFailure
	if s, ok := a.(plan.StartContainer); ok {
		key = s.Container.Name
	}
	w.publish(obs) // before what may take long: what is known so far
	ctx, done := w.interruptible(ctx)
	defer done()
	err := w.do(ctx, obs, a)
	if err == nil {
		delete(w.state.failures, key)
		return
	}
	if ctx.Err() != nil {
		return // interrupted by a stop: no failure of the pod's
	}
	w.log().Info("a step did not work and will be tried again", "step", a.String(), "err", err)
	w.fail(key, a, err)
}

func (w *Worker) do(ctx context.Context, obs *observed.Pod, a plan.Action) error {
	switch a := a.(type) {
	case plan.CreateSandbox:
		if err := w.prepare(ctx, obs); err != nil {
			return err
		}
		_, err := w.parts.Actor.CreateSandbox(ctx, w.actPod(obs), a.Attempt)
		return err
	case plan.StopSandbox:
		return w.parts.Actor.StopSandbox(ctx, a.ID)
	case plan.RemoveSandbox:
		return w.parts.Actor.RemoveSandbox(ctx, a.ID)
	case plan.StartContainer:
		w.move(phase.Started)
		if w.state.mounted == nil {
			if err := w.prepare(ctx, obs); err != nil {
				return err
			}
		}
		return w.parts.Actor.StartContainer(ctx, w.actPod(obs), a)
	case plan.KillContainer:
		if a.Restart {
			w.state.restarts[a.ID] = true
		}
		deadline := time.Now().Add(time.Duration(graceOf(w.pod)) * time.Second)
		if a.Grace != nil {
			deadline = time.Now().Add(time.Duration(*a.Grace) * time.Second)
		}
		return w.parts.Actor.Kill(ctx, w.target(obs, a.ID, deadline), a, nil)
	case plan.RemoveContainer:
		delete(w.state.restarts, a.ID)
		delete(w.state.messages, a.ID)
		if c := obs.ByID(a.ID); c != nil {
			return w.parts.Actor.RemoveContainer(ctx, w.pod, *c)
		}
		return nil
	}
	return fmt.Errorf("the plan asks for an unknown action %T", a)
}

func (w *Worker) prepare(ctx context.Context, obs *observed.Pod) error {
	mounted, err := w.parts.Actor.Prepare(ctx, w.actPod(obs))
	if err != nil {
		return err
	}
	w.state.mounted = mounted
	return nil
}

// fail keeps a failed attempt: retried after 1 s, doubling up to a minute,
// unless the error knows better.
func (w *Worker) fail(key string, a plan.Action, err error) {
	f := w.state.failures[key]
	f.Count++
	f.RetryAt = time.Now().Add(min(time.Second<<min(f.Count-1, 6), time.Minute))
	f.Waiting = plan.Waiting{Reason: "Failed", Message: fmt.Sprintf("%s: %v", a, err)}
	var known *act.Error
	if errors.As(err, &known) {
		f.Waiting = known.Waiting
		if !known.RetryAt.IsZero() {
			f.RetryAt = known.RetryAt
		}
	}
	w.state.failures[key] = f
}

// interruptible marks the action under way as one that a stop request, or a
// shorter grace period, ends at once.
func (w *Worker) interruptible(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	w.interrupt = cancel
	stopped := w.stop != nil && w.state.phase < phase.Terminating
	w.mu.Unlock()
	if stopped {
		cancel() // it came between the look and the action
	}
	return ctx, func() {
		w.mu.Lock()
		w.interrupt = nil
		w.mu.Unlock()
		cancel()
	}
}

// actPod is the pod as actions see it.
func (w *Worker) actPod(obs *observed.Pod) act.Pod {
	p := act.Pod{Pod: w.pod, Mounted: w.state.mounted, Timeline: w.steps}
	if sb := obs.ReadySandbox(); sb != nil {
		p.Sandbox, p.Attempt, p.IPs = sb.ID, sb.Attempt, sb.IPs
	}
	if w.pod.Spec.HostNetwork {
		p.IPs = w.config.HostIPs
	}
	return p
}

func graceOf(pod *v1.Pod) int64 {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return *s
	}
	return int64(v1.DefaultTerminationGracePeriodSeconds)
}

// sooner returns the earlier of two times, of which zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
