package dispatch_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/internal/fakehost"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/worker"
)

// world is a node whose agent is only its dispatcher, in a bubble of time.
type world struct {
	t       *testing.T
	dir     string
	runtime *fakecri.Runtime
	volumes *fakehost.Volumes
	cgroups *fakehost.Cgroups

	admit dispatch.Admit // nil: every pod may start
	again func(pod *v1.Pod) bool

	mu        sync.Mutex
	gone      []string // UIDs of pods of which nothing is left
	restarted []bool   // whether the pods that started anew were static
	orphans   int      // pods that only the runtime knew of

	d     *dispatch.Dispatcher
	ctx   context.Context
	end   context.CancelFunc
	ended chan struct{}
}

func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, dir: t.TempDir(), runtime: fakecri.New(), volumes: &fakehost.Volumes{}, cgroups: &fakehost.Cgroups{}}
		w.runtime.HasImages("busybox")
		test(w)
		if w.end != nil {
			w.stopAgent()
		}
	})
}

func (w *world) startAgent() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	events, err := event.Open(event.Config{Path: filepath.Join(w.dir, "events"), NodeName: "node", Keep: 1000, Log: log})
	if err != nil {
		w.t.Fatal(err)
	}
	kept, err := checkpoint.Open(filepath.Join(w.dir, "kept"))
	if err != nil {
		w.t.Fatal(err)
	}
	store := observed.New(observed.Config{Runtime: w.runtime, Relist: 5 * time.Minute, Log: log, Changed: func(uid string) { w.d.Observed(uid) }})
	node := podspec.Node{Name: "node", PodLogsDir: filepath.Join(w.dir, "logs"), KubeletDir: filepath.Join(w.dir, "kubelet")}
	w.d = dispatch.New(dispatch.Config{
		Parts: worker.Parts{
			Actor: act.New(act.Parts{
				Sandboxes: w.runtime, Containers: w.runtime, Images: images.New(w.runtime, events, images.Config{}), Volumes: w.volumes,
				Objects: fakehost.NoObjects{}, Cgroups: w.cgroups, Hooks: &fakehost.Hooks{}, Logs: fakehost.Logs{}, Events: events,
			}, act.Config{Node: node, Parallel: 4, RuntimeTimeout: 2 * time.Minute, Log: log}),
			Observations: store, Events: events, Checkpoints: kept,
			Allocations: allocation.NewLedger(allocation.Config{Fits: func(*v1.Pod, []*v1.Pod) (string, bool) { return "", true }}),
		},
		Worker:       worker.Config{Backoff: plan.KubeletBackoff, RuntimeName: "fake", BootID: "boot", Log: log},
		Observations: store, Leftovers: []dispatch.Leftovers{w.volumes, w.cgroups}, Log: log, Admit: w.admit, Again: w.again, Counts: w,
		Ended: func(pod *v1.Pod) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.gone = append(w.gone, string(pod.UID))
		},
	})
	w.ctx, w.end = context.WithCancel(w.t.Context())
	w.ended = make(chan struct{})
	go func() {
		defer close(w.ended)
		defer events.Close()
		stored := make(chan struct{})
		go func() {
			defer close(stored)
			_ = store.Run(w.ctx)
		}()
		_ = w.d.Run(w.ctx)
		<-stored
	}()
	synctest.Wait()
}

func (w *world) PodRestarted(static bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.restarted = append(w.restarted, static)
}

func (w *world) OrphanFound() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orphans++
}

func (w *world) stopAgent() {
	w.end()
	<-w.ended
	w.end = nil
}

func (w *world) restartAgent() {
	w.stopAgent()
	w.startAgent()
}

// want says what all sources together want.
func (w *world) want(pods ...*v1.Pod) {
	w.d.Want(w.ctx, dispatch.Desired{Pods: pods, Complete: true, Local: true, At: time.Now()})
	synctest.Wait()
}

// wantIncomplete is want before every source has reported.
func (w *world) wantIncomplete(pods ...*v1.Pod) {
	w.d.Want(w.ctx, dispatch.Desired{Pods: pods, At: time.Now()})
	synctest.Wait()
}

