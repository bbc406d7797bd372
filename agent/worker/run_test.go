package worker_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/timeline"
)

func TestContainersStartInOrderAndThePodGetsReady(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("init", fakecri.Program{Exits: true, RunsFor: time.Second})
		p := pod("web", "a", "b")
		p.Spec.InitContainers = []v1.Container{container("init"), sidecar("side")}
		k := w.start(p)
		w.wantRunning("init")
		if got := phaseOf(k); got != v1.PodPending {
			t.Errorf("phase %s while an init container runs", got)
		}
		time.Sleep(time.Second)
		w.wantRunning("a", "b", "side")
		w.wantCalls(0, "RunPodSandbox web 0", "CreateContainer init 0", "StartContainer init 0",
			"CreateContainer side 0", "StartContainer side 0", "CreateContainer a 0", "StartContainer a 0",
			"CreateContainer b 0", "StartContainer b 0")
		if !isReady(k) || phaseOf(k) != v1.PodRunning || k.Pod().Status.PodIP == "" {
			t.Errorf("status %+v", k.Pod().Status)
		}
		var steps []string
		for _, s := range k.Explain().Steps {
			steps = append(steps, strings.TrimSpace(s.Name+" "+s.Container))
		}
		want := []string{"queued", "cgroup", "volumes", "sandbox", "create init", "start init", "create side", "start side",
			"create a", "start a", "create b", "start b", "ready"}
		if !slices.Equal(steps, want) {
			t.Errorf("timeline %q, want %q", steps, want)
		}
		if k.Explain().Stuck != nil {
			t.Errorf("stuck in %+v", k.Explain().Stuck)
		}
	})
}

func TestWhatBecomesOfAPodIsCounted(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		p.Spec.Containers[0].ImagePullPolicy = v1.PullNever
		p.Spec.Containers[0].Image = "missing"
		w.start(p)
		synctest.Wait()
		k := w.start(pod("good", "b"))
		synctest.Wait()
		k.Forget()
		<-k.Done()
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, want := range []string{
			"begun web", `start a "ErrImageNeverPull"`, "create in 0s", "begun good", `start b ""`, "Running, seen true", "terminated in 0s",
		} {
			if !slices.Contains(w.counted, want) {
				t.Errorf("%q is not counted: %q", want, w.counted)
			}
		}
	})
}

func TestACrashingContainerIsRestartedWithBackOff(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(pod("web", "a"))
		w.runtime.Exit("a", 1)
		w.wantRunning("a") // the first restart is immediate
		for _, delay := range []time.Duration{10, 20, 40} {
			w.runtime.Exit("a", 1)
			w.wantRunning()
			if got := waitingReason(k, "a"); got != "CrashLoopBackOff" {
				t.Errorf("waiting for %q", got)
			}
			time.Sleep(delay*time.Second - time.Millisecond)
			w.wantRunning()
			time.Sleep(time.Millisecond)
			w.wantRunning("a")
		}
		if n := k.Pod().Status.ContainerStatuses[0].RestartCount; n != 4 {
			t.Errorf("restart count %d, want 4", n)
		}
		w.wantEvent("BackOff", "Back-off restarting failed container a in pod web_default(web-uid)")
		for _, e := range w.events.List() {
			if e.Reason == "BackOff" && e.Count != 3 {
				t.Errorf("%d events %s, want one for each wait", e.Count, e.Reason)
			}
		}
	})
}

func TestBackOffGoesOnAfterARestartOfTheAgent(t *testing.T) {
	inWorld(t, func(w *world) {
		w.start(pod("web", "a"))
		for range 2 {
			w.runtime.Exit("a", 1)
			synctest.Wait()
		}
		time.Sleep(4 * time.Second)
		w.restartAgent()
		w.wantRunning()
		time.Sleep(6 * time.Second)
		w.wantRunning("a")
	})
}

