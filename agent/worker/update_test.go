package worker_test

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/worker"
)

// reports are what a worker has told.
type reports struct {
	mu   sync.Mutex
	list []worker.Report
}

func (r *reports) take(report worker.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, report)
}

// settled is how many of the reports since the last call say so.
func (r *reports) settled() int {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, report := range r.list {
		if report.Settled {
			n++
		}
	}
	r.list = nil
	return n
}

// deletedPod is the pod as it is while somebody deletes it.
func deletedPod(p *v1.Pod, grace int64) *v1.Pod {
	p = p.DeepCopy()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = new(metav1.NewTime(time.Now())), &grace
	return p
}

func TestAPodThatIsBeingDeletedEndsWithTheGraceOfTheDeletion(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		p := pod("web", "a")
		k := w.start(p)
		k.Update(deletedPod(p, 10))
		time.Sleep(9 * time.Second)
		k.Update(deletedPod(p, 10)) // told again: the clock does not start over
		w.wantRunning("a")
		time.Sleep(time.Second + time.Millisecond)
		w.wantRunning()
		if got := phaseOf(k); got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
	})
}

func TestASecondDeletionShortensTheFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		p := pod("web", "a")
		k := w.start(p)
		k.Update(deletedPod(p, 600))
		time.Sleep(time.Second)
		k.Update(deletedPod(p, 5))
		time.Sleep(5*time.Second - time.Millisecond)
		w.wantRunning("a")
		time.Sleep(2 * time.Millisecond)
		w.wantRunning()
	})
}

func TestATerminalPhaseInTheAPIEndsThePodAndStays(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		k := w.start(p)
		failed := p.DeepCopy()
		failed.Status.Phase, failed.Status.Reason, failed.Status.Message = v1.PodFailed, "Evicted", "by somebody"
		k.Update(failed)
		w.wantRunning()
		s := k.Pod().Status
		if s.Phase != v1.PodFailed || s.Reason != "Evicted" || s.Message != "by somebody" || isReady(k) {
			t.Errorf("status %+v", s)
		}
		w.restartAgent()
		k = w.worker("web")
		k.Update(failed)
		w.wantRunning()
		if got := phaseOf(k); got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
	})
}

func TestAPodThatIsOverAlreadyIsNotStarted(t *testing.T) {
	for _, over := range []func(p *v1.Pod) *v1.Pod{
		func(p *v1.Pod) *v1.Pod { return deletedPod(p, 30) },
		func(p *v1.Pod) *v1.Pod { p.Status.Phase = v1.PodFailed; return p },
	} {
		inWorld(t, func(w *world) {
			told := &reports{}
			w.config.Report = told.take
			k := w.start(over(pod("web", "a")))
			w.wantCalls(0)
			if got := phaseOf(k); got != v1.PodFailed {
				t.Errorf("phase %s", got)
			}
			if c := k.Pod().Status.ContainerStatuses[0]; c.State.Terminated == nil || c.State.Terminated.ExitCode != 137 {
				t.Errorf("state %+v of a container of a pod that failed", c.State)
			}
			if told.settled() == 0 {
				t.Error("not settled")
			}
		})
	}
}

func TestChangedLabelsRefreshTheVolumes(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		k := w.start(p)
		tries, mark := w.tries(), w.mark()
		relabelled := p.DeepCopy()
		relabelled.Labels = map[string]string{"app": "web"}
		k.Update(relabelled)
		if got := w.tries(); got != tries+1 {
			t.Errorf("volumes were set up or refreshed %d times, want %d", got, tries+1)
		}
		other := relabelled.DeepCopy()
		other.ResourceVersion = "2"
		k.Update(other)
		if got := w.tries(); got != tries+1 {
			t.Error("volumes were refreshed although nothing they are made from has changed")
		}
		w.wantCalls(mark)
	})
}

func TestARestartedAgentThatIsToldTheSameObjectOnlyLooksAtItsVolumes(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		w.start(p)
		tries, mark := w.tries(), w.mark()
		w.restartAgent()
		w.worker("web").Update(p)
		w.wantCalls(mark)
		w.wantRunning("a")
		if got := w.tries(); got != tries+1 {
			t.Errorf("volumes were refreshed %d times: what they are made from may have changed while no agent ran", got-tries)
		}
		if !isReady(w.worker("web")) {
			t.Error("not ready")
		}
	})
}

