package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/status"
)

// step looks once, decides once and does the first thing decided. It tells
// whether it did something, so that the world has to be looked at again.
func (w *Worker) step(ctx context.Context) (acted bool, wake time.Time) {
	obs := w.parts.Observations.Pod(w.uid)
	w.noteNew(&obs)
	mail := w.takeMail()
	if mail.stop != nil {
		w.move(phase.Stop)
	}
	if w.state.phase >= phase.Terminating && mail != w.state.kept {
		w.checkpoint(true) // a shorter grace period, or nobody wants the pod any more
	}
	again := w.allocate(&obs)
	switch w.state.phase {
	case phase.Starting, phase.Running:
		acted, wake = w.stepRun(ctx, &obs)
		wake = sooner(wake, again)
	case phase.Terminating:
		acted, wake = w.stepStop(ctx, &obs)
	case phase.Terminated:
		acted, wake = w.stepRelease(ctx, &obs)
	}
	if w.state.phase != phase.Finished {
		w.publish(&obs, acted)
	}
	return acted, wake
}

// takeMail reads what others have asked for, and makes the pod what its source
// says of it.
func (w *Worker) takeMail() mail {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.news != nil {
		pod := *w.news
		pod.Status = status.Adopt(w.pod.Status, w.news.Status)
		pod.Spec = w.wanted(w.news)
		if !slices.EqualFunc(pod.Spec.Containers, w.pod.Spec.Containers, func(a, b v1.Container) bool { return a.Image == b.Image }) ||
			!slices.EqualFunc(pod.Spec.InitContainers, w.pod.Spec.InitContainers, func(a, b v1.Container) bool { return a.Image == b.Image }) {
			w.state.updated = time.Now()
		}
		w.refresh = w.refresh || !maps.Equal(pod.Labels, w.pod.Labels) || !maps.Equal(pod.Annotations, w.pod.Annotations)
		w.state.dirty = w.state.dirty || !alike(&pod, w.pod)
		w.pod, w.news = &pod, nil
		if w.state.operation == "" {
			w.state.operation = "update"
		}
	}
	return mail{stop: w.stop, forgotten: w.forgotten}
}

// alike tells whether a checkpoint of one pod does for the other. A status that
// the API server has been told comes back, with another version and who wrote it.
func alike(a, b *v1.Pod) bool {
	before, after := *a, *b
	for _, p := range []*v1.Pod{&before, &after} {
		p.ResourceVersion, p.ManagedFields = "", nil
	}
	return equality.Semantic.DeepEqual(&before, &after)
}

func (w *Worker) move(e phase.Event) {
	next := phase.Next(w.state.phase, e)
	if next == w.state.phase {
		return
	}
	w.state.phase = next
	if next != phase.Terminating {
		w.state.dirty = true // kept with the status that goes with it
		return
	}
	// That a pod is to end must be known after a crash of the host as well,
	// before anything is done about it.
	w.checkpoint(true)
}

func (w *Worker) stepRun(ctx context.Context, obs *observed.Pod) (acted bool, wake time.Time) {
	now := time.Now()
	overdue, deadline := w.deadline(now)
	if overdue {
		return true, time.Time{}
	}
	w.syncProbes(ctx, obs)
	remount := w.refreshVolumes(ctx, obs)
	d := plan.Run(plan.Input{
		Pod: w.pod, Observed: obs, Probes: w.results(), Failures: w.state.failures,
		Restarts: w.state.restarts, Past: w.state.past, Backoff: w.config.Backoff, KeepDead: w.config.KeepDead, Actuated: w.state.resize.actuated,
		RestartLimit: restartLimit(w.pod), Updated: w.state.updated, Now: now,
	})
	w.tellBackOffs(d.Waiting)
	w.state.waiting = d.Waiting
	switch {
	case d.Failed != nil:
		w.endAsFailed(*d.Failed, v1.EventTypeWarning)
		return true, time.Time{}
	case d.Complete:
		w.move(phase.Completed)
		return true, time.Time{}
	case len(d.Actions) > 0:
		if held := w.inVain(d.Actions[:1], obs); !held.IsZero() {
			return false, sooner(held, deadline)
		}
		w.perform(ctx, obs, d.Actions[0])
		return true, time.Time{}
	}
	return false, sooner(sooner(d.Wake, remount), deadline)
}

