package allocation_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/resource"

	"github.com/berth-io/berth/agent/allocation"
)

// amounts are requests of so much CPU, in thousandths of a core, and memory,
// in bytes.
func amounts(cpu, memory int64) v1.ResourceRequirements {
	return v1.ResourceRequirements{Requests: v1.ResourceList{
		v1.ResourceCPU:    *apiresource.NewMilliQuantity(cpu, apiresource.DecimalSI),
		v1.ResourceMemory: *apiresource.NewQuantity(memory, apiresource.BinarySI),
	}}
}

func limited(r v1.ResourceRequirements) v1.ResourceRequirements {
	r.Limits = r.Requests
	return r
}

func podOf(name string, r v1.ResourceRequirements) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: r}}},
	}
}

func wanting(pod *v1.Pod, r v1.ResourceRequirements) *v1.Pod {
	return allocation.Resources{Containers: map[string]v1.ResourceRequirements{"c": r}}.In(pod)
}

// having is the pod with a status that says what its container has.
func having(pod *v1.Pod, r v1.ResourceRequirements) *v1.Pod {
	out := *pod
	out.Status = v1.PodStatus{Phase: v1.PodRunning, ContainerStatuses: []v1.ContainerStatus{{
		Name: "c", Resources: &r, AllocatedResources: pod.Spec.Containers[0].Resources.Requests,
	}}}
	return &out
}

func with(pod *v1.Pod, change func(*v1.Pod)) *v1.Pod {
	change(pod)
	return pod
}

func priority(p int32) func(*v1.Pod) { return func(pod *v1.Pod) { pod.Spec.Priority = &p } }

// used is what pods count for, each the larger of what it is allocated and what
// it has.
func used(pods []*v1.Pod) (cpu, memory int64) {
	for _, p := range pods {
		r := resource.PodRequests(p, resource.PodResourcesOptions{UseStatusResources: true})
		cpu, memory = cpu+r.Cpu().MilliValue(), memory+r.Memory().Value()
	}
	return cpu, memory
}

// node has room for so much.
func node(cpu, memory int64) func(*v1.Pod, []*v1.Pod) (string, bool) {
	return func(pod *v1.Pod, others []*v1.Pod) (string, bool) {
		c, m := used(others)
		r := resource.PodRequests(pod, resource.PodResourcesOptions{})
		if c+r.Cpu().MilliValue() > cpu {
			return "no cpu", false
		}
		return "no memory", m+r.Memory().Value() <= memory
	}
}

func nobody() {}

