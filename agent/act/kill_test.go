package act_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/internal/fakehost"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/timeline"
)

// killer is an Actor with one stubborn container, named a, to be killed.
type killer struct {
	t       *testing.T
	runtime *fakecri.Runtime
	hooks   *fakehost.Hooks
	events  *event.Recorder
	actor   *act.Actor
	target  act.Target
	calls   int // before the kill
}

func inWorld(t *testing.T, preStop string, test func(k *killer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k := &killer{t: t, runtime: fakecri.New(), hooks: &fakehost.Hooks{}}
		k.runtime.HasImages("busybox")
		k.runtime.Program("a", fakecri.Program{Stubborn: true})
		log := slog.New(slog.DiscardHandler)
		var err error
		if k.events, err = event.Open(event.Config{Path: filepath.Join(t.TempDir(), "events"), Keep: 100, Log: log}); err != nil {
			t.Fatal(err)
		}
		defer k.events.Close()
		k.actor = act.New(act.Parts{Sandboxes: k.runtime, Containers: k.runtime, Hooks: k.hooks, Events: k.events},
			act.Config{Parallel: 1, RuntimeTimeout: time.Minute, Log: log})
		id := k.start("a")
		spec := &v1.Container{Name: "a"}
		if preStop != "" {
			spec.Lifecycle = &v1.Lifecycle{PreStop: &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{preStop}}}}
		}
		k.target = act.Target{
			Pod:  act.Pod{Pod: &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "uid"}}, Timeline: &timeline.Log{}},
			Spec: spec, Container: observed.Container{ID: id, Name: "a"}, Deadline: time.Now().Add(30 * time.Second),
		}
		k.calls = len(k.runtime.Calls())
		test(k)
	})
}

func (k *killer) start(name string) string {
	k.t.Helper()
	ctx := k.t.Context()
	sb, err := k.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "uid"}}})
	if err != nil {
		k.t.Fatal(err)
	}
	c, err := k.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb.GetPodSandboxId(), Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "busybox"}}})
	if err != nil {
		k.t.Fatal(err)
	}
	if _, err := k.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		k.t.Fatal(err)
	}
	return c.GetContainerId()
}

// kill kills, and tells how long that took.
func (k *killer) kill(ctx context.Context, turn <-chan struct{}) (time.Duration, error) {
	began := time.Now()
	err := k.actor.Kill(ctx, k.target, plan.KillContainer{ID: k.target.Container.ID, Name: "a", Reason: "Killing", Message: "m"}, turn)
	return time.Since(began), err
}

func (k *killer) check(took, want time.Duration, err error, calls ...string) {
	k.t.Helper()
	if err != nil || took != want {
		k.t.Errorf("took %s, error %v, want %s", took, err, want)
	}
	if got := k.runtime.Calls()[k.calls:]; !slices.Equal(got, calls) {
		k.t.Errorf("calls %q, want %q", got, calls)
	}
}

func TestTheGracePeriodIsForHookAndSignalTogether(t *testing.T) {
	inWorld(t, "10s", func(k *killer) {
		took, err := k.kill(k.t.Context(), nil)
		k.check(took, 30*time.Second, err, "StopContainer a 20s")
	})
}

func TestAHookThatUsesTheGracePeriodUpLeavesTwoSeconds(t *testing.T) {
	inWorld(t, "1h", func(k *killer) {
		took, err := k.kill(k.t.Context(), nil)
		k.check(took, 32*time.Second, err, "StopContainer a 2s")
	})
}

func TestWithoutGraceThereIsNoHookAndNoTurn(t *testing.T) {
	inWorld(t, "10s", func(k *killer) {
		k.target.Deadline = time.Now()
		took, err := k.kill(k.t.Context(), make(chan struct{}))
		k.check(took, 0, err, "StopContainer a 0s")
		if ran := k.hooks.Ran(); len(ran) > 0 {
			t.Errorf("hooks %q ran", ran)
		}
	})
}

func TestTheSignalComesWithTheTurnAndTheHookBefore(t *testing.T) {
	inWorld(t, "5s", func(k *killer) {
		turn := make(chan struct{})
		time.AfterFunc(12*time.Second, func() { close(turn) })
		k.runtime.Program("a", fakecri.Program{})
		took, err := k.kill(k.t.Context(), turn)
		k.check(took, 12*time.Second, err, "StopContainer a 18s")
	})
}

func TestATurnThatNeverComesEndsWithTheGracePeriod(t *testing.T) {
	inWorld(t, "", func(k *killer) {
		took, err := k.kill(k.t.Context(), make(chan struct{}))
		k.check(took, 32*time.Second, err, "StopContainer a 2s")
	})
}

func TestAnInterruptionIsReturnedAsSuch(t *testing.T) {
	inWorld(t, "", func(k *killer) {
		for _, turn := range []chan struct{}{nil, make(chan struct{})} {
			ctx, cancel := context.WithCancel(k.t.Context())
			time.AfterFunc(time.Second, cancel)
			if took, err := k.kill(ctx, turn); !errors.Is(err, context.Canceled) || took != time.Second {
				t.Errorf("after %s: %v", took, err)
			}
		}
	})
}

func TestARuntimeThatDoesNotAnswerIsGivenUpAfterTheGracePeriod(t *testing.T) {
	inWorld(t, "", func(k *killer) {
		defer k.runtime.Hang("StopContainer", "")()
		took, err := k.kill(k.t.Context(), nil)
		if err == nil || errors.Is(err, context.Canceled) || took != 90*time.Second {
			t.Errorf("after %s: %v", took, err)
		}
		const want = "the runtime did not stop the container within 1m0s after its grace period"
		if err != nil && err.Error() != "stop container "+k.target.Container.ID+": "+want {
			t.Errorf("error %q", err)
		}
	})
}

func TestAPodKnownFromTheRuntimeOnlyHasTheHookItWasMadeWith(t *testing.T) {
	inWorld(t, "", func(k *killer) {
		k.target.Spec = nil
		k.target.Container.PreStop = &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"1s"}}}
		if _, err := k.kill(k.t.Context(), nil); err != nil {
			t.Error(err)
		}
		if ran := k.hooks.Ran(); !slices.Equal(ran, []string{"a 1s"}) {
			t.Errorf("hooks %q ran", ran)
		}
	})
}
