package evict

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/usage"
)

// fake is a node: what it uses, its pods, and what was done.
type fake struct {
	mu       sync.Mutex // of what follows
	node     usage.Node
	used     Usage
	usedErr  error
	hangs    bool // nothing is removed
	active   []*v1.Pod
	finished map[types.UID]bool
	// frees is how much disk each reclaim gives back.
	frees   uint64
	did     []string
	counted []string
}

func (f *fake) Evicted(signal string) { f.counted = append(f.counted, signal) }
func (f *fake) EvictionMeasured(signal string, age time.Duration) {
	f.counted = append(f.counted, fmt.Sprint(signal, " measured ", age > 0))
}

func (f *fake) do(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.did = append(f.did, what)
	if strings.HasPrefix(what, "remove") {
		f.node.NodeFS.Available += f.frees
	}
}

func (f *fake) done() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.did)
}

func (f *fake) finish(uid types.UID, yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finished[uid] = yes
}

func (f *fake) Active() []*v1.Pod { return f.active }
func (f *fake) Finished(uid types.UID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.finished[uid]
}
func (f *fake) Stop(uid types.UID, stop disruption.Stop)     { f.do("stop " + string(uid)) }
func (f *fake) Node(ctx context.Context) (usage.Node, error) { return f.node, ctx.Err() }
func (f *fake) Pods(_ context.Context, pods []*v1.Pod) (map[types.UID]usage.Pod, error) {
	f.do(fmt.Sprintf("measure %d", len(pods)))
	return f.used, f.usedErr
}
func (f *fake) RemoveDeadContainers(ctx context.Context) error {
	if f.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	f.do("remove containers")
	return nil
}
func (f *fake) RemoveUnusedImages(ctx context.Context) error {
	if f.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	f.do("remove images")
	return errors.New("one is stuck")
}

type events struct{ f *fake }

func (e events) Node(_, reason, format string, args ...any) {
	e.f.do(reason + ": " + fmt.Sprintf(format, args...))
}

func manager(t *testing.T, f *fake, s Settings, change ...func(*Config)) *Manager {
	t.Helper()
	thresholds, err := s.Thresholds()
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Thresholds: thresholds, Transition: time.Minute, LocalStorage: true, Counts: f, Log: slog.New(slog.DiscardHandler)}
	for _, do := range change {
		do(&c)
	}
	return New(c, f, f, f, events{f})
}

func round(t *testing.T, m *Manager, f *fake, want ...string) {
	t.Helper()
	f.did = nil
	if _, err := m.round(t.Context(), start); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, f.did); diff != "" {
		t.Errorf("a round did (-want +got):\n%s", diff)
	}
}

var diskLow = Settings{Hard: map[string]string{"nodefs.available": "10%"}}

func TestAHealthyNodeIsOnlyLookedAt(t *testing.T) {
	f := &fake{node: usage.Node{NodeFS: usage.FS{Capacity: 100, Available: 50}}, active: []*v1.Pod{pod("p")}}
	round(t, manager(t, f, diskLow), f)
}

func TestImagesAndDeadContainersGoBeforePods(t *testing.T) {
	f := &fake{node: usage.Node{NodeFS: usage.FS{Capacity: 100, Available: 5}}, active: []*v1.Pod{pod("p")}, frees: 10}
	m := manager(t, f, diskLow)
	round(t, m, f, "EvictionThresholdMet: Attempting to reclaim ephemeral-storage", "remove containers", "remove images")
	if diff := cmp.Diff([]v1.NodeConditionType{v1.NodeDiskPressure}, m.Pressure()); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}

func TestWhereThatIsNotEnoughOnePodEnds(t *testing.T) {
	f := &fake{node: usage.Node{NodeFS: usage.FS{Capacity: 100, Available: 1}}, active: []*v1.Pod{pod("p"), pod("q")}, frees: 1,
		used: Usage{"p": uses(0, bytes(1), usage.Disk{}, usage.Disk{}), "q": uses(0, bytes(2), usage.Disk{}, usage.Disk{})}}
	m := manager(t, f, diskLow)
	round(t, m, f, "EvictionThresholdMet: Attempting to reclaim ephemeral-storage", "remove containers", "remove images", "measure 2", "stop q")
	if diff := cmp.Diff([]string{"nodefs.available measured true", "nodefs.available"}, f.counted); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

func TestARuntimeThatHangsKeepsNoPodFromEnding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{node: usage.Node{NodeFS: usage.FS{Capacity: 100, Available: 1}}, active: []*v1.Pod{pod("p")}, hangs: true}
		round(t, manager(t, f, diskLow), f, "EvictionThresholdMet: Attempting to reclaim ephemeral-storage", "measure 1", "stop p")
	})
}

func TestForMemoryAPodEndsAtOnceEvenUnmeasured(t *testing.T) {
	f := &fake{node: usage.Node{Memory: usage.Memory{Capacity: gi, WorkingSet: gi}}, active: []*v1.Pod{pod("p")}, usedErr: errors.New("no answer")}
	round(t, manager(t, f, Settings{}), f, "EvictionThresholdMet: Attempting to reclaim memory", "measure 1", "stop p")
}

