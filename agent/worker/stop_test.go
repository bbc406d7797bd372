package worker_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/timeline"
)

// stopIn asks for an end with that grace period, from now on.
func stopIn(seconds int64) checkpoint.Stop {
	return checkpoint.Stop{At: time.Now(), Grace: seconds, Reason: "Killing"}
}

func TestAPodThatNobodyWantsLeavesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(pod("web", "a", "b"))
		k.Forget()
		w.wantNothingLeft(k)
		w.wantEvent("Killing", "Stopping container a")
	})
}

func TestAStoppedPodStaysUntilItIsForgotten(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(pod("web", "a"))
		k.Stop(stopIn(30))
		w.wantRunning()
		if k.Explain().Phase != "terminated" {
			t.Errorf("phase %s", k.Explain().Phase)
		}
		time.Sleep(time.Hour)
		w.restartAgent() // nor does a restart of the agent bring it back
		time.Sleep(time.Hour)
		w.wantRunning()
		k = w.worker("web")
		k.Forget()
		w.wantNothingLeft(k)
	})
}

func TestSidecarsStopAfterTheContainersTheyServe(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		p := pod("web", "a")
		p.Spec.InitContainers = []v1.Container{sidecar("one"), sidecar("two")}
		k := w.start(p)
		mark := w.mark()
		k.Stop(stopIn(30))
		time.Sleep(10 * time.Second)
		w.wantRunning("a", "one", "two")
		w.runtime.Exit("a", 0)
		w.wantRunning()
		w.wantCalls(mark, "StopContainer a 30s", "StopContainer two 20s", "StopContainer one 20s", "StopPodSandbox web 0")
	})
}

func TestASidecarDoesNotWaitLongerThanTheGracePeriod(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.runtime.Program("side", fakecri.Program{Stubborn: true})
		p := pod("web", "a")
		p.Spec.InitContainers = []v1.Container{sidecar("side")}
		w.start(p).Stop(stopIn(10))
		time.Sleep(12*time.Second + time.Millisecond) // and two that it gets in any case
		w.wantRunning()
	})
}

func TestAPreStopHookRunsBeforeTheSignalAndWithinTheGracePeriod(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		p := pod("web", "a", "b")
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: execHandler("20s")}
		p.Spec.Containers[1].Lifecycle = &v1.Lifecycle{PreStop: execHandler("fail")}
		k := w.start(p)
		mark := w.mark()
		k.Stop(stopIn(30))
		w.wantRunning("a")
		w.wantEvent("FailedPreStopHook", "PreStopHook failed")
		time.Sleep(20 * time.Second)
		w.wantCalls(mark, "StopContainer b 30s", "StopContainer a 10s")
		time.Sleep(10 * time.Second)
		w.wantRunning()
	})
}

func TestAShorterGracePeriodInterruptsAStopUnderWay(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		p := pod("web", "a")
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: execHandler("1s")}
		k := w.start(p)
		mark := w.mark()
		k.Stop(stopIn(3600))
		time.Sleep(10 * time.Second)
		w.wantRunning("a")
		k.Stop(stopIn(7200)) // grace only ever shrinks
		time.Sleep(time.Second)
		k.Stop(stopIn(5))
		time.Sleep(5*time.Second - time.Millisecond)
		w.wantRunning("a")
		time.Sleep(time.Millisecond)
		w.wantRunning()
		w.wantCalls(mark, "StopContainer a 3599s", "StopContainer a 5s", "StopPodSandbox web 0")
		if ran := w.hooks.Ran(); !slices.Equal(ran, []string{"a 1s"}) {
			t.Errorf("hooks %q ran, want the one once", ran)
		}
		w.wantNoEvent("FailedKillPod")
		w.wantNoEvent("FailedPreStopHook")
	})
}

func TestAShorterGracePeriodInterruptsAPreStopHook(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PreStop: execHandler("1000s")}
		k := w.start(p)
		k.Stop(stopIn(3600))
		time.Sleep(time.Second)
		w.wantRunning("a")
		k.Stop(stopIn(0))
		w.wantRunning()
		w.wantNoEvent("FailedPreStopHook")
		w.wantNoEvent("FailedKillPod")
	})
}

func TestAStopInterruptsWhatHangs(t *testing.T) {
	for _, method := range []string{"RunPodSandbox", "CreateContainer", "StartContainer", "PullImage"} {
		t.Run(method, func(t *testing.T) {
			inWorld(t, func(w *world) {
				release := w.runtime.Hang(method, "")
				p := pod("web", "a")
				p.Spec.Containers[0].ImagePullPolicy = v1.PullAlways
				w.runtime.Offers("busybox")
				k := w.start(p)
				w.wantRunning()
				if k.Explain().Stuck == nil {
					t.Error("nothing is said to be stuck")
				}
				k.Forget()
				w.wantNothingLeft(k)
				for _, reason := range []string{"Failed", "FailedCreatePodSandBox", "FailedMount"} {
					w.wantNoEvent(reason)
				}
				release()
			})
		})
	}
}

func TestWhatComesUpAfterTheStopIsStoppedAsWell(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.runtime.HangOn("RunPodSandbox", "")
		k := w.start(pod("web", "a"))
		k.Stop(stopIn(30))
		synctest.Wait()
		release()
		synctest.Wait()
		if ready := w.runtime.ReadySandboxes(); len(ready) > 0 {
			t.Errorf("sandbox %q runs on in a pod that was stopped", ready)
		}
		k.Forget()
		w.wantNothingLeft(k)
	})
}

func TestAFailedStopIsTriedAgainAndTold(t *testing.T) {
	inWorld(t, func(w *world) {
		mend := w.runtime.Fail("StopContainer", "", status.Error(codes.Internal, "the shim is gone"))
		k := w.start(pod("web", "a"))
		k.Stop(stopIn(30))
		time.Sleep(5 * time.Second)
		w.wantRunning("a")
		w.wantEvent("FailedKillPod", "the shim is gone")
		mend()
		time.Sleep(30 * time.Second)
		w.wantRunning()
	})
}

func TestVolumesThatHangAreNamedAndTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(pod("web", "a"))
		w.volumes.Set(nil, true)
		k.Forget()
		synctest.Wait()
		if s := k.Explain().Stuck; s == nil || s.Step != timeline.Release {
			t.Errorf("stuck in %+v", s)
		}
		time.Sleep(5 * time.Minute)
		w.wantEvent("FailedRelease", "has not returned")
		w.volumes.Set(nil, false)
		time.Sleep(5 * time.Minute)
		w.wantNothingLeft(k)
	})
}
