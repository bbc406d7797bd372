package event_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/event"
)

var web = &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid"}}

func open(t *testing.T, path string, keep int) *event.Recorder {
	t.Helper()
	r, err := event.Open(event.Config{Path: path, NodeName: "node", Keep: keep, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// short is a list of events as "REASON message COUNT".
func short(events []v1.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprintf("%s %s %d", e.Reason, e.Message, e.Count))
	}
	return strings.Join(out, ", ")
}

func TestEventsSayWhatTheKubeletsSay(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "events"), 10)
	r.Container(web, "side", true, v1.EventTypeNormal, "Started", "Container %s", "started")
	r.Node(v1.EventTypeWarning, "InvalidManifest", "%s", "100% wrong")
	list := r.List()
	c, n := list[0], list[1]
	if c.InvolvedObject.Kind != "Pod" || c.InvolvedObject.FieldPath != "spec.initContainers{side}" || c.Namespace != "default" ||
		c.Source.Component != "kubelet" || c.Source.Host != "node" || c.Message != "Container started" || c.Count != 1 {
		t.Errorf("%+v", c)
	}
	if n.InvolvedObject.Kind != "Node" || n.InvolvedObject.Name != "node" || n.Namespace != "default" || n.Message != "100% wrong" {
		t.Errorf("%+v", n)
	}
}

func TestEqualEventsCountUpForTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t, filepath.Join(t.TempDir(), "events"), 10)
		r.Pod(web, v1.EventTypeWarning, "BackOff", "again")
		first := r.List()[0]
		time.Sleep(5 * time.Minute)
		r.Pod(web, v1.EventTypeWarning, "Other", "x")
		r.Pod(web, v1.EventTypeWarning, "BackOff", "again")
		if got := short(r.List()); got != "Other x 1, BackOff again 2" {
			t.Errorf("events %s", got)
		}
		if last := r.List()[1]; last.Name != first.Name || !last.FirstTimestamp.Equal(&first.FirstTimestamp) || last.LastTimestamp.Sub(first.LastTimestamp.Time) != 5*time.Minute {
			t.Errorf("%+v", last)
		}
		time.Sleep(11 * time.Minute)
		r.Pod(web, v1.EventTypeWarning, "BackOff", "again")
		if got := short(r.List()); got != "Other x 1, BackOff again 2, BackOff again 1" {
			t.Errorf("events %s", got)
		}
	})
}

func TestEventsOfOneInstantAreAllKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := open(t, filepath.Join(t.TempDir(), "events"), 10)
		for i := range 5 {
			r.Pod(web, v1.EventTypeNormal, "R", "%d", i)
		}
		if got := len(r.List()); got != 5 {
			t.Errorf("%d events, want 5", got)
		}
	})
}

func TestEventsOutliveTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	r := open(t, path, 10)
	r.Pod(web, v1.EventTypeNormal, "A", "%s", strings.Repeat("x", 2<<20)) // longer than any line should be
	r.Pod(web, v1.EventTypeNormal, "B", "b")
	r.Pod(web, v1.EventTypeNormal, "B", "b")
	r.Close()

	// The agent was killed in the middle of a line.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"kind":"Event","metadata":{"na`); err != nil {
		t.Fatal(err)
	}
	f.Close()

	r = open(t, path, 10)
	list := r.List()
	if len(list) != 2 || list[0].Reason != "A" || list[1].Count != 2 {
		t.Fatalf("%d events", len(list))
	}
	r.Pod(web, v1.EventTypeNormal, "C", "c")
	r.Close()
	if list := open(t, path, 10).List(); len(list) != 3 || list[2].Reason != "C" {
		t.Errorf("%d events: what comes after a torn line is lost", len(list))
	}
}

func TestMemoryAndFileAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	r := open(t, path, 10)
	for i := range 1000 {
		r.Pod(web, v1.EventTypeNormal, "R", "%d", i)
	}
	if list := r.List(); len(list) != 10 || list[9].Message != "999" {
		t.Errorf("%s", short(list))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(data, []byte("\n")); n > 31 {
		t.Errorf("%d lines are in the file", n)
	}
	if list := open(t, path, 10).List(); len(list) != 10 || list[9].Message != "999" {
		t.Errorf("read again: %s", short(list))
	}
}

func TestWhatIsListedIsACopy(t *testing.T) {
	r := open(t, filepath.Join(t.TempDir(), "events"), 10)
	r.Pod(web, v1.EventTypeNormal, "A", "a")
	r.List()[0].Reason = "changed"
	if got := r.List()[0].Reason; got != "A" {
		t.Error(got)
	}
}

func FuzzOpenReadsAnything(f *testing.F) {
	f.Add([]byte("{\"metadata\":{\"name\":\"a\"}}\n\n{"))
	f.Add([]byte("null\n[]\n\"x\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "events")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r := open(t, path, 5)
		r.Pod(web, v1.EventTypeNormal, "A", "a")
		if list := r.List(); len(list) > 5 || list[len(list)-1].Message != "a" {
			t.Errorf("%s", short(list))
		}
	})
}

func TestAKillWhileWritingLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	unfinished := filepath.Join(dir, ".tmp-events123")
	if err := os.WriteFile(unfinished, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, filepath.Join(dir, "events"), 10)
	if _, err := os.Stat(unfinished); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}
