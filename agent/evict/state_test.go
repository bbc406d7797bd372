package evict

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/usage"
)

func TestSettingsAreReadAsTheKubeletDoes(t *testing.T) {
	got, err := Settings{
		Hard:            map[string]string{"memory.available": "1Gi", "pid.available": "0%"},
		Soft:            map[string]string{"nodefs.available": "15%"},
		SoftGracePeriod: map[string]string{"nodefs.available": "1m30s"},
		MinimumReclaim:  map[string]string{"nodefs.available": "1%", "memory.available": "0"},
		PodsEnforced:    true,
	}.Thresholds()
	if err != nil {
		t.Fatal(err)
	}
	want := []Threshold{
		{Signal: MemoryAvailable, Value: Value{Amount: gi, Text: "1Gi"}, MinReclaim: Value{Text: "0"}},
		{Signal: NodeFSAvailable, Value: Value{Fraction: 0.15}, Grace: 90 * time.Second, MinReclaim: Value{Fraction: 0.01}},
		{Signal: AllocatableMemoryAvailable, Value: Value{Amount: gi, Text: "1Gi"}, MinReclaim: Value{Text: "0"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("thresholds (-want +got):\n%s", diff)
	}
}

func TestDefaultsHoldWhereNothingIsSetOrTheyAreMerged(t *testing.T) {
	count := func(s Settings) int {
		t.Helper()
		all, err := s.Thresholds()
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := count(Settings{}); n != 5 {
		t.Errorf("%d default thresholds, want 5", n)
	}
	if n := count(Settings{Hard: map[string]string{}}); n != 0 {
		t.Errorf("%d thresholds where none is wanted", n)
	}
	if n := count(Settings{Hard: map[string]string{"pid.available": "10"}}); n != 1 {
		t.Errorf("%d thresholds, want the one that is set", n)
	}
	if n := count(Settings{Hard: map[string]string{"pid.available": "10", "memory.available": "0%"}, MergeDefaults: true}); n != 5 {
		t.Errorf("%d merged thresholds, want 5: four defaults, one added, one switched off", n)
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	for _, test := range []struct {
		s    Settings
		want string
	}{
		{Settings{Hard: map[string]string{"memory.free": "1"}}, "evictionHard[memory.free]: there is no such signal"},
		{Settings{Hard: map[string]string{"memory.available": "lots"}}, `evictionHard[memory.available]: "lots" is neither`},
		{Settings{Hard: map[string]string{"memory.available": "0"}}, "must be above 0"},
		{Settings{Hard: map[string]string{"memory.available": "-1Gi"}}, "must be above 0"},
		{Settings{Hard: map[string]string{"memory.available": "-1%"}}, "must be above 0"},
		{Settings{Hard: map[string]string{"memory.available": "101%"}}, "at most 100%"},
		{Settings{Hard: map[string]string{"memory.available": "x%"}}, "is not a percentage"},
		{Settings{Hard: map[string]string{"memory.available": "NaN%"}}, "is not a percentage"},
		{Settings{Soft: map[string]string{"memory.available": "1Gi"}}, "evictionSoft[memory.available]: evictionSoftGracePeriod has no"},
		{Settings{SoftGracePeriod: map[string]string{"memory.available": "1"}}, "evictionSoftGracePeriod[memory.available]: \"1\" is not a duration"},
		{Settings{SoftGracePeriod: map[string]string{"memory.available": "-1s"}}, "is negative"},
		{Settings{MinimumReclaim: map[string]string{"memory.available": "-1"}}, "evictionMinimumReclaim[memory.available]"},
		{Settings{MinimumReclaim: map[string]string{"memory.available": "0%"}}, "above 0"},
	} {
		if _, err := test.s.Thresholds(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: error %v, want one with %q", test.s, err, test.want)
		}
	}
}

func FuzzThresholds(f *testing.F) {
	f.Add("memory.available", "10%", "1m", "1Gi")
	f.Add("nodefs.available", "1e3", "0s", "5%")
	f.Fuzz(func(t *testing.T, signal, value, grace, reclaim string) {
		s := Settings{
			Hard: map[string]string{}, Soft: map[string]string{signal: value},
			SoftGracePeriod: map[string]string{signal: grace}, MinimumReclaim: map[string]string{signal: reclaim},
		}
		thresholds, err := s.Thresholds()
		if err != nil {
			return
		}
		for _, x := range thresholds {
			if v := x.Value.of(gi); v < 0 || x.Grace < 0 || x.MinReclaim.of(gi) < 0 {
				t.Errorf("%v: %+v", s, x)
			}
			if x.Value.Fraction > 0 && x.Value.of(gi) > gi {
				t.Errorf("%v: more than there is", s)
			}
		}
	})
}

func TestContainerThresholdsAreThoseOfTheirFileSystem(t *testing.T) {
	s := Settings{Hard: map[string]string{"nodefs.available": "10%", "imagefs.available": "15%", "containerfs.available": "50%"}}
	for layout, want := range map[usage.Layout]float32{usage.Single: 0.1, usage.ImagesApart: 0.15, usage.Split: 0.1} {
		var got []float32
		for _, x := range policy(t, s, layout).thresholds {
			if x.Signal == ContainerFSAvailable {
				got = append(got, x.Value.Fraction)
			}
		}
		if diff := cmp.Diff([]float32{want}, got); diff != "" {
			t.Errorf("layout %d (-want +got):\n%s", layout, diff)
		}
	}
}

func TestAHardThresholdIsDueAtOnceAndASoftOneAfterItsGrace(t *testing.T) {
	p := policy(t, Settings{
		Hard:            map[string]string{"memory.available": "1Gi"},
		Soft:            map[string]string{"memory.available": "2Gi", "nodefs.available": "10%"},
		SoftGracePeriod: map[string]string{"memory.available": "30s", "nodefs.available": "1m"},
	}, usage.Single)
	var s State
	at := func(after time.Duration, memory, disk int64) []string {
		s = p.Next(s, Observations{MemoryAvailable: {memory, 8 * gi}, NodeFSAvailable: {disk, 100}}, start.Add(after))
		var due []string
		for _, x := range p.Due(s) {
			due = append(due, string(x.Signal)+" "+x.Grace.String())
		}
		return due
	}
	for _, step := range []struct {
		after        time.Duration
		memory, disk int64
		want         []string
	}{
		{0, 3 * gi, 50, nil},
		{10 * time.Second, 1500 * mi, 9, nil},
		{39 * time.Second, 1500 * mi, 9, nil},
		{40 * time.Second, 1500 * mi, 9, []string{"memory.available 30s"}},
		{50 * time.Second, 3 * gi, 9, nil}, // memory is back: its grace begins anew
		{70 * time.Second, 1500 * mi, 9, []string{"nodefs.available 1m0s"}},
		{71 * time.Second, 500 * mi, 50, []string{"memory.available 0s"}},
		{101 * time.Second, 500 * mi, 50, []string{"memory.available 0s", "memory.available 30s"}},
	} {
		got := at(step.after, step.memory, step.disk)
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", step.after, diff)
		}
	}
}

func TestMemoryComesBeforeDisk(t *testing.T) {
	p := policy(t, Settings{Hard: map[string]string{"imagefs.available": "10%", "memory.available": "1Gi", "nodefs.available": "10%"}, PodsEnforced: true}, usage.Single)
	low := Observations{MemoryAvailable: {1, gi}, AllocatableMemoryAvailable: {1, gi}, NodeFSAvailable: {1, 100}, ImageFSAvailable: {1, 100}}
	var got []Signal
	for _, x := range p.Due(p.Next(State{}, low, start)) {
		got = append(got, x.Signal)
	}
	if diff := cmp.Diff([]Signal{MemoryAvailable, AllocatableMemoryAvailable, ImageFSAvailable, NodeFSAvailable}, got); diff != "" {
		t.Errorf("due (-want +got):\n%s", diff)
	}
}

func TestAThresholdThatWasDueIsResolvedWithTheMinimumReclaimed(t *testing.T) {
	p := policy(t, Settings{Hard: map[string]string{"memory.available": "1Gi"}, MinimumReclaim: map[string]string{"memory.available": "500Mi"}}, usage.Single)
	var s State
	for i, step := range []struct {
		available int64
		due       bool
	}{{1200 * mi, false}, {1000 * mi, true}, {1200 * mi, true}, {1524 * mi, false}, {1200 * mi, false}} {
		o := Observations{MemoryAvailable: {step.available, 8 * gi}}
		s = p.Next(s, o, start.Add(time.Duration(i)*time.Second))
		if due := len(p.Due(s)) > 0; due != step.due {
			t.Errorf("step %d, %d Mi available: due %v, want %v", i, step.available/mi, due, step.due)
		}
		if relieved := p.Relieved(o); relieved != (step.available >= 1524*mi) {
			t.Errorf("step %d: relieved %v", i, relieved)
		}
	}
}

func TestConditionsStayForTheTransitionPeriod(t *testing.T) {
	p := policy(t, Settings{
		Hard: map[string]string{"memory.available": "1Gi", "pid.available": "100"},
		Soft: map[string]string{"imagefs.inodesFree": "5%"}, SoftGracePeriod: map[string]string{"imagefs.inodesFree": "1h"},
	}, usage.Single)
	var s State
	for _, step := range []struct {
		after               time.Duration
		memory, pids, files int64
		want                []v1.NodeConditionType
	}{
		{0, 2 * gi, 1000, 50, nil},
		{time.Minute, gi / 2, 10, 50, []v1.NodeConditionType{"MemoryPressure", "PIDPressure"}},
		{2 * time.Minute, 2 * gi, 10, 4, []v1.NodeConditionType{"DiskPressure", "MemoryPressure", "PIDPressure"}}, // a soft threshold tells at once
		{5*time.Minute + 59*time.Second, 2 * gi, 1000, 50, []v1.NodeConditionType{"DiskPressure", "MemoryPressure", "PIDPressure"}},
		{6 * time.Minute, 2 * gi, 1000, 50, []v1.NodeConditionType{"DiskPressure", "PIDPressure"}},
		{7 * time.Minute, 2 * gi, 1000, 50, nil},
	} {
		now := start.Add(step.after)
		s = p.Next(s, Observations{MemoryAvailable: {step.memory, 8 * gi}, PIDAvailable: {step.pids, 32768}, ImageFSInodesFree: {step.files, 100}}, now)
		if diff := cmp.Diff(step.want, p.Conditions(s, now)); diff != "" {
			t.Errorf("after %v (-want +got):\n%s", step.after, diff)
		}
	}
}

func TestASignalThatCannotBeSeenMeansNothing(t *testing.T) {
	p := policy(t, Settings{}, usage.Single)
	s := p.Next(State{}, Observe(usage.Node{}), start)
	if due := p.Due(s); due != nil || p.Conditions(s, start) != nil {
		t.Errorf("due %v", due)
	}
}

func TestSignalsAreWhatIsLeft(t *testing.T) {
	got := Observe(usage.Node{
		Memory: usage.Memory{Capacity: 100, WorkingSet: 30, Usage: 50},
		Pods:   usage.Memory{Capacity: 80, WorkingSet: 90},
		NodeFS: usage.FS{Capacity: 10, Available: 4, Inodes: 20, InodesFree: 5},
		PIDs:   usage.PIDs{Max: 1000, Running: 400},
	})
	want := Observations{
		MemoryAvailable: {70, 100}, AllocatableMemoryAvailable: {0, 80},
		NodeFSAvailable: {4, 10}, NodeFSInodesFree: {5, 20}, PIDAvailable: {600, 1000},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("observations (-want +got):\n%s", diff)
	}
}

// Whatever happens: what is due is met (with its minimum), for at least its
// grace, and its condition is true; a condition is true only within the
// transition period of a threshold that was met.
func TestNothingIsDueWithoutReason(t *testing.T) {
	p := policy(t, Settings{
		Hard:            map[string]string{"memory.available": "10%", "pid.available": "20"},
		Soft:            map[string]string{"memory.available": "30%", "nodefs.available": "20%"},
		SoftGracePeriod: map[string]string{"memory.available": "40s", "nodefs.available": "5s"},
		MinimumReclaim:  map[string]string{"memory.available": "10%", "nodefs.available": "10"},
		PodsEnforced:    true,
	}, usage.ImagesApart)
	r := rand.New(rand.NewPCG(3, 4))
	dues := 0
	for range 200 {
		var s State
		now := start
		lastMet := map[v1.NodeConditionType]time.Time{}
		metSince := map[int]time.Time{}
		for range 60 {
			now = now.Add(time.Duration(r.IntN(20)) * time.Second)
			o := Observations{}
			for signal := range meanings {
				if r.IntN(8) > 0 {
					o[signal] = Observation{r.Int64N(100), 100}
				}
			}
			s = p.Next(s, o, now)
			for i, x := range p.thresholds {
				if !met(x, o, true) {
					delete(metSince, i)
					continue
				}
				if _, found := metSince[i]; !found {
					metSince[i] = now
				}
				lastMet[meanings[x.Signal].condition] = now
			}
			conditions := p.Conditions(s, now)
			for _, i := range s.due {
				dues++
				since, isMet := metSince[i]
				if !isMet || now.Sub(since) < p.thresholds[i].Grace {
					t.Fatalf("%+v is due: met %v since %v", p.thresholds[i], isMet, now.Sub(since))
				}
				if !slices.Contains(conditions, meanings[p.thresholds[i].Signal].condition) {
					t.Fatalf("%+v is due, conditions are %v", p.thresholds[i], conditions)
				}
			}
			for _, c := range conditions {
				if now.Sub(lastMet[c]) >= p.transition {
					t.Fatalf("%s is true %v after anything was short", c, now.Sub(lastMet[c]))
				}
			}
		}
	}
	if dues < 100 {
		t.Fatalf("only %d were due: the test shows nothing", dues)
	}
}