func (w *world) check(sandboxes ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.runtime.ReadySandboxes(); !slices.Equal(got, sandboxes) {
		w.t.Errorf("sandboxes %q are ready, want %q", got, sandboxes)
	}
}

func (w *world) checkNothingLeft() {
	w.t.Helper()
	synctest.Wait()
	if !w.runtime.Empty() || len(w.volumes.UIDs()) > 0 || len(w.cgroups.UIDs()) > 0 || len(w.d.Pods()) > 0 {
		w.t.Errorf("left: in the runtime %v, volumes %v, cgroups %v, workers of %d", !w.runtime.Empty(), w.volumes.UIDs(), w.cgroups.UIDs(), len(w.d.Pods()))
	}
	for _, dir := range []string{"kubelet/pods", "logs", "kept"} {
		entries, _ := os.ReadDir(filepath.Join(w.dir, dir)) // not there: nothing left
		for _, e := range entries {
			w.t.Errorf("left: %s/%s", dir, e.Name())
		}
	}
}

func (w *world) inControl() bool {
	synctest.Wait()
	select {
	case <-w.d.InControl():
		return true
	default:
		return false
	}
}

// leave starts a pod as an agent before this one would have.
func (w *world) leave(name, uid string) {
	w.t.Helper()
	labels := map[string]string{podspec.LabelPodUID: uid, podspec.LabelPodName: name, podspec.LabelPodNamespace: "default"}
	sb, err := w.runtime.RunPodSandbox(w.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid}, Labels: labels,
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := w.runtime.CreateContainer(w.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb.GetPodSandboxId(), Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "a"}, Image: &runtimeapi.ImageSpec{Image: "busybox"},
		Labels: labels, Annotations: map[string]string{podspec.AnnotationTerminationGracePeriod: "7"},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.runtime.StartContainer(w.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()}); err != nil {
		w.t.Fatal(err)
	}
}

// pod is a static pod.
func pod(name, uid string) *v1.Pod {
	grace := int64(30)
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: "default", UID: types.UID(uid),
			Annotations: map[string]string{manifest.AnnotationConfigSource: manifest.SourceFile},
		},
		Spec: v1.PodSpec{
			RestartPolicy: v1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: v1.DNSDefault,
			Containers: []v1.Container{{Name: "a", Image: "busybox", ImagePullPolicy: v1.PullIfNotPresent}},
		},
	}
}

func TestPodsComeAndGoWithTheSources(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		w.want(pod("web", "1"), pod("db", "2"))
		w.check("1 0", "2 0")
		w.want(pod("db", "2"))
		w.check("2 0")
		var names []string
		for _, p := range w.d.Pods() {
			names = append(names, p.Name)
		}
		if !slices.Equal(names, []string{"db"}) {
			t.Errorf("pods %q", names)
		}
		w.want()
		w.checkNothingLeft()
	})
}

func TestPodsOfOneNameNeverOverlap(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(pod("web", "old"))
		w.want(pod("web", "new"))
		w.check("old 0")
		if pods := w.d.Pods(); len(pods) != 2 {
			t.Errorf("%d pods are listed, want the one that ends and the one that waits", len(pods))
		}
		time.Sleep(29 * time.Second)
		w.check("old 0")
		time.Sleep(time.Second)
		w.check("new 0")
	})
}

func TestTheNewestOfSeveralSuccessorsIsStarted(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		for i := range 4 {
			w.want(pod("web", fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		time.Sleep(time.Minute)
		w.check("3 0")
		for _, call := range w.runtime.Calls() {
			if strings.HasPrefix(call, "RunPodSandbox") && call != "RunPodSandbox web 0" {
				t.Errorf("%s", call)
			}
		}
		w.want()
		time.Sleep(time.Minute)
		w.checkNothingLeft()
	})
}

func TestAPodRemovedAndAddedAgainEndsAndStartsAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(pod("web", "1"))
		w.want()
		w.want(pod("web", "1")) // the same UID, and it still ends
		first := w.d.Worker("default", "web")
		time.Sleep(time.Minute)
		w.check("1 0")
		if second := w.d.Worker("default", "web"); second == first || second == nil {
			t.Error("it is still the one that ended")
		}
	})
}

