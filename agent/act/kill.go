package act

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/internal/failpoint"
)

// leastGrace is what a container gets between its stop signal and SIGKILL even
// when its preStop hook, or waiting for its turn, used the grace period up:
// the kubelet's minimumGracePeriodInSeconds.
const leastGrace = 2 * time.Second

// Target is a container to be killed.
type Target struct {
	Pod       Pod
	Spec      *v1.Container // nil when no source knows the pod any longer
	Container observed.Container
	Init      bool
	// Deadline is when the grace period ends. In the past: kill at once,
	// without the preStop hook.
	Deadline time.Time
	// Again: it was being killed already, and was interrupted by a shorter
	// grace period or failed. Its hook has had its run and the user was told.
	Again bool
}

// Kill runs the preStop hook, waits for the container's turn, signals it, and
// kills it when its grace is over. It returns when the container has ended.
func (a *Actor) Kill(ctx context.Context, t Target, k plan.KillContainer, turn <-chan struct{}) error {
	if !t.Again {
		a.Events.Container(t.Pod.Pod, k.Name, t.Init, v1.EventTypeNormal, "Killing", "%s", k.Message)
	}
	patient := time.Until(t.Deadline) > 0
	if patient {
		if !t.Again {
			a.preStop(ctx, t)
		}
		if err := await(ctx, turn, t.Deadline); err != nil {
			return err
		}
	}
	grace := time.Until(t.Deadline)
	switch {
	case !patient:
		grace = 0
	case grace < leastGrace:
		grace = leastGrace
	}
	end := t.Pod.Timeline.Begin(timeline.Stop, k.Name)
	err := a.stop(ctx, k.ID, grace)
	end(plain(err))
	return err
}

func (a *Actor) stop(ctx context.Context, id string, grace time.Duration) error {
	call, cancel := context.WithTimeoutCause(ctx, grace+a.config.RuntimeTimeout,
		fmt.Errorf("the runtime did not stop the container within %s after its grace period", a.config.RuntimeTimeout))
	defer cancel()
	seconds := int64((grace + time.Second - 1) / time.Second)
	_, err := a.Containers.StopContainer(call, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: seconds})
	if err != nil && status.Code(err) != codes.NotFound {
		return fmt.Errorf("stop container %s: %w", id, plain(why(ctx, call, err)))
	}
	failpoint.Hit("agent/container-stopped")
	return nil
}

// preStop runs the hook within the grace period. A hook that fails is told and
// does not hold the stop up.
func (a *Actor) preStop(ctx context.Context, t Target) {
	hook := t.Container.PreStop
	if t.Spec != nil {
		hook = nil
		if t.Spec.Lifecycle != nil {
			hook = t.Spec.Lifecycle.PreStop
		}
	}
	if hook == nil {
		return
	}
	spec := t.Spec
	if spec == nil {
		spec = &v1.Container{Name: t.Container.Name}
	}
	call, cancel := context.WithDeadline(ctx, t.Deadline)
	defer cancel()
	end := t.Pod.Timeline.Begin(timeline.PreHook, t.Container.Name)
	msg, err := a.Hooks.Run(call, t.Pod.Pod, spec, hook, t.Container.ID, t.Pod.FirstIP())
	end(err)
	if err != nil && ctx.Err() == nil {
		// What the hook said may be secret; it is for the node's log alone.
		a.config.Log.Warn("a preStop hook failed", "pod", t.Pod.Namespace+"/"+t.Pod.Name, "container", t.Container.Name, "output", msg, "err", err)
		a.Events.Container(t.Pod.Pod, t.Container.Name, t.Init, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
	}
}

// await waits for a sidecar's turn, but not beyond the grace period.
func await(ctx context.Context, turn <-chan struct{}, deadline time.Time) error {
	if turn == nil {
		return nil
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-turn:
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// graceFrom returns when a grace period that begins now ends: the container's
// own where it has one, else the pod's.
func graceFrom(pod *v1.Pod, own *int64) time.Time {
	seconds := int64(30)
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		seconds = *s
	}
	if own != nil {
		seconds = *own
	}
	return time.Now().Add(time.Duration(seconds) * time.Second)
}
