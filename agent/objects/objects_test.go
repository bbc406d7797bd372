package objects

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/berth-io/berth/csi/volume"
)

// world is a Store at an API server that can go away. It must be used in a
// synctest bubble, in which a wait for the API server costs nothing.
type world struct {
	*Store
	t      *testing.T
	client *fake.Clientset

	mu      sync.Mutex
	away    bool
	changed []types.UID
}

func newWorld(t *testing.T, strategy string, there ...runtime.Object) *world {
	t.Helper()
	w := &world{t: t, client: fake.NewClientset(there...)}
	w.client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.away {
			return true, nil, errors.New("connection refused")
		}
		return false, nil, nil
	})
	store, err := New(Config{Client: w.client, Strategy: strategy, Log: slog.New(slog.DiscardHandler), Changed: func(uid types.UID) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.changed = append(w.changed, uid)
	}})
	if err != nil {
		t.Fatal(err)
	}
	w.Store = store
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = store.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return w
}

func (w *world) setAway(away bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.away = away
}

// told returns the pods that were told of changes since it was last asked.
func (w *world) told() int {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.changed)
	w.changed = nil
	return n
}

// watches counts what was asked of the API server: verbs on the kind.
func (w *world) asked(verb, resource string) int {
	synctest.Wait()
	n := 0
	for _, a := range w.client.Actions() {
		if a.Matches(verb, resource) {
			n++
		}
	}
	return n
}

func (w *world) wantConfigMap(pod *v1.Pod, want string) {
	w.t.Helper()
	got, err := w.ConfigMap(w.t.Context(), pod, "cm")
	if err != nil || got.Data["k"] != want {
		w.t.Errorf("config map %v, %v; want %s", got, err, want)
	}
}

func (w *world) wantError(pod *v1.Pod, kind error, text string) {
	w.t.Helper()
	got, err := w.ConfigMap(w.t.Context(), pod, "cm")
	if !errors.Is(err, kind) || err.Error() != text || got != nil {
		w.t.Errorf("config map %v, error %v; want one that is %v: %s", got, err, kind, text)
	}
}

func configMap(value, version string) *v1.ConfigMap {
	return &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "cm", ResourceVersion: version}, Data: map[string]string{"k": value}}
}

func (w *world) put(object *v1.ConfigMap) {
	w.t.Helper()
	if _, err := w.client.CoreV1().ConfigMaps("ns").Update(w.t.Context(), object, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
		_, err = w.client.CoreV1().ConfigMaps("ns").Create(w.t.Context(), object, metav1.CreateOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
	} else if err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// podWith is a pod that has the config map cm in a volume.
func podWith(uid string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)},
		Spec: v1.PodSpec{Volumes: []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{
			ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}}},
	}
}

// podWithEnv is a pod that has it in its environment.
func podWithEnv(uid string) *v1.Pod {
	pod := podWith(uid)
	pod.Spec.Volumes = nil
	pod.Spec.Containers = []v1.Container{{EnvFrom: []v1.EnvFromSource{{ConfigMapRef: &v1.ConfigMapEnvSource{LocalObjectReference: v1.LocalObjectReference{Name: "cm"}}}}}}
	return pod
}

func TestAnObjectIsWatchedForAsLongAsAPodRefersToIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch, configMap("1", "1"))
		a, b := podWith("a"), podWith("b")
		w.wantError(a, volume.ErrNotRegistered, `object "ns"/"cm" not registered`)
		w.Register(a)
		w.Register(b)
		w.Register(a)
		w.wantConfigMap(a, "1")
		w.wantConfigMap(b, "1")
		if n := w.asked("watch", "configmaps"); n != 1 {
			t.Errorf("%d watches, want one", n)
		}
		for _, action := range w.client.Actions() {
			if list, ok := action.(clienttesting.ListAction); ok && list.GetListRestrictions().Fields.String() != "metadata.name=cm" {
				t.Errorf("asked for %s, which a node may not", list.GetListRestrictions().Fields)
			}
		}
		w.Unregister("a")
		w.wantConfigMap(b, "1")
		w.Unregister("b")
		w.wantError(b, volume.ErrNotRegistered, `object "ns"/"cm" not registered`)
		w.put(configMap("2", "2"))
		if n := w.told(); n != 0 {
			t.Errorf("%d pods were told after the last had gone", n)
		}
	})
}

func TestAChangeIsToldToThePodsThatHaveItInAVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch, configMap("1", "1"))
		a, e := podWith("a"), podWithEnv("e")
		w.Register(a)
		w.Register(e)
		w.wantConfigMap(a, "1")
		if n := w.told(); n != 0 {
			t.Errorf("%d pods were told of what they found", n)
		}
		w.put(configMap("2", "2"))
		w.wantConfigMap(a, "2")
		w.wantConfigMap(e, "2")
		if n := w.told(); n != 1 {
			t.Errorf("%d pods were told, want the one with a volume", n)
		}
		w.put(configMap("2", "2"))
		if n := w.told(); n != 0 {
			t.Errorf("%d pods were told of the same version", n)
		}
		if err := w.client.CoreV1().ConfigMaps("ns").Delete(t.Context(), "cm", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.wantError(a, volume.ErrNotFound, `configmap "cm" not found`)
		if n := w.told(); n != 1 {
			t.Errorf("%d pods were told of the end, want one", n)
		}
		w.put(configMap("3", "4"))
		if n := w.told(); n != 2 {
			t.Errorf("%d pods were told of the new one, want both: one waits for its environment", n)
		}
	})
}

