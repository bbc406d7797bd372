package podsource

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/berth-io/berth/agent/manifest"
)

func TestWhereAPodComesFromIsNotItsOwnToSay(t *testing.T) {
	given := map[string]string{manifest.AnnotationConfigSource: manifest.SourceFile, "mine": "kept"}
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: given, CreationTimestamp: metav1.NewTime(time.Unix(1000, 0))}}
	mark(p)
	if manifest.Static(p) || p.Annotations["mine"] != "kept" || p.Annotations[manifest.AnnotationConfigSeen] != "1970-01-01T00:16:40Z" || p.Kind != "Pod" {
		t.Errorf("marked %+v", p)
	}
	if given[manifest.AnnotationConfigSource] != manifest.SourceFile {
		t.Error("somebody else's annotations were changed")
	}
	m := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{manifest.AnnotationConfigMirror: "hash", manifest.AnnotationConfigSource: manifest.SourceFile}}}
	mark(m)
	if !Mirror(m) || m.Annotations[manifest.AnnotationConfigSource] != manifest.SourceFile {
		t.Errorf("a mirror pod was marked %v", m.Annotations)
	}
}

// client asks nobody: nothing runs the watch.
func client(t *testing.T) rest.Interface {
	t.Helper()
	c, err := kubernetes.NewForConfig(&rest.Config{Host: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	return c.CoreV1().RESTClient()
}

func TestNothingIsCompleteBeforeTheAPIServerHasTold(t *testing.T) {
	s := New(client(t), "node", slog.New(slog.DiscardHandler))
	if pods, mirrors, complete := s.Pods(); len(pods)+len(mirrors) > 0 || complete {
		t.Errorf("pods %v, mirrors %v, complete %v", pods, mirrors, complete)
	}
}

func TestSeveralChangesAreToldOnce(t *testing.T) {
	s := New(client(t), "node", slog.New(slog.DiscardHandler))
	s.tell()
	s.tell()
	var told []bool
	for range 2 {
		select {
		case <-s.Changed():
			told = append(told, true)
		default:
			told = append(told, false)
		}
	}
	if !slices.Equal(told, []bool{true, false}) {
		t.Errorf("told %v", told)
	}
}

func TestADeletedPodIsToldOnceAsItWasLast(t *testing.T) {
	s := New(client(t), "node", slog.New(slog.DiscardHandler))
	s.keep(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", DeletionGracePeriodSeconds: new(int64)}})
	s.keep(&v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "static", Annotations: map[string]string{manifest.AnnotationConfigMirror: "hash"}}})
	if gone := s.TakeGone(); len(gone) != 1 || gone[0].Name != "web" || gone[0].DeletionGracePeriodSeconds == nil {
		t.Errorf("gone are %v, want the pod that is no mirror", gone)
	}
	if gone := s.TakeGone(); len(gone) > 0 {
		t.Errorf("%v are told again", gone)
	}
}
