package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/berth-io/berth/agent/manifest"
)

var node = &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "node-uid"}}

func static(name, hash string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: name, UID: types.UID(hash), Labels: map[string]string{"app": name},
		Annotations: map[string]string{manifest.AnnotationConfigHash: hash, manifest.AnnotationConfigSource: manifest.SourceFile},
	}, Spec: v1.PodSpec{NodeName: "node"}}
}

func mirrorOf(name, hash string) *v1.Pod {
	m := Of(static(name, hash), node)
	m.UID = types.UID("mirror-" + name + "-" + hash)
	return m
}

func beingDeleted(m *v1.Pod) *v1.Pod {
	m.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	return m
}

func names(pods []*v1.Pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

func TestMissingAndSuperfluous(t *testing.T) {
	leaving := node.DeepCopy()
	leaving.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	for _, c := range []struct {
		name                 string
		state                State
		missing, superfluous []string
	}{
		{"nothing there", State{Static: []*v1.Pod{static("a", "1")}, Complete: true}, []string{"a"}, nil},
		{"shown as it is", State{Static: []*v1.Pod{static("a", "1")}, Mirrors: []*v1.Pod{mirrorOf("a", "1")}, Complete: true}, nil, nil},
		{"shown as it was", State{Static: []*v1.Pod{static("a", "2")}, Mirrors: []*v1.Pod{mirrorOf("a", "1")}, Complete: true}, nil, []string{"a"}},
		{"not there any more", State{Mirrors: []*v1.Pod{mirrorOf("a", "1")}, Complete: true}, nil, []string{"a"}},
		{"not all is known", State{Static: []*v1.Pod{static("b", "1")}, Mirrors: []*v1.Pod{mirrorOf("a", "1")}}, []string{"b"}, nil},
		{"somebody deletes it", State{Static: []*v1.Pod{static("a", "1")}, Mirrors: []*v1.Pod{beingDeleted(mirrorOf("a", "1"))}, Complete: true}, nil, []string{"a"}},
		{"the node goes", State{Static: []*v1.Pod{static("a", "1")}, Complete: true, Node: leaving}, nil, nil},
	} {
		if c.state.Node == nil {
			c.state.Node = node
		}
		if got := names(Missing(c.state)); !slices.Equal(got, c.missing) {
			t.Errorf("%s: missing %q, want %q", c.name, got, c.missing)
		}
		if got := names(Superfluous(c.state)); !slices.Equal(got, c.superfluous) {
			t.Errorf("%s: superfluous %q, want %q", c.name, got, c.superfluous)
		}
	}
}

func TestAMirrorPodBelongsToTheNodeAndNamesWhatItShows(t *testing.T) {
	p := static("a", "1")
	m := Of(p, node)
	if len(m.OwnerReferences) != 1 || m.OwnerReferences[0].UID != "node-uid" || m.OwnerReferences[0].Kind != "Node" || !*m.OwnerReferences[0].Controller {
		t.Errorf("owners %+v", m.OwnerReferences)
	}
	if m.Annotations[manifest.AnnotationConfigMirror] != "1" || m.UID != "" || m.Spec.NodeName != "node" || m.Labels["app"] != "a" {
		t.Errorf("mirror %+v", m)
	}
	if _, ok := p.Annotations[manifest.AnnotationConfigMirror]; ok {
		t.Error("the static pod was changed")
	}
}

// FuzzReconcilingConverges lets static pods and mirror pods be anything and
// checks that the mirror pods become what the static pods are, and stay so.
func FuzzReconcilingConverges(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Add(uint64(7), uint64(0))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		s := State{Node: node, Complete: true}
		for i := range r.IntN(8) {
			s.Static = append(s.Static, static(fmt.Sprint("p", i), fmt.Sprint(r.IntN(3))))
		}
		for i := range r.IntN(8) {
			m := mirrorOf(fmt.Sprint("p", i), fmt.Sprint(r.IntN(3)))
			if r.IntN(4) == 0 {
				beingDeleted(m)
			}
			s.Mirrors = append(s.Mirrors, m)
		}
		for range 3 { // delete, create, and one that finds nothing to do
			gone, made := Superfluous(s), Missing(s)
			s.Mirrors = slices.DeleteFunc(s.Mirrors, func(m *v1.Pod) bool { return slices.Contains(gone, m) })
			for _, p := range made {
				s.Mirrors = append(s.Mirrors, Of(p, node))
			}
		}
		if len(Superfluous(s))+len(Missing(s)) > 0 || len(s.Mirrors) != len(s.Static) {
			t.Errorf("%d static pods, mirrors %q", len(s.Static), names(s.Mirrors))
		}
	})
}