func TestWhatDoesNotExistIsSaidSoAndFoundWhenItComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch)
		a := podWith("a")
		w.Register(a)
		w.wantError(a, volume.ErrNotFound, `configmap "cm" not found`)
		w.put(configMap("1", "1"))
		if n := w.told(); n != 1 {
			t.Errorf("%d pods were told, want one", n)
		}
		w.wantConfigMap(a, "1")
	})
}

func TestAnImmutableObjectIsFetchedOnceAndKeptWithoutAWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fixed := configMap("1", "1")
		yes := true
		fixed.Immutable = &yes
		w := newWorld(t, Watch, fixed)
		a := podWith("a")
		w.Register(a)
		w.wantConfigMap(a, "1")
		w.setAway(true)
		time.Sleep(time.Hour)
		lists := w.asked("list", "configmaps")
		w.wantConfigMap(a, "1")
		w.Register(podWith("b"))
		w.wantConfigMap(a, "1")
		time.Sleep(time.Hour)
		if n := w.asked("list", "configmaps"); n != lists {
			t.Errorf("asked %d times more", n-lists)
		}
	})
}

func TestTheLastContentIsUsedWhileTheAPIServerIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch, configMap("1", "1"))
		a := podWithEnv("a")
		w.Register(a)
		w.wantConfigMap(a, "1")
		w.setAway(true)
		// The watch is closed when nobody asks; a container that starts anew
		// needs the object all the same.
		time.Sleep(time.Hour)
		w.wantConfigMap(a, "1")
		b := podWith("b")
		b.Namespace = "other"
		w.Register(b)
		began := time.Now()
		w.wantError(b, volume.ErrUnavailable, "failed to sync configmap cache: connection refused")
		if waited := time.Since(began); waited != syncTimeout {
			t.Errorf("waited %s for an API server that is away", waited)
		}
		w.setAway(false)
		time.Sleep(time.Minute)
		if n := w.told(); n != 1 {
			t.Errorf("%d pods were told that it is back, want the one that found nothing", n)
		}
		w.wantError(b, volume.ErrNotFound, `configmap "cm" not found`)
	})
}

func TestAnIdleWatchIsClosedAndOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Watch, configMap("1", "1"))
		e := podWithEnv("e")
		w.Register(e)
		w.wantConfigMap(e, "1")
		time.Sleep(10 * time.Minute)
		w.put(configMap("2", "2"))
		if n := w.asked("watch", "configmaps"); n != 1 {
			t.Errorf("%d watches, want one", n)
		}
		w.wantConfigMap(e, "2")
		if n := w.asked("watch", "configmaps"); n != 2 {
			t.Errorf("%d watches, want a second", n)
		}
		w.Register(podWith("a")) // a volume keeps it open
		time.Sleep(time.Hour)
		w.put(configMap("3", "3"))
		if n := w.told(); n != 1 {
			t.Errorf("%d pods were told, want one", n)
		}
	})
}

func TestCachedObjectsAreAskedForWhenTheyAreOldOrAPodIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Cache, configMap("1", "1"))
		a := podWith("a")
		w.Register(a)
		w.wantConfigMap(a, "1")
		w.put(configMap("2", "2"))
		w.wantConfigMap(a, "1")
		b := podWith("b")
		w.Register(b)
		w.wantConfigMap(b, "2")
		w.put(configMap("3", "3"))
		time.Sleep(tick)
		if n := w.told(); n != 2 {
			t.Errorf("%d pods were told to look again, want both", n)
		}
		w.wantConfigMap(a, "3")
		w.setAway(true)
		time.Sleep(time.Hour)
		w.wantConfigMap(a, "3")
		w.setAway(false)
		if err := w.client.CoreV1().ConfigMaps("ns").Delete(t.Context(), "cm", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wantError(a, volume.ErrNotFound, `configmap "cm" not found`)
		w.Unregister("a")
		w.Unregister("b")
		w.wantError(a, volume.ErrNotRegistered, `object "ns"/"cm" not registered`)
	})
}

func TestWithTheStrategyGetEveryQuestionIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Get)
		a := podWith("a")
		w.Register(a)
		w.wantError(a, volume.ErrNotFound, `configmap "cm" not found`)
		w.put(configMap("1", "1"))
		w.wantConfigMap(a, "1")
		w.put(configMap("2", "2"))
		w.wantConfigMap(a, "2")
		b := podWith("b")
		b.Namespace = "other"
		w.Register(b)
		w.setAway(true)
		w.wantError(b, volume.ErrUnavailable, `failed to fetch configmap "cm": connection refused`)
	})
}

func TestAnUnknownStrategyIsRefused(t *testing.T) {
	const want = `configMapAndSecretChangeDetectionStrategy: unknown strategy "watch": use Watch, Cache or Get`
	if _, err := New(Config{Strategy: "watch"}); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// Whatever order pods come, change and go in, an object is known exactly when a
// pod that is registered refers to it.
func FuzzReferences(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 64 {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, Watch, configMap("1", "1"))
			pods := []string{"a", "b"}
			refers := map[string]bool{}
			for _, step := range steps {
				uid := pods[step&1]
				switch step >> 1 % 4 {
				case 0:
					w.Register(podWith(uid))
					refers[uid] = true
				case 1:
					w.Register(podWithEnv(uid))
					refers[uid] = true
				case 2:
					none := podWith(uid)
					none.Spec.Volumes = nil
					w.Register(none)
					delete(refers, uid)
				case 3:
					w.Unregister(types.UID(uid))
					delete(refers, uid)
				}
				_, err := w.ConfigMap(t.Context(), podWith(uid), "cm")
				if known := !errors.Is(err, volume.ErrNotRegistered); known != (len(refers) > 0) {
					t.Fatalf("known %v with %d pods that refer to it: %v", known, len(refers), err)
				}
			}
		})
	})
}