func TestWhatOthersWriteIntoTheStatusIsKeptAndNotReportedAsNews(t *testing.T) {
	inWorld(t, func(w *world) {
		told := &reports{}
		w.config.Report = told.take
		p := pod("web", "a")
		p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "example.com/gate"}}
		k := w.start(p)
		if isReady(k) {
			t.Error("ready before the gate opens")
		}
		open := p.DeepCopy()
		open.Status = *k.Pod().Status.DeepCopy()
		open.Status.Conditions = append(open.Status.Conditions, v1.PodCondition{Type: "example.com/gate", Status: v1.ConditionTrue})
		open.Status.NominatedNodeName = "other"
		open.Status.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "claim"}}
		k.Update(open)
		synctest.Wait()
		if s := k.Pod().Status; !isReady(k) || s.NominatedNodeName != "other" || len(s.ResourceClaimStatuses) != 1 {
			t.Errorf("status %+v", s)
		}
		told.settled()
		same := open.DeepCopy()
		same.Status = *k.Pod().Status.DeepCopy()
		k.Update(same) // as the watch tells of what was reported
		synctest.Wait()
		told.mu.Lock()
		defer told.mu.Unlock()
		if len(told.list) > 0 {
			t.Errorf("%d reports of nothing new", len(told.list))
		}
	})
}

func TestSettledIsReportedAfterReleaseAndOnceMoreAfterARestart(t *testing.T) {
	inWorld(t, func(w *world) {
		told := &reports{}
		w.config.Report = told.take
		p := pod("web", "a")
		k := w.start(p)
		w.volumes.Set(nil, true) // they do not let go
		k.Update(deletedPod(p, 30))
		w.wantRunning()
		if told.settled() > 0 {
			t.Error("settled with volumes mounted")
		}
		w.volumes.Set(nil, false)
		time.Sleep(5 * time.Minute)
		if told.settled() == 0 {
			t.Error("not settled")
		}
		w.stopAgent()
		w.startAgent()
		kept, errs := w.kept.Load()
		if len(kept) != 1 || len(errs) > 0 {
			t.Fatalf("kept %d, %v", len(kept), errs)
		}
		w.config.Report = told.take
		w.run(worker.Restore(w.parts, w.config, kept[0]))
		if n := told.settled(); n == 0 {
			t.Error("not settled after the restart")
		}
		time.Sleep(time.Hour)
		if n := told.settled(); n > 0 {
			t.Errorf("%d reports in an hour in which nothing happened", n)
		}
	})
}

func TestAnEphemeralContainerIsAddedToARunningPodAndStartedOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		k := w.start(p)
		mark := w.mark()
		debugged := p.DeepCopy()
		debugged.Spec.EphemeralContainers = []v1.EphemeralContainer{{
			EphemeralContainerCommon: v1.EphemeralContainerCommon(container("debug")), TargetContainerName: "a",
		}}
		k.Update(debugged)
		w.wantRunning("a", "debug")
		w.runtime.Exit("debug", 1)
		w.restartAgent()
		k = w.worker("web")
		k.Update(debugged)
		time.Sleep(time.Hour)
		w.wantCalls(mark, "CreateContainer debug 0", "StartContainer debug 0")
		s := k.Pod().Status
		if len(s.EphemeralContainerStatuses) != 1 || s.EphemeralContainerStatuses[0].State.Terminated == nil || !isReady(k) {
			t.Errorf("status %+v", s)
		}
	})
}

func TestAContainerWhoseImageChangesIsRestartedWithoutBackOff(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.HasImages("busybox", "alpine")
		p := pod("web", "a", "b")
		k := w.start(p)
		for range 2 {
			w.runtime.Exit("a", 1) // there is a back-off by now
			synctest.Wait()
		}
		time.Sleep(10 * time.Second)
		w.wantRunning("a", "b")
		changed := p.DeepCopy()
		changed.Spec.Containers[0].Image = "alpine"
		k.Update(changed)
		synctest.Wait()
		if calls := w.runtime.Calls(); slices.Contains(calls, "CreateContainer a 3") {
			t.Errorf("it is restarted before it was seen that no further change comes: %q", calls)
		}
		time.Sleep(2 * time.Second)
		w.wantRunning("a", "b")
		w.wantEvent("Killing", "definition changed")
		calls := w.runtime.Calls()
		if !slices.Contains(calls, "CreateContainer a 3") || slices.Contains(calls, "CreateContainer b 1") {
			t.Errorf("calls %q", calls)
		}
	})
}

func TestAStatusThatComesBackIsNotKeptAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		k := w.start(p)
		w.wantRunning("a")
		file := filepath.Join(w.dir, "kept", "web-uid.json")
		kept := func() os.FileInfo {
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			return info
		}
		before := kept()
		told := k.Pod().DeepCopy() // what the API server has been told, and tells
		told.ResourceVersion, told.ManagedFields = "7", []metav1.ManagedFieldsEntry{{Manager: "berth"}}
		k.Update(told)
		synctest.Wait()
		if !os.SameFile(before, kept()) {
			t.Error("it was written again")
		}
		told = told.DeepCopy()
		told.Labels = map[string]string{"app": "web"}
		k.Update(told)
		synctest.Wait()
		if os.SameFile(before, kept()) {
			t.Error("another label was not kept")
		}
		w.restartAgent()
		if got := w.worker("web").Pod().Labels["app"]; got != "web" {
			t.Errorf("the label is %q after a restart", got)
		}
	})
}