func TestUnusualPodsAreCountedAndHowWorkersStand(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.leave("stray", "3")
		w.volumes.Leave("4") // not in the runtime
		w.startAgent()
		w.want(pod("web", "1"), pod("db", "2"), apiPod("api", "5"))
		w.want(pod("web", "1"))
		want := map[dispatch.Standing]int{
			{Static: true}: 1, {Static: true, Unwanted: true, Ending: true}: 1, {Unwanted: true, Ending: true}: 1, {Unwanted: true, Stray: true, Ending: true}: 1,
		}
		synctest.Wait()
		if diff := cmp.Diff(want, w.d.Standings()); diff != "" {
			t.Errorf("workers (-want +got):\n%s", diff)
		}
		w.want()
		w.want(pod("web", "1"))
		time.Sleep(time.Minute)
		w.check("1 0")
		w.d.Disrupt("1", disruption.Stop{Reason: "Evicted", Grace: new(int64)})
		synctest.Wait()
		if diff := cmp.Diff(map[dispatch.Standing]int{{Static: true, Ending: true, Ended: true}: 1}, w.d.Standings()); diff != "" {
			t.Errorf("at the end (-want +got):\n%s", diff)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.orphans != 1 || !slices.Equal(w.restarted, []bool{true}) {
			t.Errorf("%d pods of the runtime alone, restarted %v", w.orphans, w.restarted)
		}
	})
}

func TestAPodRemovedAndAddedAgainWhileTheAgentIsAway(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(pod("web", "1"))
		w.want()
		w.restartAgent()
		w.want(pod("web", "1"))
		time.Sleep(time.Minute)
		w.check("1 0")
	})
}

func TestAPodThatWasEndedRunsOnceMoreWhenItMay(t *testing.T) {
	inWorld(t, func(w *world) {
		var calm atomic.Bool
		w.again = func(pod *v1.Pod) bool {
			return calm.Load() && pod.Name != "alone" && pod.Status.Reason == "Evicted"
		}
		w.startAgent()
		pods := []*v1.Pod{pod("web", "1"), pod("alone", "2"), pod("db", "3")}
		w.want(pods...)
		evict := func(uids ...types.UID) {
			for _, uid := range uids {
				w.d.Disrupt(uid, disruption.Stop{Reason: "Evicted", Message: "low on memory", Grace: new(int64)})
			}
		}
		evict("1", "2")
		w.check("3 0")
		w.d.Retry()
		w.check("3 0")
		calm.Store(true)
		w.d.Retry()
		w.check("1 0", "3 0")
		evict("3") // when the node is short of nothing any more
		w.check("1 0", "3 0")
		if k := w.d.Worker("default", "alone"); k.Pod().Status.Phase != v1.PodFailed {
			t.Errorf("the pod that may not is %s", k.Pod().Status.Phase)
		}
		calm.Store(false)
		evict("1")
		w.check("3 0")
		w.restartAgent()
		w.want(pods...)
		w.check("3 0")
		calm.Store(true)
		w.d.Retry()
		w.check("1 0", "3 0")
		evict("1")
		w.want(pod("alone", "2")) // its file goes before it has come again
		w.want()
		w.checkNothingLeft()
	})
}

func TestNothingIsEndedBeforeEverySourceHasReported(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		w.want(pod("web", "1"))
		w.stopAgent()
		w.leave("stray", "2")
		w.volumes.Leave("3")
		w.cgroups.Leave("4")
		w.startAgent()
		time.Sleep(time.Hour)
		w.wantIncomplete(pod("db", "5")) // what is wanted starts at once
		w.check("1 0", "2 0", "5 0")
		if w.inControl() {
			t.Error("in control before all sources have reported")
		}
		w.want(pod("db", "5"))
		time.Sleep(time.Minute)
		w.check("5 0")
		if !w.inControl() {
			t.Error("not in control")
		}
		if got := w.volumes.UIDs(); !slices.Equal(got, []string{"5"}) {
			t.Errorf("volumes of %q", got)
		}
		if got := w.cgroups.UIDs(); !slices.Equal(got, []string{"5"}) {
			t.Errorf("cgroups of %q", got)
		}
		w.want()
		w.checkNothingLeft()
	})
}