func TestAContainerThatDoesNotStartIsNotTriedAllTheTime(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{StartError: "no such file"})
		k := w.start(pod("web", "a"))
		if got := waitingReason(k, "a"); got != "RunContainerError" {
			t.Errorf("waiting for %q", got)
		}
		time.Sleep(time.Minute)
		if n := len(w.runtime.Calls()); n > 20 {
			t.Errorf("%d calls in a minute: %q", n, w.runtime.Calls())
		}
		w.wantEvent("Failed", "no such file")
	})
}

func TestALivenessProbeKillsAndRestarts(t *testing.T) {
	inWorld(t, func(w *world) {
		sick := make(chan bool, 1)
		w.runtime.OnExec(func(string, []string) ([]byte, int32) {
			select {
			case <-sick:
				return []byte("out of order"), 1
			default:
				return nil, 0
			}
		})
		p := pod("web", "a")
		p.Spec.Containers[0].LivenessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check"}}}, PeriodSeconds: 5, FailureThreshold: 1}
		k := w.start(p)
		time.Sleep(12 * time.Second)
		w.wantRunning("a")
		mark := w.mark()
		sick <- true
		time.Sleep(5 * time.Second)
		w.wantCalls(mark, "StopContainer a 30s", "CreateContainer a 1", "StartContainer a 1")
		w.wantEvent("Unhealthy", "out of order")
		w.wantEvent("Killing", "liveness")
		if !isReady(k) {
			t.Error("not ready after the restart")
		}
	})
}

func TestReadinessFollowsItsProbe(t *testing.T) {
	inWorld(t, func(w *world) {
		up := make(chan struct{})
		w.runtime.OnExec(func(string, []string) ([]byte, int32) {
			select {
			case <-up:
				return nil, 0
			default:
				return nil, 1
			}
		})
		p := pod("web", "a")
		p.Spec.Containers[0].ReadinessProbe = &v1.Probe{ProbeHandler: v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{"check"}}}, PeriodSeconds: 10, SuccessThreshold: 1}
		k := w.start(p)
		if isReady(k) {
			t.Error("ready before its probe has succeeded")
		}
		if s := k.Explain().Stuck; s == nil || s.Step != "readiness" || s.Container != "a" {
			t.Errorf("stuck in %+v", s)
		}
		close(up)
		time.Sleep(time.Second)
		if !isReady(k) {
			t.Error("not ready")
		}
		// An agent that restarts does not make it unready.
		w.restartAgent()
		if !isReady(w.worker("web")) {
			t.Error("unready after a restart of the agent")
		}
	})
}

func TestAFailedPostStartHookKillsTheContainer(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		p.Spec.Containers[0].Lifecycle = &v1.Lifecycle{PostStart: execHandler("fail")}
		k := w.start(p)
		w.wantRunning()
		w.wantEvent("FailedPostStartHook", "PostStartHook failed")
		if got := waitingReason(k, "a"); got != "PostStartHookError" {
			t.Errorf("waiting for %q", got)
		}
		mark := w.mark()
		time.Sleep(time.Second)
		w.wantCalls(mark, "CreateContainer a 1", "StartContainer a 1", "StopContainer a 30s")
	})
}

func TestAPodIsOverWhenItsContainersAre(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Exits: true, RunsFor: time.Second})
		p := pod("job", "a")
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		p.Spec.InitContainers = []v1.Container{sidecar("side")}
		k := w.start(p)
		w.wantRunning("a", "side")
		time.Sleep(time.Second)
		w.wantRunning()
		if got := phaseOf(k); got != v1.PodSucceeded {
			t.Errorf("phase %s", got)
		}
		if len(w.volumes.UIDs()) > 0 || len(w.cgroups.UIDs()) > 0 {
			t.Error("volumes or the cgroup were not given back")
		}
		if w.runtime.Empty() {
			t.Error("the container is gone, and its exit code and log with it")
		}
		k.Forget()
		w.wantNothingLeft(k)
	})
}