// tellBackOffs records once for each restart that a container has begun to wait
// for it (pkg/kubelet/kuberuntime, doBackOff).
func (w *Worker) tellBackOffs(waiting map[string]plan.Waiting) {
	for name, why := range waiting {
		if why.Reason != plan.CrashLoopBackOff || w.state.waiting[name].Reason == why.Reason {
			continue
		}
		init := slices.ContainsFunc(w.pod.Spec.InitContainers, func(c v1.Container) bool { return c.Name == name })
		w.parts.Events.Container(w.pod, name, init, v1.EventTypeWarning, "BackOff",
			"Back-off restarting failed container %s in pod %s_%s(%s)", name, w.pod.Name, w.pod.Namespace, w.pod.UID)
	}
}

// restartLimit is what a Job allows its pod; nil: no limit, or none that can be read.
func restartLimit(pod *v1.Pod) *int64 {
	n, err := strconv.ParseInt(pod.Annotations[manifest.AnnotationBackoffLimit], 10, 64)
	if err != nil {
		return nil
	}
	return &n
}

// endAsFailed ends the pod with its grace period, to be Failed for that reason.
func (w *Worker) endAsFailed(why plan.Waiting, eventType string) {
	w.parts.Events.Pod(w.pod, eventType, why.Reason, "%s", why.Message)
	w.Stop(checkpoint.Stop{At: time.Now(), Grace: graceOf(w.pod), Reason: why.Reason, Message: why.Message, Failed: &why})
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
	w.endAsFailed(plan.Waiting{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}, v1.EventTypeNormal)
	return true, at
}

// remountAgain is when volumes that could not be refreshed are tried again.
const remountAgain = 10 * time.Second

// refreshVolumes brings volumes up to date after the objects behind them
// changed, and forgets failures that the change may have mended. One that
// cannot be refreshed stays as it is and is tried again at the returned time:
// the pod runs on with what it has, as the API promises.
func (w *Worker) refreshVolumes(ctx context.Context, obs *observed.Pod) (again time.Time) {
	w.mu.Lock()
	changed := w.refresh
	w.refresh = false
	w.mu.Unlock()
	now := time.Now()
	if changed {
		clear(w.state.failures)
		w.state.remount = now
	}
	switch {
	case w.state.remount.IsZero() || w.state.remount.After(now):
		return w.state.remount
	case obs.ReadySandbox() == nil:
		w.state.remount = time.Time{} // they are set up with the sandbox
		return time.Time{}
	}
	ctx, done := w.interruptible(ctx, time.Time{})
	defer done()
	err := w.parts.Actor.Refresh(ctx, w.actPod(obs))
	switch {
	case err == nil:
		w.state.remount = time.Time{}
	case ctx.Err() == nil:
		w.parts.Events.Pod(w.pod, v1.EventTypeWarning, "FailedMount", "%v", err)
		w.state.remount = time.Now().Add(remountAgain)
	}
	return w.state.remount
}

// perform does one action of a pod that shall run. What goes wrong is kept as
// a failure with its time to try again; the plan takes it from there.
func (w *Worker) perform(ctx context.Context, obs *observed.Pod, a plan.Action) {
	key := failureKey(obs, a)
	w.publish(obs, false) // before what may take long: what is known so far
	ctx, done := w.interruptible(ctx, time.Time{})
	defer done()
	began := time.Now()
	err := w.do(ctx, obs, a)
	if ctx.Err() == nil {
		w.count(a, time.Since(began), err)
	}
	if err == nil {
		delete(w.state.failures, key)
		w.did([]plan.Action{a}, obs)
		return
	}
	if ctx.Err() != nil {
		return // interrupted by a stop: no failure of the pod's
	}
	w.log().Info("a step did not work and will be tried again", "step", a.String(), "err", err)
	if _, resize := a.(plan.Resize); resize {
		w.resizeFailed(err)
	}
	w.fail(key, a, err)
}

// count counts an action that is over.
func (w *Worker) count(a plan.Action, took time.Duration, err error) {
	switch a := a.(type) {
	case plan.StartContainer:
		code := ""
		var known *act.Error
		switch {
		case errors.As(err, &known):
			code = known.Waiting.Reason
		case err != nil:
			code = "UnknownError"
		}
		w.config.Counts.ContainerStarted(w.pod, a.Container.Name, code)
	case plan.Resize:
		w.config.Resizes.PodResized(took, err == nil)
	}
}

