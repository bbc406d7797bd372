package timeline_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-io/berth/agent/timeline"
)

func TestAStepIsUnderWayUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l timeline.Log
		start := time.Now()
		end := l.Begin(timeline.Pull, "a")
		time.Sleep(time.Second)
		if s := l.Steps()[0]; !s.End.IsZero() || !s.Start.Equal(start) || s.Container != "a" {
			t.Errorf("%+v", s)
		}
		end(errors.New("no such image"))
		if s := l.Steps()[0]; s.End.Sub(s.Start) != time.Second || s.Error != "no such image" {
			t.Errorf("%+v", s)
		}
		l.Span(timeline.Ready, "", start, start)
		if s := l.Steps()[1]; s.Name != timeline.Ready || !s.End.Equal(start) {
			t.Errorf("%+v", s)
		}
	})
}

func TestTheFirstAndTheLatestStepsAreKept(t *testing.T) {
	var l timeline.Log
	for i := range 1000 {
		l.Begin("step", fmt.Sprint(i))(nil)
	}
	steps := l.Steps()
	if len(steps) > 100 {
		t.Errorf("%d steps are kept", len(steps))
	}
	if steps[0].Container != "0" || steps[len(steps)-1].Container != "999" {
		t.Errorf("from %s to %s", steps[0].Container, steps[len(steps)-1].Container)
	}
}

func TestAStepWhoseRecordIsGoneMayEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l timeline.Log
		for i := range 30 {
			l.Span("step", fmt.Sprint(i), time.Now(), time.Now())
		}
		end := l.Begin("long", "")
		for i := range 100 {
			l.Span("step", fmt.Sprint(i), time.Now(), time.Now())
		}
		end(nil)
		for _, s := range l.Steps() {
			if s.Name == "long" {
				t.Error("it is still there")
			}
		}
	})
}

func TestWhatWasUnderWayIsInterruptedByARestart(t *testing.T) {
	var l timeline.Log
	l.Begin(timeline.Sandbox, "")(nil)
	l.Begin(timeline.Pull, "a")
	now := time.Now().Add(time.Hour)
	steps := timeline.Restore(l.Steps(), now).Steps()
	if steps[0].Error != "" || steps[1].Error != "interrupted by a restart of the agent" || !steps[1].End.Equal(now) {
		t.Errorf("%+v", steps)
	}
	if got := l.Steps()[1]; !got.End.IsZero() {
		t.Error("the record that was restored from has changed")
	}
}

func TestSeveralMayRecordAtOnce(t *testing.T) {
	var l timeline.Log
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				end := l.Begin("step", fmt.Sprint(i))
				l.Steps()
				end(nil)
			}
		})
	}
	wg.Wait()
	for _, s := range l.Steps() {
		if s.End.IsZero() {
			t.Errorf("%+v never ended", s)
		}
	}
}