func TestAPodAboveItsLimitEndsAndTheNodeIsLookedAtInTheNextRound(t *testing.T) {
	f := &fake{node: usage.Node{Memory: usage.Memory{Capacity: gi, WorkingSet: gi}}, active: []*v1.Pod{pod("p"), with(pod("q"), emptyDir("v", "1Mi"))},
		used: Usage{"q": uses(0, usage.Disk{}, usage.Disk{}, bytes(gi))}}
	round(t, manager(t, f, Settings{}), f, "measure 1", "stop q")
}

func TestLimitsThatCannotBeCheckedDoNotHoldUpTheRest(t *testing.T) {
	f := &fake{node: usage.Node{Memory: usage.Memory{Capacity: gi, WorkingSet: gi}}, active: []*v1.Pod{with(pod("q"), emptyDir("v", "1Mi"))}, usedErr: errors.New("no answer")}
	round(t, manager(t, f, Settings{}), f, "measure 1", "EvictionThresholdMet: Attempting to reclaim memory", "measure 1", "stop q")
}

func TestLimitsMayBeSwitchedOff(t *testing.T) {
	f := &fake{active: []*v1.Pod{with(pod("q"), emptyDir("v", "1Mi"))}}
	round(t, manager(t, f, Settings{}, func(c *Config) { c.LocalStorage = false }), f)
}

func TestWhoAsksIsToldOfNewConditions(t *testing.T) {
	changes := 0
	f := &fake{node: usage.Node{Memory: usage.Memory{Capacity: gi, WorkingSet: gi}}}
	m := manager(t, f, Settings{}, func(c *Config) { c.Changed = func() { changes++ } })
	for range 3 {
		if _, err := m.round(t.Context(), start); err != nil {
			t.Fatal(err)
		}
	}
	if changes != 1 {
		t.Errorf("told %d times of one change", changes)
	}
}

func TestANodeIsCalmOnceItIsKnownToBeShortOfNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		used   uint64
		change func(*Config)
		calm   bool
	}{
		{"enough", 0, func(*Config) {}, true},
		{"short of memory", gi, func(*Config) {}, false},
		{"nobody wants to know", gi, func(c *Config) { c.Thresholds, c.LocalStorage = nil, false }, true},
	} {
		changes := 0
		f := &fake{node: usage.Node{
			Memory: usage.Memory{Capacity: gi, WorkingSet: test.used}, NodeFS: usage.FS{Capacity: gi, Available: gi}, ImageFS: usage.FS{Capacity: gi, Available: gi},
		}}
		m := manager(t, f, Settings{}, func(c *Config) {
			c.Changed = func() { changes++ }
			test.change(c)
		})
		if m.Calm() {
			t.Errorf("%s: calm before anybody has looked", test.name)
		}
		for range 2 {
			if _, err := m.round(t.Context(), start); err != nil {
				t.Fatal(err)
			}
		}
		if m.Calm() != test.calm || changes != 1 {
			t.Errorf("%s: calm %v, told %d times", test.name, m.Calm(), changes)
		}
	}
}

// notifier pokes when told.
type notifier struct{ pokes chan struct{} }

func (notifier) Arm(usage.Node) error { return nil }
func (n notifier) Run(ctx context.Context, poke func()) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.pokes:
			poke()
		}
	}
}

func TestARoundComesEveryTenSecondsAndWhenTheKernelCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{node: usage.Node{Memory: usage.Memory{Capacity: gi, WorkingSet: gi}}}
		n := notifier{make(chan struct{})}
		m := manager(t, f, Settings{}, func(c *Config) { c.Notifier = n })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		rounds := func(want int) {
			t.Helper()
			synctest.Wait()
			if did := f.done(); len(did) != 2*want { // the event, and nobody to measure
				t.Errorf("%d rounds, want %d: %v", len(did)/2, want, did)
			}
		}
		rounds(1)
		time.Sleep(10 * time.Second)
		rounds(2)
		time.Sleep(5 * time.Second)
		n.pokes <- struct{}{}
		rounds(3)
		n.pokes <- struct{}{} // not more than one a second
		rounds(3)
		time.Sleep(time.Second)
		rounds(4)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestTheNextRoundWaitsForWhatWasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{node: usage.Node{Memory: usage.Memory{Capacity: gi, WorkingSet: gi}}, active: []*v1.Pod{pod("p")}, finished: map[types.UID]bool{}}
		m := manager(t, f, Settings{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		stops := func(want int) {
			t.Helper()
			synctest.Wait()
			got := 0
			for _, d := range f.done() {
				if d == "stop p" {
					got++
				}
			}
			if got != want {
				t.Errorf("%d pods were ended, want %d", got, want)
			}
		}
		stops(1)
		time.Sleep(20 * time.Second)
		stops(1)
		f.finish("p", true)
		time.Sleep(time.Second)
		stops(2) // the fake's memory is as short as before
		f.finish("p", false)
		time.Sleep(30 * time.Second)
		stops(3) // who does not end is not waited for longer
		cancel()
		<-done
	})
}