// failureKey is whom a failed action concerns.
func failureKey(obs *observed.Pod, a plan.Action) string {
	switch a := a.(type) {
	case plan.StartContainer:
		return a.Container.Name
	case plan.Resize:
		return plan.ResizeFailure
	case plan.RemoveSandbox:
		return plan.PruneFailure
	case plan.RemoveContainer:
		if newest := obs.Container(a.Name); newest != nil && newest.ID != a.ID {
			return plan.PruneFailure
		}
	}
	return plan.PodFailure
}

func (w *Worker) do(ctx context.Context, obs *observed.Pod, a plan.Action) error {
	switch a := a.(type) {
	case plan.CreateSandbox:
		if a.Replaces != "" {
			if err := w.stopSandbox(ctx, a.Replaces); err != nil {
				return err
			}
		}
		w.state.resize.actuated.Cgroup = nil // nothing runs: the cgroup is made from what is allocated
		_, again := w.state.failures[plan.PodFailure]
		mounted, err := w.parts.Actor.SetUp(ctx, w.actPod(obs), a.Attempt, again)
		if mounted != nil {
			w.state.mounted = mounted
		}
		if err != nil {
			return err
		}
		clear(w.state.failures) // they were the old sandbox's: its containers are seen to end before it is
		return nil
	case plan.StopSandbox:
		return w.stopSandbox(ctx, a.ID)
	case plan.RemoveSandbox:
		return w.parts.Actor.RemoveSandbox(ctx, a.ID)
	case plan.StartContainer:
		w.move(phase.Started)
		if w.state.mounted == nil {
			if err := w.prepare(ctx, obs); err != nil {
				return err
			}
			w.publish(obs, false) // it is ready to start containers, which may wait for their images
		}
		return w.parts.Actor.StartContainer(ctx, w.actPod(obs), a)
	case plan.KillContainer:
		if a.Restart {
			w.state.restarts[a.ID] = true
		}
		grace := graceOf(w.pod)
		if a.Grace != nil {
			grace = *a.Grace
		}
		return w.parts.Actor.Kill(ctx, w.target(obs, a.ID, time.Now().Add(time.Duration(grace)*time.Second)), a, nil)
	case plan.Resize:
		return w.parts.Actor.Resize(ctx, w.actPod(obs), a, &w.state.resize.actuated, func() { w.checkpoint(false) })
	case plan.RemoveContainer:
		delete(w.state.restarts, a.ID)
		delete(w.state.messages, a.ID)
		delete(w.state.ending, a.ID)
		if c := obs.ByID(a.ID); c != nil {
			return w.parts.Actor.RemoveContainer(ctx, w.pod, *c)
		}
		return nil
	}
	return fmt.Errorf("the plan asks for an unknown action %T", a)
}

// stopSandbox stops a sandbox and remembers that, for it may be one that the
// runtime has lost: then nothing observed tells that its network was given back.
func (w *Worker) stopSandbox(ctx context.Context, id string) error {
	if err := w.parts.Actor.StopSandbox(ctx, id); err != nil {
		return err
	}
	w.state.ending[id] = true
	return nil
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
	if w.config.NotStarted == nil || f.Count > 1 {
		return
	}
	switch a.(type) {
	case plan.CreateSandbox, plan.StartContainer:
		w.config.NotStarted(w.pod)
	}
}

// interruptible marks the action under way as one that a stop request ends at
// once. An action that stops the pod itself gives the end of the grace period
// it knows of: a shorter one ends it.
func (w *Worker) interruptible(ctx context.Context, known time.Time) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	w.interrupt = cancel
	news := w.stop != nil && (known.IsZero() || w.stop.Deadline().Before(known))
	w.mu.Unlock()
	if news {
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
	if has := w.state.resize.actuated.Cgroup; has != nil {
		p.Cgroup = has.In(w.pod)
	}
	if sb := obs.ReadySandbox(); sb != nil {
		p.Sandbox, p.Attempt, p.IPs = sb.ID, sb.Attempt, sb.IPs
	}
	if w.pod.Spec.HostNetwork {
		p.IPs = w.config.HostIPs
	}
	return p
}

// graceOf is what a pod has to end, in seconds: a moment at least, so that it
// gets its signal (pkg/kubelet/pod_workers.go, calculateEffectiveGracePeriod).
func graceOf(pod *v1.Pod) int64 {
	if s := pod.DeletionGracePeriodSeconds; pod.DeletionTimestamp != nil && s != nil {
		return max(*s, 1)
	}
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return max(*s, 1)
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
