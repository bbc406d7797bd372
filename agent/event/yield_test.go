package event_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/event"
)

// sent notes when what was sent, in milliseconds.
type sent struct {
	start time.Time
	list  []string
}

func (s *sent) note(how string, e *v1.Event) (*v1.Event, error) {
	s.list = append(s.list, fmt.Sprintf("%s %s %d", how, e.Name, time.Since(s.start).Milliseconds()))
	return e, nil
}

func (s *sent) Create(e *v1.Event) (*v1.Event, error)          { return s.note("create", e) }
func (s *sent) Update(e *v1.Event) (*v1.Event, error)          { return s.note("update", e) }
func (s *sent) Patch(e *v1.Event, _ []byte) (*v1.Event, error) { return s.note("patch", e) }

func TestEventsWaitForPodsThatStartButNotForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		to := &sent{start: time.Now()}
		var busy atomic.Bool
		sink := event.Yield(to, busy.Load)
		at := func(name string, ago time.Duration) *v1.Event {
			return &v1.Event{ObjectMeta: metav1.ObjectMeta{Name: name}, LastTimestamp: metav1.NewTime(time.Now().Add(-ago))}
		}
		send := func(_ *v1.Event, err error) {
			if err != nil {
				t.Error(err)
			}
		}
		send(sink.Create(at("quiet", 0)))
		busy.Store(true)
		time.AfterFunc(90*time.Millisecond, func() { busy.Store(false) })
		send(sink.Update(at("short", 0))) // at 100
		busy.Store(true)
		send(sink.Patch(at("long", 0), nil))             // 10 s later
		send(sink.Create(at("second", 9*time.Second)))   // it has waited before
		send(sink.Create(at("old", time.Hour)))          // at once
		send(sink.Create(at("tomorrow", -24*time.Hour))) // the clock was set back
		want := []string{"create quiet 0", "update short 100", "patch long 10100", "create second 11100", "create old 11100", "create tomorrow 21100"}
		if !slices.Equal(to.list, want) {
			t.Errorf("sent %q, want %q", to.list, want)
		}
	})
}
