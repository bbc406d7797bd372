package podreport_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/podreport"
	"github.com/berth-io/berth/agent/worker"
)

var podsResource = v1.SchemeGroupVersion.WithResource("pods")

// world is a reporter, an API server, and a watch that tells only when it is
// asked to.
type world struct {
	t      *testing.T
	client *fake.Clientset
	r      *podreport.Reporter

	mu      sync.Mutex
	watched map[string]*v1.Pod
	calls   []string // "patch web" or "delete web", those that failed too
	fail    error    // what the API server says to everything; nil: nothing special
	noop    bool     // it takes patches and does nothing
	counted []string
}

func (w *world) StatusWritten(took time.Duration) { w.count("written after " + took.String()) }
func (w *world) PodStarted(pod *v1.Pod, pulled time.Duration) {
	w.count(pod.Name + " started, pulled for " + pulled.String())
}

func (w *world) count(line string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counted = append(w.counted, line)
}

// answers sets what the API server says to everything.
func (w *world) answers(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, client: fake.NewClientset(), watched: map[string]*v1.Pod{}}
		w.client.PrependReactor("*", "pods", w.react)
		w.r = podreport.New(podreport.Config{Client: w.client.CoreV1(), Pods: w, Counts: w, Log: slog.New(slog.DiscardHandler)})
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.r.Run(ctx) }()
		test(w)
		end()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

// Get is the watch's.
func (w *world) Get(namespace, name string) (*v1.Pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, ok := w.watched[namespace+"/"+name]
	return p, ok
}

// react keeps account, fails as told, refuses a pod of another UID, and lets
// objects with finalizers stay.
func (w *world) react(action clienttesting.Action) (bool, runtime.Object, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch a := action.(type) {
	case clienttesting.PatchAction:
		w.calls = append(w.calls, "patch "+a.GetName())
		var p v1.Pod
		if err := json.Unmarshal(a.GetPatch(), &p); err != nil || a.GetSubresource() != "status" || a.GetPatchType() != types.StrategicMergePatchType {
			w.t.Errorf("patch %s of %q: %v", a.GetPatch(), a.GetSubresource(), err)
		}
		if w.fail != nil {
			return true, nil, w.fail
		}
		object, err := w.object(a.GetNamespace(), a.GetName())
		if err != nil {
			return true, nil, err
		}
		if p.UID != object.UID {
			return true, nil, apierrors.NewConflict(podsResource.GroupResource(), a.GetName(), errors.New("the UID is another"))
		}
		return w.noop, object, nil
	case clienttesting.DeleteActionImpl:
		w.calls = append(w.calls, "delete "+a.GetName())
		o := a.GetDeleteOptions()
		if o.GracePeriodSeconds == nil || *o.GracePeriodSeconds != 0 || o.Preconditions == nil || o.Preconditions.UID == nil {
			w.t.Errorf("deleted with %+v", o)
		}
		if w.fail != nil {
			return true, nil, w.fail
		}
		if object, err := w.object(a.GetNamespace(), a.GetName()); err == nil && len(object.Finalizers) > 0 {
			object = object.DeepCopy()
			object.DeletionGracePeriodSeconds = new(int64)
			return true, nil, w.client.Tracker().Update(podsResource, object, object.Namespace)
		}
	}
	return false, nil, nil
}

func (w *world) object(namespace, name string) (*v1.Pod, error) {
	o, err := w.client.Tracker().Get(podsResource, namespace, name)
	if err != nil {
		return nil, err
	}
	return o.(*v1.Pod), nil
}