func TestAResizeIsAllocatedDeferredOrInfeasible(t *testing.T) {
	restart := func(p *v1.Pod) {
		p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
	}
	for _, c := range []struct {
		name   string
		config allocation.Config
		pod    *v1.Pod
		to     v1.ResourceRequirements
		want   allocation.Verdict
	}{
		{"there is room", allocation.Config{}, podOf("p", amounts(1, 1)), amounts(90, 90), allocation.Verdict{Outcome: allocation.Allocated}},
		{"it shrinks", allocation.Config{}, podOf("p", amounts(50, 50)), amounts(1, 1), allocation.Verdict{Outcome: allocation.Allocated}},
		{"too little CPU", allocation.Config{}, podOf("p", amounts(1, 1)), amounts(91, 1), allocation.Verdict{Outcome: allocation.Deferred, Message: "no cpu"}},
		{"too little memory", allocation.Config{}, podOf("p", amounts(1, 1)), amounts(1, 91), allocation.Verdict{Outcome: allocation.Deferred, Message: "no memory"}},
		{"exclusive CPUs", allocation.Config{StaticCPU: true}, podOf("p", limited(amounts(1, 1))), limited(amounts(2, 1)),
			allocation.Verdict{Outcome: allocation.Infeasible, Message: `Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"`}},
		{"exclusive CPUs, but it is memory", allocation.Config{StaticCPU: true}, podOf("p", limited(amounts(1, 1))), limited(amounts(1, 2)), allocation.Verdict{Outcome: allocation.Allocated}},
		{"exclusive CPUs, but burstable", allocation.Config{StaticCPU: true}, podOf("p", amounts(1, 1)), amounts(2, 1), allocation.Verdict{Outcome: allocation.Allocated}},
		{"memory of a NUMA node", allocation.Config{StaticMemory: true}, podOf("p", limited(amounts(1, 1))), limited(amounts(1, 2)),
			allocation.Verdict{Outcome: allocation.Infeasible, Message: `Resize is infeasible for Guaranteed Pods alongside Memory Manager policy "static"`}},
		{"it may swap", allocation.Config{Swaps: swaps}, podOf("p", amounts(1, 1)), amounts(1, 2),
			allocation.Verdict{Outcome: allocation.Infeasible, Message: "In-place resize of containers with swap is not supported."}},
		{"it may swap, but it is CPU", allocation.Config{Swaps: swaps}, podOf("p", amounts(1, 1)), amounts(2, 1), allocation.Verdict{Outcome: allocation.Allocated}},
		{"it may swap and is restarted", allocation.Config{Swaps: swaps}, with(podOf("p", amounts(1, 1)), restart), amounts(1, 2), allocation.Verdict{Outcome: allocation.Allocated}},
	} {
		c.config.Fits = node(100, 100)
		l := allocation.NewLedger(c.config)
		l.Set(c.pod, nobody)
		l.Set(podOf("other", amounts(10, 10)), nobody)
		for range 2 {
			if got := l.Resize(wanting(c.pod, c.to)); got != c.want {
				t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
			}
		}
	}
}

func swaps(*v1.Pod, *v1.Container) bool { return true }

func TestThoseWhoWaitAreServedInTheKubeletsOrder(t *testing.T) {
	synctest.Test(t, inOrder)
}

func inOrder(t *testing.T) {
	served := []*v1.Pod{ // each before all that follow
		with(podOf("high", amounts(10, 10)), priority(10)),
		podOf("guaranteed", limited(amounts(10, 10))),
		podOf("first", amounts(10, 10)),
		podOf("last", amounts(10, 10)),
	}
	asking := []string{"first", "last", "guaranteed", "high"}
	for i, next := range served {
		var woken []string
		l := allocation.NewLedger(allocation.Config{Fits: node(100, 1000)})
		l.Set(podOf("big", amounts(60, 10)), nobody)
		for _, name := range asking {
			at := slices.IndexFunc(served, func(p *v1.Pod) bool { return p.Name == name })
			if at < i {
				continue
			}
			l.Set(served[at], func() { woken = append(woken, name) })
			to := amounts(70, 10)
			if name == "guaranteed" {
				to = limited(to)
			}
			if got := l.Resize(wanting(served[at], to)); got.Outcome != allocation.Deferred {
				t.Errorf("%s: %+v", name, got)
			}
			time.Sleep(time.Second)
		}
		woken = nil
		l.Remove("big")
		if !slices.Equal(woken, []string{next.Name}) {
			t.Errorf("%q were woken, want %s", woken, next.Name)
		}
	}
}

func TestRoomIsFreeOnlyWhenAPodNoLongerHasIt(t *testing.T) {
	l := allocation.NewLedger(allocation.Config{Fits: node(100, 100)})
	a, b, woken := having(podOf("a", amounts(60, 1)), amounts(60, 1)), podOf("b", amounts(10, 1)), 0
	l.Set(a, nobody)
	l.Set(b, func() { woken++ })
	grown := wanting(b, amounts(80, 1))
	l.Resize(grown)
	small := wanting(a, amounts(20, 1))
	if got := l.Resize(small); got.Outcome != allocation.Allocated {
		t.Errorf("%+v", got)
	}
	l.Set(having(small, amounts(60, 1)), nobody)
	if got := l.Resize(grown); got.Outcome != allocation.Deferred {
		t.Errorf("it got what another still has: %+v", got)
	}
	woken = 0
	l.Set(having(small, amounts(20, 1)), nobody)
	if got := l.Resize(grown); got.Outcome != allocation.Allocated || woken != 1 {
		t.Errorf("%+v, woken %d times", got, woken)
	}
}