func TestNothingIsEndedBeforeTheRuntimeWasSeenInFull(t *testing.T) {
	inWorld(t, func(w *world) {
		w.volumes.Leave("1")
		release := w.runtime.Hang("ListPodSandbox", "")
		w.startAgent()
		w.want(pod("web", "2"))
		w.check()
		if got := w.volumes.UIDs(); !slices.Equal(got, []string{"1"}) {
			t.Errorf("volumes of %q", got)
		}
		release()
		time.Sleep(time.Minute)
		w.check("2 0")
	})
}

func TestAnUnknownPodIsEndedWithTheGraceItWasMadeWith(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.leave("stray", "1")
		w.startAgent()
		w.want()
		time.Sleep(6 * time.Second)
		w.check("1 0")
		time.Sleep(time.Second)
		w.checkNothingLeft()
	})
}

func TestAnUnknownPodKeepsItsNameUntilItIsGone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.leave("web", "1")
		w.startAgent()
		w.wantIncomplete(pod("web", "2"))
		w.check("1 0")
		w.want(pod("web", "2"))
		w.check("1 0")
		time.Sleep(time.Minute)
		w.check("2 0")
	})
}

func TestAPodThatShowsUpLaterIsEnded(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		release := w.runtime.HangOn("RunPodSandbox", "")
		w.want(pod("web", "1"))
		w.want() // its worker has nothing to wait for
		w.checkNothingLeft()
		release()
		w.checkNothingLeft()
	})
}

func TestAStopByTheUserPersists(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		w.want(pod("web", "1"))
		if err := w.d.Stop("default", "web", nil); err != nil {
			t.Fatal(err)
		}
		w.check()
		w.restartAgent()
		w.want(pod("web", "1"))
		time.Sleep(time.Hour)
		w.check()
		if got := w.d.Pods()[0].Status.Phase; got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
		w.want()
		w.want(pod("web", "1")) // dropped by its source and wanted again
		w.check("1 0")
		if err := w.d.Stop("default", "db", nil); err == nil {
			t.Error("a pod that is not there was stopped")
		}
	})
}

func TestARestartTouchesNoPod(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		var pods []*v1.Pod
		for i := range 50 {
			pods = append(pods, pod(fmt.Sprintf("web-%d", i), fmt.Sprint(i)))
		}
		w.want(pods...)
		calls := len(w.runtime.Calls())
		w.restartAgent()
		w.want(pods...)
		if !w.inControl() {
			t.Error("not in control")
		}
		if more := w.runtime.Calls()[calls:]; len(more) > 0 {
			t.Errorf("the runtime was asked for %q", more)
		}
	})
}

func TestALostCheckpointCostsHistoryAndNothingElse(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		w.want(pod("web", "1"))
		w.stopAgent()
		if err := os.WriteFile(filepath.Join(w.dir, "kept", "1.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		calls := len(w.runtime.Calls())
		w.startAgent()
		w.want(pod("web", "1"))
		if more := w.runtime.Calls()[calls:]; len(more) > 0 {
			t.Errorf("the runtime was asked for %q", more)
		}
		w.check("1 0")
	})
}

// apiPod is a pod from the API server.
func apiPod(name, uid string) *v1.Pod {
	p := pod(name, uid)
	p.Annotations[manifest.AnnotationConfigSource] = manifest.SourceAPI
	return p
}

// deleted is a pod that somebody deletes with that grace.
func deleted(p *v1.Pod, grace int64) *v1.Pod {
	p = p.DeepCopy()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = new(metav1.NewTime(time.Now())), &grace
	return p
}

func (w *world) wantGone(uids ...string) {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.gone, uids) {
		w.t.Errorf("ended %q, want %q", w.gone, uids)
	}
}