// world is a reconciler and an API server that shows at once what it has.
type world struct {
	client *fake.Clientset
	r      *Reconciler

	mu     sync.Mutex
	static []*v1.Pod
	node   *v1.Node
	blind  bool // the watch tells nothing
	calls  []string
	fail   error
}

func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{client: fake.NewClientset(), node: node}
		w.client.PrependReactor("*", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if a.GetVerb() == "list" {
				return false, nil, nil
			}
			w.calls = append(w.calls, a.GetVerb())
			return w.fail != nil, nil, w.fail
		})
		w.r = New(Config{Client: w.client.CoreV1(), State: func() State { return w.state(t) }, Log: slog.New(slog.DiscardHandler)})
		ctx, end := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- w.r.Run(ctx) }()
		synctest.Wait()
		test(t, w)
		end()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
}

func (w *world) state(t *testing.T) State {
	list, err := w.client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := State{Static: w.static, Node: w.node, Complete: true}
	for i := range list.Items {
		if _, ok := list.Items[i].Annotations[manifest.AnnotationConfigMirror]; ok && !w.blind {
			s.Mirrors = append(s.Mirrors, &list.Items[i])
		}
	}
	return s
}

// want changes the static pods, and tells of it as long as there are changes.
func (w *world) want(pods ...*v1.Pod) {
	w.mu.Lock()
	w.static = pods
	w.mu.Unlock()
	for range 3 {
		w.r.Poke()
		synctest.Wait()
	}
}

func (w *world) took() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	calls := w.calls
	w.calls = nil
	return calls
}

func TestMirrorPodsFollowTheStaticPods(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.want(static("a", "1"))
		if got := w.took(); !slices.Equal(got, []string{"create"}) {
			t.Errorf("calls %q", got)
		}
		w.want(static("a", "2"))
		if got := w.took(); !slices.Equal(got, []string{"delete", "create"}) {
			t.Errorf("calls %q", got)
		}
		w.want()
		if got := w.took(); !slices.Equal(got, []string{"delete"}) {
			t.Errorf("calls %q", got)
		}
	})
}

func TestWithoutANodeThereIsNoMirrorPod(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.node = nil
		w.want(static("a", "1"))
		time.Sleep(time.Hour)
		if got := w.took(); len(got) > 0 {
			t.Errorf("calls %q", got)
		}
		w.node = node
		w.want(static("a", "1"))
		if got := w.took(); !slices.Equal(got, []string{"create"}) {
			t.Errorf("calls %q", got)
		}
	})
}

func TestWhatFailsIsTriedAgainEverSlower(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fail = errors.New("connection refused")
		w.mu.Lock()
		w.static = []*v1.Pod{static("a", "1")}
		w.mu.Unlock()
		w.r.Poke()
		time.Sleep(10 * time.Minute)
		if n := len(w.took()); n < 10 || n > 20 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		w.mu.Lock()
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(time.Minute)
		if got := w.took(); !slices.Equal(got, []string{"create"}) {
			t.Errorf("calls %q", got)
		}
	})
}

func TestAMirrorPodThatTheWatchHasNotToldOfIsNoFailure(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.blind = true
		w.want(static("a", "1"))
		w.took()
		time.Sleep(time.Hour)
		if got := w.took(); len(got) > 0 {
			t.Errorf("tried again: %q", got)
		}
	})
}

func TestAMirrorPodWhoseNameAnotherPodHasIsTriedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		other := static("a", "1")
		other.Annotations, other.UID = nil, "other"
		if err := w.client.Tracker().Add(other); err != nil {
			t.Fatal(err)
		}
		w.want(static("a", "1"))
		if err := w.client.Tracker().Delete(v1.SchemeGroupVersion.WithResource("pods"), "default", "a"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute) // nobody tells that it is gone
		got, err := w.client.CoreV1().Pods("default").Get(t.Context(), "a", metav1.GetOptions{})
		if err != nil || got.Annotations[manifest.AnnotationConfigMirror] != "1" {
			t.Errorf("%v, %v", got, err)
		}
	})
}