// has puts an object into the API, as somebody else would.
func (w *world) has(pod *v1.Pod) {
	w.t.Helper()
	if _, err := w.object(pod.Namespace, pod.Name); err == nil {
		if err := w.client.Tracker().Update(podsResource, pod, pod.Namespace); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	if err := w.client.Tracker().Create(podsResource, pod, pod.Namespace); err != nil {
		w.t.Fatal(err)
	}
}

// watch lets the watch catch up.
func (w *world) watch() {
	synctest.Wait()
	list, err := w.client.Tracker().List(podsResource, v1.SchemeGroupVersion.WithKind("Pod"), "")
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	before := w.watched
	w.watched = map[string]*v1.Pod{}
	for i := range list.(*v1.PodList).Items {
		p := list.(*v1.PodList).Items[i].DeepCopy()
		if old := before[p.Namespace+"/"+p.Name]; old != nil && sameJSON(w.t, old, p) {
			p = old // nothing happened to it
		}
		w.watched[p.Namespace+"/"+p.Name] = p
	}
	w.mu.Unlock()
	w.r.PodsChanged()
	synctest.Wait()
}

func sameJSON(t *testing.T, a, b any) bool {
	t.Helper()
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	if err := errors.Join(errA, errB); err != nil {
		t.Fatal(err)
	}
	return string(x) == string(y)
}

func (w *world) report(p *v1.Pod, settled bool) {
	w.r.Report(worker.Report{Pod: p, Settled: settled})
	synctest.Wait()
}

func (w *world) wantCalls(want ...string) {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.calls, want) {
		w.t.Errorf("calls %q, want %q", w.calls, want)
	}
	w.calls = nil
}

// in returns the status in the API.
func (w *world) in(name string) v1.PodStatus {
	w.t.Helper()
	o, err := w.object("default", name)
	if err != nil {
		w.t.Fatal(err)
	}
	return o.Status
}

func apiPod(name string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name + "-uid")},
		Status: v1.PodStatus{Phase: v1.PodPending, QOSClass: v1.PodQOSBestEffort, Conditions: []v1.PodCondition{
			{Type: v1.PodScheduled, Status: v1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(1000, 0))},
		}},
	}
}

// is is a pod as its worker has it, in a phase.
func is(pod *v1.Pod, phase v1.PodPhase) *v1.Pod {
	p := pod.DeepCopy()
	start := metav1.NewTime(time.Unix(2000, 123456789))
	p.Status = v1.PodStatus{
		Phase: phase, QOSClass: v1.PodQOSBestEffort, StartTime: &start, HostIP: "192.0.2.1", HostIPs: []v1.HostIP{{IP: "192.0.2.1"}},
		Conditions: []v1.PodCondition{
			{Type: v1.PodReady, Status: v1.ConditionFalse, LastTransitionTime: start},
			{Type: v1.PodScheduled, Status: v1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Unix(1000, 0))},
		},
		ContainerStatuses: []v1.ContainerStatus{{Name: "a", State: v1.ContainerState{Running: &v1.ContainerStateRunning{StartedAt: start}}}},
	}
	if phase == v1.PodFailed || phase == v1.PodSucceeded {
		p.Status.ContainerStatuses[0].State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{StartedAt: start, FinishedAt: start}}
	}
	return p
}

// deleted is an object that somebody has deleted with the usual grace.
func deleted(pod *v1.Pod) *v1.Pod {
	p := pod.DeepCopy()
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &metav1.Time{Time: time.Unix(3000, 0)}, new(int64(30))
	return p
}

// with is an object with that status.
func with(pod *v1.Pod, s v1.PodStatus) *v1.Pod {
	p := pod.DeepCopy()
	p.Status = s
	return p
}

func TestAStartIsCountedOnceAndNotOfAPodOfAnAgentBefore(t *testing.T) {
	inWorld(t, func(w *world) {
		known := is(apiPod("known"), v1.PodPending)
		known.Status.ContainerStatuses[0].State = v1.ContainerState{}
		w.has(apiPod("new"))
		w.has(known)
		w.watch()
		for _, name := range []string{"new", "known"} {
			w.r.Report(worker.Report{Pod: is(apiPod(name), v1.PodRunning), Pulled: 3 * time.Second})
			synctest.Wait()
			w.watch()
		}
		again := is(apiPod("new"), v1.PodRunning)
		again.Status.ContainerStatuses[0].RestartCount = 1
		w.answers(errors.New("away"))
		w.r.Report(worker.Report{Pod: again})
		time.Sleep(40 * time.Millisecond)
		w.answers(nil)
		time.Sleep(time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		want := []string{"written after 0s", "new started, pulled for 3s", "written after 0s", "written after 50ms"}
		if !slices.Equal(w.counted, want) {
			t.Errorf("counted %q, want %q", w.counted, want)
		}
	})
}

func TestAStatusIsWrittenOnceAndNotAgainWhenTheWatchTellsOfIt(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		w.wantCalls("patch web")
		if got := w.in("web"); got.Phase != v1.PodRunning || got.HostIP != "192.0.2.1" {
			t.Errorf("in the API: %+v", got)
		}
		w.report(is(apiPod("web"), v1.PodRunning), false) // before the watch has told
		w.watch()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		time.Sleep(time.Hour)
		w.wantCalls()
	})
}