// Deleted by force it is being deleted and gone at once, and the agent may look
// only when both have happened.
func TestAPodIsEndedWithTheGraceThatItWasDeletedWith(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		slow, quick := apiPod("slow", "1"), apiPod("quick", "2")
		w.want(slow, quick)
		w.check("1 0", "2 0")
		w.d.Want(w.ctx, dispatch.Desired{Pods: []*v1.Pod{slow}, Gone: []*v1.Pod{deleted(quick, 0)}, Complete: true, Local: true, At: time.Now()})
		w.d.Want(w.ctx, dispatch.Desired{Complete: true, Local: true, At: time.Now()}) // before it has looked
		time.Sleep(5 * time.Second)
		w.check("1 0")
		w.wantGone("2")
		time.Sleep(time.Minute)
		w.checkNothingLeft()
	})
}

func TestAPodThatIsDeletedByForceHasAMomentAndNotItsGracePeriod(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(apiPod("web", "1"))
		w.check("1 0")
		// The watch has told of the deletion and its grace period, and at once that
		// the pod is gone.
		w.d.Want(w.ctx, dispatch.Desired{Complete: true, Local: true, At: time.Now(), Gone: []*v1.Pod{deleted(apiPod("web", "1"), 0)}})
		w.check("1 0")
		time.Sleep(3 * time.Second)
		w.checkNothingLeft()
	})
}

func TestPodsOfTheAPIServerDoNotWaitForTheirNames(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(apiPod("web", "old"))
		w.want(apiPod("web", "new"))
		w.check("new 0", "old 0")
		if k := w.d.Worker("default", "web"); k == nil || k.Pod().UID != "new" {
			t.Error("the name is not the new pod's")
		}
		time.Sleep(31 * time.Second)
		w.check("new 0")
		w.wantGone("old")
	})
}

func TestAStaticPodWaitsForAPodOfTheAPIServerOfItsName(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(apiPod("web", "1"))
		w.want(pod("web", "2"))
		w.check("1 0")
		time.Sleep(31 * time.Second)
		w.check("2 0")
	})
}

func TestAWorkerIsToldWhatTheAPIServerSaysOfItsPod(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(apiPod("web", "1"))
		ending := deleted(apiPod("web", "1"), 10)
		w.want(ending)
		time.Sleep(8 * time.Second)
		w.want(ending)
		w.check("1 0")
		time.Sleep(2*time.Second + time.Millisecond)
		w.check()
		w.wantGone() // its object is still there
		if got := w.d.Pods()[0].Status.Phase; got != v1.PodFailed {
			t.Errorf("phase %s", got)
		}
		w.want()
		w.checkNothingLeft()
		w.wantGone("1")
	})
}

func TestADeletionWhileTheAgentIsAwayIsSeen(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		p := apiPod("web", "1")
		w.want(p)
		w.restartAgent()
		w.want(deleted(p, 30))
		w.check()
		w.restartAgent()
		w.want(deleted(p, 30))
		w.check()
		w.want()
		w.checkNothingLeft()
	})
}

func TestTheAgentIsInControlBeforeTheAPIServerAnswers(t *testing.T) {
	inWorld(t, func(w *world) {
		w.startAgent()
		w.want(apiPod("web", "1"))
		w.restartAgent()
		w.d.Want(w.ctx, dispatch.Desired{Pods: []*v1.Pod{pod("db", "2")}, Local: true, At: time.Now()})
		w.check("1 0", "2 0")
		if !w.inControl() {
			t.Error("not in control")
		}
		time.Sleep(time.Hour)
		w.check("1 0", "2 0")
		w.want(pod("db", "2"))
		time.Sleep(time.Minute)
		w.check("2 0")
	})
}

func TestAPodOfTheAPIServerThatIsWantedAgainWhileItEndsStartsAnew(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("a", fakecri.Program{Stubborn: true})
		w.startAgent()
		w.want(apiPod("web", "1"))
		w.want()
		w.want(apiPod("web", "1"))
		time.Sleep(time.Minute)
		w.check("1 0")
		w.want(deleted(apiPod("web", "1"), 5))
		time.Sleep(6 * time.Second)
		w.check()
	})
}