func TestAFailedNeverPodIsFailed(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Exits: true, Code: 3})
		p := pod("job", "a")
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		k := w.start(p)
		if got := phaseOf(k); got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
		if c := k.Pod().Status.ContainerStatuses[0].State.Terminated; c == nil || c.ExitCode != 3 {
			t.Errorf("container state %+v", c)
		}
	})
}

func TestAPodOlderThanItsDeadlineIsEnded(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("job", "a")
		seconds := int64(60)
		p.Spec.ActiveDeadlineSeconds = &seconds
		k := w.start(p)
		time.Sleep(59 * time.Second)
		w.wantRunning("a")
		time.Sleep(time.Second)
		w.wantRunning()
		if s := k.Pod().Status; s.Phase != v1.PodFailed || s.Reason != "DeadlineExceeded" {
			t.Errorf("status %s %s", s.Phase, s.Reason)
		}
		w.wantEvent("DeadlineExceeded", "longer than the specified deadline")
	})
}

func TestAPodBeyondItsBackoffLimitIsFailed(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Exits: true, RunsFor: time.Second, Code: 1})
		p := pod("job", "a")
		p.Spec.RestartPolicy = v1.RestartPolicyOnFailure
		p.Annotations = map[string]string{manifest.AnnotationBackoffLimit: "2"}
		k := w.start(p)
		time.Sleep(time.Hour)
		s := k.Pod().Status
		if s.Phase != v1.PodFailed || s.Reason != "BackoffLimitExceeded" || s.Message != "Job has reached the specified backoff limit" {
			t.Errorf("status %s %s %s", s.Phase, s.Reason, s.Message)
		}
		w.wantEvent("BackoffLimitExceeded", "Job has reached")
		if n := s.ContainerStatuses[0].RestartCount; n != 2 {
			t.Errorf("restarted %d times, want 2", n)
		}
		w.restartAgent()
		if s := w.worker("job").Pod().Status; s.Phase != v1.PodFailed || s.Reason != "BackoffLimitExceeded" {
			t.Errorf("status after a restart of the agent: %s %s", s.Phase, s.Reason)
		}
	})
}

func TestAMissingObjectIsWaitedForAndItsComingNoticedAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.volumes.Set(errors.New(`volume "config": ConfigMap default/x not found`), false)
		k := w.start(pod("web", "a"))
		w.wantRunning()
		w.wantEvent("FailedMount", "not found")
		w.wantCalls(0, "RunPodSandbox web 0", "StopPodSandbox web 0", "RemovePodSandbox web 0")
		if c := condition(k, v1.PodReadyToStartContainers); c == nil || c.Status != v1.ConditionFalse {
			t.Errorf("without its volumes the pod is ready to start containers: %v", c)
		}
		time.Sleep(10 * time.Minute) // the back-off is at its longest
		w.wantCalls(3)               // once was enough
		if s := k.Explain().Stuck; s == nil || s.Step != timeline.Volumes {
			t.Errorf("stuck in %+v", s)
		}
		if w.tries() > 20 {
			t.Errorf("tried %d times in ten minutes", w.tries())
		}
		w.volumes.Set(nil, false)
		k.ObjectsChanged()
		w.wantRunning("a")
	})
}

func TestAVolumeThatCannotBeRefreshedDoesNotHoldUpRestarts(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(pod("web", "a"))
		w.volumes.Set(errors.New(`volume "config": ConfigMap default/x not found`), false)
		k.ObjectsChanged()
		w.wantEvent("FailedMount", "not found")
		w.runtime.Exit("a", 1)
		w.wantRunning("a")
		before := w.tries()
		for range 100 { // nor is it tried at each occasion
			k.Poke()
			synctest.Wait()
		}
		if n := w.tries() - before; n > 0 {
			t.Errorf("refreshed %d times without a pause", n)
		}
		time.Sleep(10 * time.Second)
		if w.tries() == before {
			t.Error("not tried again")
		}
	})
}