func TestASecondReportIsBasedOnTheFirstOne(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		w.report(is(apiPod("web"), v1.PodPending), false) // what the watch still shows
		w.wantCalls("patch web", "patch web")
		if got := w.in("web").Phase; got != v1.PodPending {
			t.Errorf("phase %s in the API: the second report was taken for what is there", got)
		}
		w.watch()
		w.wantCalls()
	})
}

func TestWhatOthersWriteSurvives(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(is(apiPod("web"), v1.PodPending), false)
		w.watch()
		w.wantCalls("patch web")
		changed := with(apiPod("web"), w.in("web"))
		changed.Status.Conditions = append(changed.Status.Conditions, v1.PodCondition{Type: "example.com/gate", Status: v1.ConditionTrue})
		changed.Status.NominatedNodeName = "other"
		w.has(changed)
		w.report(is(apiPod("web"), v1.PodRunning), false) // before the watch tells of it
		w.watch()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		got := w.in("web")
		if !slices.ContainsFunc(got.Conditions, func(c v1.PodCondition) bool { return c.Type == "example.com/gate" && c.Status == v1.ConditionTrue }) {
			t.Errorf("conditions %+v: the gate's is gone", got.Conditions)
		}
		if got.NominatedNodeName != "other" || got.Phase != v1.PodRunning {
			t.Errorf("in the API: %+v", got)
		}
	})
}

func TestWhatSomebodyElseOverwritesIsWrittenAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		w.watch()
		w.wantCalls("patch web")
		changed := with(apiPod("web"), w.in("web"))
		changed.Status.Conditions[0].Status = v1.ConditionTrue // Ready
		w.has(changed)
		w.watch()
		w.wantCalls("patch web")
		w.watch()
		w.wantCalls()
	})
}

func TestAnAPIServerThatDropsWhatItIsToldIsNotToldWithoutEnd(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.noop = true
		w.watch()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		w.watch()
		time.Sleep(time.Hour)
		w.wantCalls("patch web")
	})
}

func TestErrorsAreTriedAgainEverSlower(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.fail = errors.New("connection refused")
		w.report(is(apiPod("web"), v1.PodRunning), false)
		time.Sleep(10 * time.Minute)
		w.mu.Lock()
		n := len(w.calls)
		w.calls, w.fail = nil, nil
		w.mu.Unlock()
		if n < 20 || n > 40 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		time.Sleep(time.Minute)
		w.wantCalls("patch web")
		if got := w.in("web").Phase; got != v1.PodRunning {
			t.Errorf("phase %s in the API", got)
		}
	})
}

func TestAConflictAndAnObjectThatIsGoneAreLeftToTheWatch(t *testing.T) {
	resource := schema.GroupResource{Resource: "pods"}
	for _, err := range []error{
		apierrors.NewConflict(resource, "web", errors.New("the UID is another")),
		apierrors.NewNotFound(resource, "web"),
	} {
		inWorld(t, func(w *world) {
			w.has(deleted(apiPod("web")))
			w.watch()
			w.fail = err
			w.report(is(apiPod("web"), v1.PodFailed), true)
			time.Sleep(time.Hour)
			w.wantCalls("patch web") // and nothing is let go that was not told how it ended
		})
	}
}

func TestTheStatusOfAnotherPodOfThatNameIsLeftAlone(t *testing.T) {
	inWorld(t, func(w *world) {
		other := apiPod("web")
		other.UID = "another"
		w.has(other)
		w.watch()
		w.report(is(apiPod("web"), v1.PodFailed), true)
		time.Sleep(time.Hour)
		w.wantCalls()
	})
}

