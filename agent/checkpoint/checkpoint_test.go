package checkpoint_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/probe"
	"github.com/berth-io/berth/agent/timeline"
)

func full(uid string) checkpoint.Pod {
	at := time.Unix(1_000_000, 0).UTC()
	grace := int64(3)
	has := v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceCPU: resource.MustParse("20m"), v1.ResourceMemory: resource.MustParse("1Gi")}}
	return checkpoint.Pod{
		Pod: &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: types.UID(uid)},
			Status:     v1.PodStatus{Phase: v1.PodRunning, StartTime: &metav1.Time{Time: at}},
		},
		Phase: phase.Terminating,
		Stop: &checkpoint.Stop{At: at, Grace: 30, Reason: "DeadlineExceeded", Message: "m",
			Failed: &plan.Waiting{Reason: "DeadlineExceeded", Message: "m"}},
		Forgotten: true,
		Past:      map[string]plan.Past{"a": {Attempt: 3, Exited: true, ExitCode: 1}},
		Probes:    map[string]probe.Result{"a": {ContainerID: "c", Started: true, Ready: true, Alive: true, Grace: &grace, At: at}},
		Steps:     []timeline.Step{{Name: timeline.Pull, Container: "a", Start: at, End: at.Add(time.Second), Error: "e"}},
		BootID:    "boot",
		Actuated: allocation.Actuated{
			Cgroup:     &allocation.Resources{Pod: &has, Containers: map[string]v1.ResourceRequirements{"a": has}},
			Containers: map[string]v1.ResourceRequirements{"id": has},
		},
	}
}

func open(t *testing.T) (*checkpoint.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "kept")
	s, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestWhatIsKeptComesBack(t *testing.T) {
	for _, durable := range []bool{true, false} {
		s, dir := open(t)
		want := full("1")
		for range 2 {
			if err := s.Save(want, durable); err != nil {
				t.Fatal(err)
			}
		}
		pods, errs := s.Load()
		if len(errs) > 0 || len(pods) != 1 {
			t.Fatalf("%d pods, errors %v", len(pods), errs)
		}
		pods[0].Pod.Status.StartTime.Time = pods[0].Pod.Status.StartTime.UTC()
		if diff := cmp.Diff(want, pods[0]); diff != "" {
			t.Errorf("durable %v (-kept +read):\n%s", durable, diff)
		}
		if err := s.Remove("1"); err != nil {
			t.Error(err)
		}
		if err := s.Remove("1"); err != nil {
			t.Errorf("removed twice: %v", err)
		}
		if left := names(t, dir); left != "" {
			t.Errorf("left: %s", left)
		}
	}
}

func TestACheckpointThatCannotBeReadIsMovedAsideAndHoldsUpNoOther(t *testing.T) {
	for name, content := range map[string]string{
		"torn":         `{"pod":{"meta`,
		"empty":        ``,
		"no pod":       `{"phase":1}`,
		"no UID":       `{"pod":{"metadata":{"name":"web"}}}`,
		"of another":   `{"pod":{"metadata":{"uid":"2"}}}`,
		"no such life": `{"pod":{"metadata":{"uid":"1"}},"phase":17}`,
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := open(t)
			if err := os.WriteFile(filepath.Join(dir, "1.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := s.Save(full("3"), true); err != nil {
				t.Fatal(err)
			}
			pods, errs := s.Load()
			if len(pods) != 1 || pods[0].Pod.UID != "3" {
				t.Errorf("%d pods", len(pods))
			}
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), "1.json is not usable and was renamed to .bad") {
				t.Errorf("errors %v", errs)
			}
			if got := names(t, dir); got != "1.json.bad 3.json" {
				t.Errorf("files %s", got)
			}
			if _, errs := s.Load(); len(errs) > 0 {
				t.Errorf("it is reported again: %v", errs)
			}
		})
	}
}

func TestWhatACrashWhileSavingLeavesIsRemoved(t *testing.T) {
	s, dir := open(t)
	if err := s.Save(full("1"), true); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1.json.tmp", "2.json.tmp", ".tmp-1.json123456"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if pods, errs := s.Load(); len(pods) != 1 || len(errs) > 0 {
		t.Errorf("%d pods, errors %v", len(pods), errs)
	}
	if got := names(t, dir); got != "1.json" {
		t.Errorf("files %s", got)
	}
}

func FuzzLoadReadsAnything(f *testing.F) {
	f.Add([]byte(`{"pod":{"metadata":{"uid":"1"}},"phase":1}`))
	f.Add([]byte(`{"pod":{"metadata":{"uid":"../1"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		s, err := checkpoint.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "1.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		pods, errs := s.Load()
		if len(pods)+len(errs) != 1 {
			t.Errorf("%d pods and %d errors of one file", len(pods), len(errs))
		}
	})
}