func TestALostSandboxIsReplaced(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(pod("web", "a"))
		mark := w.mark()
		w.runtime.LoseSandbox("web")
		w.wantCalls(mark, "StopPodSandbox web 0", "RunPodSandbox web 1", "CreateContainer a 1", "StartContainer a 1")
		if !isReady(k) {
			t.Error("not ready again")
		}
	})
}

func TestAnActionIsNotRepeatedBeforeItsEffectWasSeen(t *testing.T) {
	inWorld(t, func(w *world) {
		defer w.runtime.Silence()()
		mend := w.runtime.Fail("ListPodSandbox", "", status.Error(codes.Unavailable, "away"))
		w.start(pod("web", "a"))
		time.Sleep(time.Minute)
		w.wantCalls(0, "RunPodSandbox web 0")
		mend()
		time.Sleep(time.Second)
		w.wantCalls(0, "RunPodSandbox web 0", "CreateContainer a 0", "StartContainer a 0")
	})
}

func TestARuntimeThatSaysDoneAndDoesNothingIsNotAskedAllTheTime(t *testing.T) {
	inWorld(t, func(w *world) {
		w.start(pod("web", "a"))
		// The runtime knows the container under another ID than it says.
		w.runtime.Deaf("StopContainer")
		mark := w.mark()
		w.worker("web").Stop(stopIn(0))
		time.Sleep(10 * time.Minute)
		if n := w.mark() - mark; n < 2 || n > 30 {
			t.Errorf("asked %d times in ten minutes", n)
		}
	})
}

func TestAHungSandboxBlocksOnlyItsOwnPodWhichSaysSo(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.runtime.Hang("RunPodSandbox", "stuck")
		var stuck []string
		for _, name := range []string{"stuck-1", "stuck-2", "stuck-3"} { // more than start at once
			w.start(pod(name, "a"))
			stuck = append(stuck, name)
		}
		time.Sleep(10 * time.Second)
		w.start(pod("web", "b"))
		time.Sleep(10 * time.Second)
		w.wantRunning("b")
		for _, name := range stuck[:2] {
			if s := w.worker(name).Explain().Stuck; s == nil || s.Step != timeline.Sandbox || time.Since(s.Since) < 10*time.Second {
				t.Errorf("%s is stuck in %+v", name, s)
			}
		}
		time.Sleep(2 * time.Minute)
		w.wantEvent("FailedCreatePodSandBox", "did not answer within 2m0s")
		release()
		time.Sleep(2 * time.Minute)
		w.wantRunning("a", "a", "a", "b")
	})
}

func TestVolumesAreSetUpWhileTheSandboxIsMade(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.runtime.Hang("RunPodSandbox", "web")
		w.start(pod("web", "a"))
		if n := w.tries(); n != 1 {
			t.Errorf("volumes were set up %d times while the sandbox is made", n)
		}
		w.wantRunning()
		release()
		w.wantRunning("a")
	})
}

func TestVolumesThatMayTakeLongAreWaitedForFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		w.volumes.Set(errors.New(`volume "data": the claim is not bound`), false)
		p := pod("web", "a")
		p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{
			PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
		k := w.start(p)
		w.wantCalls(0)
		w.volumes.Set(nil, false)
		k.ObjectsChanged()
		w.wantRunning("a")
	})
}

func TestAPullThatFailsIsBackedOff(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		p.Spec.Containers[0].Image = "missing"
		k := w.start(p)
		if got := waitingReason(k, "a"); got != "ErrImagePull" {
			t.Errorf("waiting for %q", got)
		}
		time.Sleep(2 * time.Second)
		if got := waitingReason(k, "a"); got != "ImagePullBackOff" {
			t.Errorf("waiting for %q", got)
		}
		if s := k.Explain().Stuck; s == nil || s.Step != timeline.Pull {
			t.Errorf("stuck in %+v", s)
		}
		w.runtime.Offers("missing")
		time.Sleep(10 * time.Second)
		w.wantRunning("a")
	})
}
