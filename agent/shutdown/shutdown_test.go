package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/disruption"
)

func pod(name string, priority int32, grace int64) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)},
		Spec:       v1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: &grace},
	}
}

func TestSettingsBecomePeriods(t *testing.T) {
	for _, test := range []struct {
		name  string
		s     Settings
		want  []Period
		total time.Duration
		err   string
	}{
		{"nothing", Settings{}, nil, 0, ""},
		{"two periods", Settings{GracePeriod: 30 * time.Second, GracePeriodCriticalPods: 10 * time.Second}, []Period{{0, 20}, {2_000_000_000, 10}}, 30 * time.Second, ""},
		{"by priority, sorted", Settings{ByPriority: []Period{{100, 3}, {0, 1}, {-5, 2}}}, []Period{{-5, 2}, {0, 1}, {100, 3}}, 6 * time.Second, ""},
		{"too much for critical pods", Settings{GracePeriod: 1, GracePeriodCriticalPods: 2}, nil, 0, "must be within"},
		{"below zero", Settings{GracePeriod: -1}, nil, 0, "neither below 0"},
		{"both ways", Settings{GracePeriod: 1, ByPriority: []Period{{0, 1}}}, nil, 0, "together"},
		{"a priority twice", Settings{ByPriority: []Period{{0, 1}, {0, 2}}}, nil, 0, "twice"},
		{"a period below zero", Settings{ByPriority: []Period{{0, -1}}}, nil, 0, "-1 s"},
	} {
		got, err := test.s.Periods()
		if (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: error %v, want %q", test.name, err, test.err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" || Total(got) != test.total {
			t.Errorf("%s: total %v, periods (-want +got):\n%s", test.name, Total(got), diff)
		}
	}
}

// groups writes a plan as "priority: pod grace, ...".
func groups(plan []Group) []string {
	var out []string
	for _, g := range plan {
		var ends []string
		for _, e := range g.Ends {
			ends = append(ends, fmt.Sprintf("%s %d", e.Pod.Name, *e.Stop.Grace))
		}
		out = append(out, fmt.Sprintf("%d: %s", g.Priority, strings.Join(ends, ", ")))
	}
	return out
}

func TestPodsEndInTheOrderOfTheirPriorities(t *testing.T) {
	periods := []Period{{0, 10}, {100, 20}, {1000, 5}}
	pods := []*v1.Pod{pod("highest", 5000, 30), pod("lowest", -1, 30), pod("zero", 0, 3), pod("between", 99, 30), pod("border", 100, 30), pod("top", 1000, 5)}
	want := []string{"0: lowest 10, zero 3, between 10", "100: border 20", "1000: highest 5, top 5"}
	if diff := cmp.Diff(want, groups(Plan(periods, pods))); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"100: border 20"}, groups(Plan(periods, pods[4:5]))); diff != "" {
		t.Errorf("groups without pods are in the plan (-want +got):\n%s", diff)
	}
	if plan := Plan(nil, pods); plan != nil {
		t.Errorf("without periods there is a plan: %v", groups(plan))
	}
}

func TestPodsAreToldTheKubeletsWords(t *testing.T) {
	stop := Plan([]Period{{0, 1}}, []*v1.Pod{{}})[0].Ends[0].Stop
	one := int64(1)
	want := disruption.Stop{
		Reason: "Terminated", Message: "Pod was terminated in response to imminent node shutdown.", Grace: &one,
		Conditions: []v1.PodCondition{{Type: "DisruptionTarget", Status: "True", Reason: "TerminationByKubelet", Message: "Pod was terminated in response to imminent node shutdown."}},
	}
	if diff := cmp.Diff(want, stop); diff != "" {
		t.Errorf("stop (-want +got):\n%s", diff)
	}
}

// Every pod is in the plan once, none has longer than its group or itself
// wants, and nobody ends before someone of a lower group.
func TestAPlanHasEveryPodOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 500 {
		byPriority := map[int32]int64{}
		for range 1 + r.IntN(4) {
			byPriority[int32(r.IntN(20)-5)] = r.Int64N(60)
		}
		var s Settings
		for p, seconds := range byPriority {
			s.ByPriority = append(s.ByPriority, Period{p, seconds})
		}
		periods, err := s.Periods()
		if err != nil {
			t.Fatal(err)
		}
		var pods []*v1.Pod
		for i := range r.IntN(10) {
			pods = append(pods, pod(fmt.Sprint(i), int32(r.IntN(24)-7), r.Int64N(60)))
		}
		seen := map[string]bool{}
		highest := int32(-1 << 31)
		for _, g := range Plan(periods, pods) {
			low := highest
			for _, e := range g.Ends {
				p := disruption.Priority(e.Pod)
				if seen[e.Pod.Name] || p < low && g.Priority > p || *e.Stop.Grace > g.Seconds || *e.Stop.Grace > *e.Pod.Spec.TerminationGracePeriodSeconds {
					t.Fatalf("%v: pod %s of priority %d has %d s", groups(Plan(periods, pods)), e.Pod.Name, p, *e.Stop.Grace)
				}
				seen[e.Pod.Name] = true
				highest = max(highest, p)
			}
		}
		if len(seen) != len(pods) {
			t.Fatalf("%d of %d pods are in the plan", len(seen), len(pods))
		}
	}
}

// node ends its pods some time after they were told.
type node struct {
	mu    sync.Mutex
	pods  []*v1.Pod
	takes map[types.UID]time.Duration
	told  map[types.UID]time.Time
	order []string
}

func (n *node) Active() []*v1.Pod { return n.pods }
func (n *node) Stop(uid types.UID, _ disruption.Stop) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told[uid] = time.Now()
	n.order = append(n.order, string(uid))
}
func (n *node) Finished(uid types.UID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, told := n.told[uid]
	return told && time.Since(at) >= n.takes[uid]
}

func TestAGroupWaitsForTheOneBeforeUntilItsTimeIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{
			pods:  []*v1.Pod{pod("critical", 2_000_000_000, 30), pod("quick", 0, 30), pod("stuck", 50, 30)},
			takes: map[types.UID]time.Duration{"quick": time.Second, "stuck": time.Hour}, told: map[types.UID]time.Time{},
		}
		s := New([]Period{{0, 10}, {50, 20}, {2_000_000_000, 5}}, n, slog.New(slog.DiscardHandler))
		began := time.Now()
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"quick", "stuck", "critical"}, n.order); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if took := time.Since(began); took != 21*time.Second {
			t.Errorf("it took %v, want 21s: one of the first group, all of the second's, none of the third's", took)
		}
		if !s.ShuttingDown() {
			t.Error("the node takes pods again")
		}
	})
}

func TestAShutdownThatIsCalledOffLeavesTheOthersAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{pods: []*v1.Pod{pod("first", 0, 30), pod("second", 100, 30)}, takes: map[types.UID]time.Duration{"first": time.Hour}, told: map[types.UID]time.Time{}}
		s := New([]Period{{0, 30}, {100, 30}}, n, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		if diff := cmp.Diff([]string{"first"}, n.order); diff != "" || s.ShuttingDown() {
			t.Errorf("shutting down %v, told (-want +got):\n%s", s.ShuttingDown(), diff)
		}
	})
}