func TestAnObjectGoesWhenItIsBeingDeletedAndNothingIsLeft(t *testing.T) {
	for _, c := range []struct {
		name    string
		object  *v1.Pod
		phase   v1.PodPhase
		settled bool
		gone    bool
	}{
		{"being deleted, and settled", deleted(apiPod("web")), v1.PodFailed, true, true},
		{"not being deleted", apiPod("web"), v1.PodSucceeded, true, false},
		{"not settled", deleted(apiPod("web")), v1.PodFailed, false, false},
		{"in a phase that something runs in", deleted(apiPod("web")), v1.PodRunning, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.has(c.object)
				w.watch()
				w.report(is(c.object, c.phase), c.settled)
				want := []string{"patch web"}
				if c.gone {
					want = append(want, "delete web")
				}
				w.wantCalls(want...)
				w.report(is(c.object, c.phase), c.settled) // before the watch has told
				w.watch()
				w.report(is(c.object, c.phase), c.settled)
				time.Sleep(time.Hour)
				w.wantCalls()
			})
		})
	}
}

func TestAPodIsLetGoWhenItIsDeletedAfterItSettled(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(is(apiPod("web"), v1.PodSucceeded), true)
		w.watch()
		w.wantCalls("patch web")
		w.has(with(deleted(apiPod("web")), w.in("web")))
		w.watch()
		w.wantCalls("delete web")
	})
}

func TestAnObjectThatWaitsForFinalizersIsNotDeletedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		p := deleted(apiPod("web"))
		p.Finalizers = []string{"example.com/hold"}
		w.has(p)
		w.watch()
		w.report(is(p, v1.PodFailed), true)
		w.report(is(p, v1.PodFailed), true)
		w.watch()
		w.report(is(p, v1.PodFailed), true)
		time.Sleep(time.Hour)
		w.wantCalls("patch web", "delete web")
		if _, err := w.object("default", "web"); err != nil {
			t.Error(err)
		}
	})
}

// The API server sets the grace period to zero first, and deletes second: an
// agent that is killed between the two leaves the object like this.
func TestAnObjectThatWasHalfLetGoIsLetGo(t *testing.T) {
	inWorld(t, func(w *world) {
		p := with(deleted(apiPod("web")), podreport.Merge(is(apiPod("web"), v1.PodFailed).Status, v1.PodStatus{}))
		p.DeletionGracePeriodSeconds = new(int64)
		w.has(p)
		w.watch()
		w.report(is(p, v1.PodFailed), true)
		w.wantCalls("delete web")
	})
}

func TestALetGoThatFailsIsTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		p := with(deleted(apiPod("web")), podreport.Merge(is(apiPod("web"), v1.PodFailed).Status, v1.PodStatus{}))
		w.has(p)
		w.watch()
		w.fail = errors.New("connection refused")
		w.report(is(p, v1.PodFailed), true)
		time.Sleep(time.Second)
		w.mu.Lock()
		n := len(w.calls)
		w.calls, w.fail = nil, nil
		w.mu.Unlock()
		if n < 2 {
			t.Errorf("%d attempts", n)
		}
		time.Sleep(time.Minute)
		w.wantCalls("delete web")
	})
}

func TestAStaticPodsStatusGoesToItsMirrorPodAndWaitsForIt(t *testing.T) {
	inWorld(t, func(w *world) {
		static := apiPod("etcd")
		static.UID = "hash-2"
		static.Annotations = map[string]string{manifest.AnnotationConfigSource: manifest.SourceFile, manifest.AnnotationConfigHash: "hash-2"}
		mirror := func(hash string) *v1.Pod {
			m := apiPod("etcd")
			m.UID = types.UID("mirror-of-" + hash)
			m.Annotations = map[string]string{manifest.AnnotationConfigSource: manifest.SourceFile, manifest.AnnotationConfigMirror: hash}
			return m
		}
		w.report(is(static, v1.PodRunning), false)
		w.has(mirror("hash-1")) // of what the manifest said before
		w.watch()
		w.wantCalls()
		w.has(mirror("hash-2"))
		w.watch()
		w.wantCalls("patch etcd")
		if got := w.in("etcd").Phase; got != v1.PodRunning {
			t.Errorf("phase %s", got)
		}
		w.has(with(deleted(mirror("hash-2")), w.in("etcd")))
		w.watch()
		w.report(is(static, v1.PodFailed), true)
		w.watch()
		w.wantCalls("patch etcd") // and it is never let go here
	})
}

func TestAForgottenPodIsNotReportedAnyMore(t *testing.T) {
	inWorld(t, func(w *world) {
		w.report(is(apiPod("web"), v1.PodRunning), false)
		w.r.Forget("web-uid")
		w.has(apiPod("web"))
		w.watch()
		w.wantCalls()
	})
}

func TestManyPodsAreReportedAtOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 60 {
			w.has(apiPod("web-" + strings.Repeat("x", i)))
		}
		w.watch()
		var reporters sync.WaitGroup
		for i := range 60 {
			reporters.Go(func() {
				p := apiPod("web-" + strings.Repeat("x", i))
				w.r.Report(worker.Report{Pod: is(p, v1.PodPending)})
				w.r.Report(worker.Report{Pod: is(p, v1.PodRunning)})
			})
		}
		reporters.Wait()
		w.watch()
		for i := range 60 {
			if got := w.in("web-" + strings.Repeat("x", i)).Phase; got != v1.PodRunning {
				t.Fatalf("phase %s", got)
			}
		}
		w.mu.Lock()
		w.calls = nil
		w.mu.Unlock()
		w.watch()
		w.wantCalls()
	})
}

func waiting(pod *v1.Pod, reason string) *v1.Pod {
	p := is(pod, v1.PodPending)
	p.Status.ContainerStatuses[0].State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: reason}}
	return p
}

func TestAPodThatIsSoonRunningIsReportedOnce(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(waiting(apiPod("web"), "ContainerCreating"), false)
		w.r.PodsChanged() // whatever else happens
		w.wantCalls()
		w.report(is(apiPod("web"), v1.PodRunning), false)
		w.wantCalls("patch web")
		w.watch()
		time.Sleep(time.Minute)
		w.wantCalls()
		if got := w.in("web").Phase; got != v1.PodRunning {
			t.Errorf("the pod is %s", got)
		}
	})
}

func TestAPodThatTakesLongerIsReportedMeanwhile(t *testing.T) {
	inWorld(t, func(w *world) {
		w.has(apiPod("web"))
		w.watch()
		w.report(waiting(apiPod("web"), "PodInitializing"), false)
		w.wantCalls()
		time.Sleep(time.Second)
		w.wantCalls("patch web")
	})
}

func TestTheMorePodsAreOnTheirWayTheLongerTheyWaitToSaySo(t *testing.T) {
	inWorld(t, func(w *world) {
		name := func(i int) string { return fmt.Sprintf("web-%d", i) }
		for i := range 100 {
			w.has(apiPod(name(i)))
		}
		w.watch()
		for i := range 100 {
			w.report(waiting(apiPod(name(i)), "ContainerCreating"), false)
		}
		// The first to come found nobody on the way, and wait for the others' sake
		// all the same.
		time.Sleep(9 * time.Second)
		w.wantCalls()
		for i := range 99 {
			w.report(is(apiPod(name(i)), v1.PodRunning), false)
		}
		w.mu.Lock()
		if n := len(w.calls); n != 99 {
			t.Errorf("%d requests, want one for each pod that runs", n)
		}
		w.calls = nil
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		w.wantCalls("patch " + name(99)) // it is late
		w.report(is(apiPod(name(99)), v1.PodRunning), false)
		w.mu.Lock()
		w.calls = nil
		w.mu.Unlock()
		w.watch()
		// They are through: the next waits no longer than one alone.
		w.has(apiPod("last"))
		w.watch()
		w.report(waiting(apiPod("last"), "ContainerCreating"), false)
		time.Sleep(500 * time.Millisecond)
		w.wantCalls("patch last")
	})
}

func TestWhatIsMoreThanOnItsWayIsReportedAtOnce(t *testing.T) {
	crashed := waiting(apiPod("web"), "ContainerCreating")
	crashed.Status.ContainerStatuses[0].LastTerminationState.Terminated = &v1.ContainerStateTerminated{ExitCode: 1}
	initializing := waiting(apiPod("web"), "PodInitializing")
	initializing.Status.InitContainerStatuses = []v1.ContainerStatus{{Name: "i", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}
	for what, p := range map[string]*v1.Pod{
		"a pull fails":                waiting(apiPod("web"), "ErrImagePull"),
		"a container failed before":   crashed,
		"an init container runs":      initializing,
		"the pod is being deleted":    deleted(waiting(apiPod("web"), "ContainerCreating")),
		"no container is known of it": with(apiPod("web"), v1.PodStatus{Phase: v1.PodPending, HostIP: "192.0.2.1"}),
	} {
		t.Run(what, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.has(apiPod("web"))
				w.watch()
				w.report(p, false)
				w.wantCalls("patch web")
			})
		})
	}
}
