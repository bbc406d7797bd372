package worker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/internal/fakecri"
)

func TestARestartedAgentLeavesRunningPodsAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a", "b")
		p.Spec.InitContainers = []v1.Container{container("init")}
		w.runtime.Program("init", fakecri.Program{Exits: true})
		k := w.start(p)
		before := k.Pod().Status
		mark, id := w.mark(), w.runtime.Container("a").GetId()
		time.Sleep(time.Hour)
		w.restartAgent()
		w.wantCalls(mark)
		w.wantRunning("a", "b")
		k = w.worker("web")
		if !isReady(k) || w.runtime.Container("a").GetId() != id {
			t.Error("the pod was touched")
		}
		if after := k.Pod().Status; after.StartTime.Unix() != before.StartTime.Unix() ||
			after.Conditions[0].LastTransitionTime.Unix() != before.Conditions[0].LastTransitionTime.Unix() {
			t.Error("its history is lost")
		}
		w.runtime.Exit("a", 1)
		w.wantRunning("a", "b")
	})
}

func TestWhatHappenedWhileTheAgentWasAwayIsActedOn(t *testing.T) {
	inWorld(t, func(w *world) {
		w.start(pod("web", "a"))
		w.stopAgent()
		w.runtime.Exit("a", 1)
		w.startAgent()
		w.restartAgent()
		w.wantRunning("a")
	})
}

func TestATerminationIsNotPutOffByAClockThatIsSetBack(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		k := w.start(pod("web", "a"))
		stop := stopIn(30)
		stop.At = stop.At.Add(time.Hour) // the clock was an hour fast
		k.Stop(stop)
		time.Sleep(time.Second)
		w.restartAgent()
		w.wantRunning("a")
		time.Sleep(31 * time.Second)
		w.wantRunning()
	})
}

func TestASandboxWithoutItsVolumesIsNotReadyToStartContainers(t *testing.T) {
	inWorld(t, func(w *world) {
		ready := func(want v1.ConditionStatus) {
			t.Helper()
			synctest.Wait()
			if c := condition(w.worker("web"), v1.PodReadyToStartContainers); c == nil || c.Status != want {
				t.Errorf("ready to start containers: %v, want %s", c, want)
			}
		}
		w.volumes.Set(errors.New(`volume "config": ConfigMap default/x not found`), false)
		release, pulled := w.runtime.Hang("StopPodSandbox", ""), w.runtime.Hang("PullImage", "")
		p := pod("web", "a")
		p.Spec.Containers[0].Image = "other"
		w.runtime.Offers("other")
		w.start(p)
		ready(v1.ConditionFalse)
		w.restartAgent() // before the sandbox could be removed
		if len(w.runtime.ReadySandboxes()) != 1 {
			t.Fatal("the sandbox is gone")
		}
		ready(v1.ConditionFalse)
		time.Sleep(time.Minute)
		ready(v1.ConditionFalse)
		release()
		w.volumes.Set(nil, false)
		time.Sleep(time.Minute)
		ready(v1.ConditionTrue)
		w.restartAgent() // what was ready is, whether this agent has seen the volumes or not
		ready(v1.ConditionTrue)
		pulled()
		time.Sleep(time.Minute)
		w.wantRunning("a")
	})
}

func TestARestartedAgentFinishesATermination(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		k := w.start(pod("web", "a"))
		k.Stop(stopIn(60))
		time.Sleep(time.Second)
		k.Stop(stopIn(20)) // the shorter one is kept as well
		time.Sleep(9 * time.Second)
		w.restartAgent()
		w.wantRunning("a")
		time.Sleep(11*time.Second + time.Millisecond)
		w.wantRunning()
		if got := phaseOf(w.worker("web")); got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
	})
}

func TestAForgottenPodIsStillForgottenAfterARestart(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		k := w.start(pod("web", "a"))
		k.Forget()
		time.Sleep(time.Second)
		w.restartAgent()
		k = w.worker("web")
		if !k.Forgotten() {
			t.Error("it could not be told from a pod that was stopped and is still wanted")
		}
		time.Sleep(time.Minute)
		w.wantNothingLeft(k)
	})
}

// reboot is a boot of the host: nothing runs, and the boot has another ID.
func (w *world) reboot() {
	w.t.Helper()
	w.runtime.Reboot()
	synctest.Wait()
	w.bootID = "boot-2"
	w.restartAgent()
}

func TestAfterARebootAPodStartsAgainAndGoesOnCounting(t *testing.T) {
	inWorld(t, func(w *world) {
		w.start(pod("web", "a"))
		w.runtime.Exit("a", 1)
		synctest.Wait()
		w.end() // the host goes down with the agent
		w.reboot()
		w.wantRunning("a")
		k := w.worker("web")
		if n := k.Pod().Status.ContainerStatuses[0].RestartCount; n != 2 {
			t.Errorf("restart count %d, want 2", n)
		}
		if !isReady(k) {
			t.Error("not ready")
		}
	})
}

func TestANeverPodThatTheRebootEndedIsFailedAndNotRunAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("job", "a")
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		w.start(p)
		mark := w.mark()
		w.end()
		w.reboot()
		w.wantCalls(mark)
		if got := phaseOf(w.worker("job")); got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
	})
}

func TestThePastOutlivesAnAgentThatDoesNotGetToUseIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.start(pod("web", "a"))
		w.runtime.Exit("a", 1)
		synctest.Wait()
		w.end()
		release := w.runtime.Hang("RunPodSandbox", "")
		w.reboot()
		w.restartAgent() // in the same boot, with nothing started yet
		release()
		w.wantRunning("a")
		if n := w.worker("web").Pod().Status.ContainerStatuses[0].RestartCount; n != 2 {
			t.Errorf("restart count %d, want 2", n)
		}
	})
}