func TestANewPodDoesNotGetWhatWasGranted(t *testing.T) {
	l := allocation.NewLedger(allocation.Config{Fits: node(100, 100)})
	a := podOf("a", amounts(10, 1))
	l.Set(a, nobody)
	l.Resize(wanting(a, amounts(60, 1)))
	fits := func(others []*v1.Pod) bool { _, ok := node(100, 100)(podOf("b", amounts(50, 1)), others); return ok }
	if l.Admit(podOf("b", amounts(50, 1)), fits) {
		t.Error("it did")
	}
	l.Withdraw("a")
	if !l.Admit(podOf("b", amounts(50, 1)), fits) || len(l.Pods()) != 2 {
		t.Error("it does not get what was given back")
	}
}

// A member plays a pod's worker: it takes what it is granted, and has it later.
type member struct {
	pod    *v1.Pod
	has    v1.ResourceRequirements
	wanted *v1.Pod
	asked  bool // since it was woken
}

func TestNoMoreIsGivenThanThereIsAndWhoFitsDoesNotWait(t *testing.T) {
	const capacity = 1000
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 0))
		fits := node(capacity, capacity)
		l := allocation.NewLedger(allocation.Config{Fits: fits})
		members := map[string]*member{}
		tell := func(m *member) { l.Set(having(m.pod, m.has), func() { m.asked = false }) }
		ask := func(m *member) {
			for !m.asked && m.wanted != nil {
				m.asked = true
				if l.Resize(m.wanted).Outcome == allocation.Allocated {
					m.pod, m.wanted = m.wanted, nil
					tell(m)
				}
			}
		}
		some := func() v1.ResourceRequirements { return amounts(1+random.Int64N(400), 1+random.Int64N(400)) }
		for step := range 150 {
			names := make([]string, 0, len(members))
			for name := range members {
				names = append(names, name)
			}
			slices.Sort(names)
			var m *member
			if len(names) > 0 {
				m = members[names[random.IntN(len(names))]]
			}
			switch action := random.IntN(10); {
			case action < 2 || m == nil:
				pod := with(podOf(fmt.Sprintf("%d", step), some()), priority(random.Int32N(3)))
				if l.Admit(pod, func(others []*v1.Pod) bool { _, ok := fits(pod, others); return ok }) {
					m := &member{pod: pod, has: pod.Spec.Containers[0].Resources}
					members[pod.Name] = m
					tell(m)
				}
			case action < 3:
				l.Remove(string(m.pod.UID))
				delete(members, m.pod.Name)
			case action < 6:
				m.wanted, m.asked = wanting(m.pod, some()), false
				ask(m)
			case action < 9:
				m.has = m.pod.Spec.Containers[0].Resources
				tell(m)
			default:
				ask(m)
			}
			// What is given, and what those have who are about to give it back.
			var all []*v1.Pod
			for _, m := range members {
				all = append(all, having(m.pod, m.has))
			}
			if cpu, memory := used(all); cpu > capacity || memory > capacity {
				t.Fatalf("seed %d, step %d: %d CPU and %d memory of %d are given", seed, step, cpu, memory, capacity)
			}
			for _, m := range members {
				if m.wanted == nil || !m.asked {
					continue
				}
				if _, ok := fits(m.wanted, others(l, m.wanted)); ok {
					t.Fatalf("seed %d, step %d: %s fits and waits", seed, step, m.pod.Name)
				}
			}
		}
	}
}

func others(l *allocation.Ledger, pod *v1.Pod) []*v1.Pod {
	return slices.DeleteFunc(l.Pods(), func(p *v1.Pod) bool { return p.UID == pod.UID })
}
