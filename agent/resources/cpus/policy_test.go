package cpus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/numa"
)

// layout is a machine whose threads of a core are numbered half the machine
// apart, as Linux does on most.
func layout(sockets, nodesPerSocket, cachesPerNode, coresPerCache, threads int) *machine.Info {
	m := &machine.Info{}
	cores := sockets * nodesPerSocket * cachesPerNode * coresPerCache
	for id := range cores * threads {
		core := id % cores
		cache := core / coresPerCache
		node := cache / cachesPerNode
		m.CPUs = append(m.CPUs, machine.CPU{ID: id, Core: core, UncoreCache: cache, Node: node, Socket: node / nodesPerSocket})
	}
	for id := range sockets * nodesPerSocket {
		m.Nodes = append(m.Nodes, machine.Node{ID: id})
	}
	return m
}

func set(t testing.TB, text string) cpuset.CPUSet {
	t.Helper()
	s, err := cpuset.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func static(t testing.TB, m *machine.Info, reserved string, options ...string) *Policy {
	t.Helper()
	c := Config{Policy: PolicyStatic, AlphaOptions: true, Options: map[string]string{}, ReservedCPUs: set(t, reserved)}
	c.ReservedMilli = int64(c.ReservedCPUs.Size()) * 1000
	for _, o := range options {
		c.Options[o] = "true"
	}
	p, err := NewStatic(m, c, numa.PolicyNone)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func container(name, cpu string) v1.Container {
	list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("64Mi")}
	return v1.Container{Name: name, Resources: v1.ResourceRequirements{Requests: list, Limits: list}}
}

func pod(uid string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}, Spec: v1.PodSpec{Containers: containers}}
}

func withInit(p *v1.Pod, containers ...v1.Container) *v1.Pod {
	p.Spec.InitContainers = containers
	return p
}

func sidecar(c v1.Container) v1.Container {
	always := v1.ContainerRestartPolicyAlways
	c.RestartPolicy = &always
	return c
}

func allocate(p *Policy, s State, pod *v1.Pod, nodes numa.Mask) (State, error) {
	d := p.Draft(s)
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if err := d.Allocate(pod, &containers[i], nodes); err != nil {
				return s, err
			}
		}
	}
	return d.State(), nil
}

// Expected sets were worked out by hand from the kubelet's documentation.
func TestCPUsArePickedByTheMachinesLayout(t *testing.T) {
	smt := layout(1, 1, 1, 4, 2)      // 0-7, core n is n and n+4
	dual := layout(2, 1, 1, 4, 2)     // 0-15, socket 0 is 0-3 and 8-11
	subNUMA := layout(1, 2, 1, 4, 1)  // one socket, two nodes of four
	chiplets := layout(1, 1, 2, 4, 2) // 0-15, cache 0 is 0-3 and 8-11
	distribute := "distribute-cpus-across-numa"
	for name, test := range map[string]struct {
		machine  *machine.Info
		reserved string
		options  []string
		busy     string
		count    string
		nodes    numa.Mask
		want     string
	}{
		"a core for two":                        {smt, "0", nil, "", "2", 0, "1,5"},
		"one goes to a core that is half taken": {smt, "0", nil, "", "1", 0, "4"},
		"whole cores, then a thread":            {smt, "0", nil, "", "3", 0, "1,4,5"},
		"a whole socket":                        {dual, "0", nil, "", "8", 0, "4-7,12-15"},
		"the fuller socket first":               {dual, "0", nil, "1,9,2,10", "2", 0, "3,11"},
		"on the nodes that are asked for":       {dual, "0", nil, "", "2", numa.MaskOf(1), "4,12"},
		"more than those nodes have":            {dual, "0", nil, "4-7", "6", numa.MaskOf(1), "1,9,12-15"},
		"a whole node of a socket":              {subNUMA, "0", nil, "", "4", 0, "4-7"},
		"evenly from both nodes":                {dual, "0,8", []string{distribute}, "", "10", 0, "1-3,9-10,4-6,12-13"},
		"the node that has more left":           {dual, "0,8", []string{distribute}, "", "4", 0, "4,5,12,13"},
		"evenly, in whole cores":                {dual, "0,8", []string{distribute, "full-pcpus-only"}, "", "12", 0, "1-3,9-11,4-6,12-14"},
		"spread over cores":                     {smt, "0", []string{"distribute-cpus-across-cores"}, "", "3", 0, "1-3"},
		"one last-level cache":                  {chiplets, "0,8", []string{"prefer-align-cpus-by-uncorecache"}, "", "8", 0, "4-7,12-15"},
		"a part of one last-level cache":        {chiplets, "0,8", []string{"prefer-align-cpus-by-uncorecache"}, "", "4", 0, "1,2,9,10"},
		"aligned by socket":                     {layout(2, 2, 1, 2, 1), "0", []string{"align-by-socket"}, "", "3", numa.MaskOf(2), "4-6"},
	} {
		t.Run(name, func(t *testing.T) {
			p := static(t, test.machine, test.reserved, test.options...)
			s, err := p.Start(State{})
			if err != nil {
				t.Fatal(err)
			}
			s.Default = s.Default.Difference(set(t, test.busy))
			s, err = allocate(p, s, pod("a", container("c", test.count)), test.nodes)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Of("a", "c"); !got.Equals(set(t, test.want)) {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestOnlyWholeCPUsOfGuaranteedPodsAreExclusive(t *testing.T) {
	p := static(t, layout(1, 1, 1, 4, 2), "0")
	s, _ := p.Start(State{})
	burstable := pod("b", container("c", "2"))
	burstable.Spec.Containers[0].Resources.Limits = nil
	wholePod := pod("w", container("c", "2"))
	wholePod.Spec.Resources = &wholePod.Spec.Containers[0].Resources
	for name, pod := range map[string]*v1.Pod{"fraction": pod("f", container("c", "1500m")), "burstable": burstable, "pod level": wholePod} {
		got, err := allocate(p, s, pod, 0)
		if err != nil || len(got.Assigned) != 0 || !got.Default.Equals(s.Default) {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func TestInitContainersLeaveTheirCPUsToThoseAfterThem(t *testing.T) {
	p := static(t, layout(1, 1, 1, 4, 2), "0,4")
	s, _ := p.Start(State{})
	s, err := allocate(p, s, withInit(pod("a", container("app", "4")), container("first", "6"), sidecar(container("side", "2"))), 0)
	if err != nil {
		t.Fatal(err)
	}
	first, side, app := s.Of("a", "first"), s.Of("a", "side"), s.Of("a", "app")
	if !side.IsSubsetOf(first) || !app.IsSubsetOf(first) || !side.Intersection(app).IsEmpty() {
		t.Errorf("first %s, side %s, app %s", first, side, app)
	}
	// The init container's end gives nothing back that others still have.
	d := p.Draft(s)
	d.Release("a", "first")
	if got := d.State(); !got.Default.Equals(s.Default) {
		t.Errorf("shared after the init container: %s, before %s", got.Default, s.Default)
	}
	d.Release("a", "side")
	d.Release("a", "app")
	if got := d.State(); !got.Default.Equals(set(t, "0-7")) || len(got.Assigned) != 0 {
		t.Errorf("after all: %v", got)
	}
}

func TestContainersDoNotShareCoresWhereThatIsAskedFor(t *testing.T) {
	p := static(t, layout(1, 1, 1, 4, 2), "0", "full-pcpus-only")
	s, _ := p.Start(State{})
	for count, want := range map[string]string{
		"3": "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2",
		"8": "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 6, requested CPUs = 8, CPUs per core = 2",
	} {
		_, err := allocate(p, s, pod("a", container("c", count)), 0)
		var smt *SMTAlignmentError
		if !errors.As(err, &smt) || smt.Error() != want || smt.Reason() != "SMTAlignmentError" {
			t.Errorf("%s: %v", count, err)
		}
	}
	if s, err := allocate(p, s, pod("a", container("c", "6")), 0); err != nil || !s.Of("a", "c").Equals(set(t, "1-3,5-7")) {
		t.Errorf("6: %v, %v", s, err)
	}
}

func TestHints(t *testing.T) {
	p := static(t, layout(2, 1, 1, 4, 1), "0")
	s, _ := p.Start(State{})
	got := p.Draft(s).Hints(pod("a", container("c", "4")), &pod("a", container("c", "4")).Spec.Containers[0])["cpu"]
	if want := []numa.Hint{{Nodes: numa.MaskOf(1), Preferred: true}, {Nodes: numa.MaskOf(0, 1)}}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// What a container has is where it stays.
	a := pod("a", container("c", "2"))
	s, err := allocate(p, s, a, numa.MaskOf(1))
	if err != nil {
		t.Fatal(err)
	}
	for _, got := range []numa.Hints{p.Draft(s).Hints(a, &a.Spec.Containers[0]), p.Draft(s).PodHints(a)} {
		if want := []numa.Hint{{Nodes: numa.MaskOf(1), Preferred: true}, {Nodes: numa.MaskOf(0, 1)}}; fmt.Sprint(got["cpu"]) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	changed := pod("a", container("c", "3"))
	if got := p.Draft(s).Hints(changed, &changed.Spec.Containers[0])["cpu"]; got == nil || len(got) != 0 {
		t.Errorf("a changed request: got %v, want no place", got)
	}
	if got := p.Draft(s).Hints(pod("x", container("c", "500m")), &pod("x", container("c", "500m")).Spec.Containers[0]); got != nil {
		t.Errorf("no exclusive CPUs: got %v", got)
	}
}

// machines are the layouts that random pods are put on.
func machines() []*machine.Info {
	return []*machine.Info{layout(1, 1, 1, 2, 1), layout(1, 1, 1, 4, 2), layout(2, 1, 1, 4, 2), layout(2, 2, 1, 4, 2), layout(1, 2, 2, 4, 2), layout(4, 1, 1, 3, 1)}
}

func TestNoCPUIsGivenTwiceAndReleaseReturnsAll(t *testing.T) {
	for n, m := range machines() {
		for _, options := range [][]string{nil, {"full-pcpus-only"}, {"distribute-cpus-across-numa"}, {"distribute-cpus-across-numa", "full-pcpus-only"},
			{"distribute-cpus-across-cores"}, {"strict-cpu-reservation"}, {"prefer-align-cpus-by-uncorecache"}} {
			random := rand.New(rand.NewPCG(uint64(n), uint64(len(options))))
			p := static(t, m, "0", options...)
			empty, err := p.Start(State{})
			if err != nil {
				t.Fatal(err)
			}
			s := empty
			running := map[string]*v1.Pod{}
			for step := range 150 {
				if random.IntN(3) == 0 {
					for uid, pod := range running {
						d := p.Draft(s)
						for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
							d.Release(uid, c.Name)
						}
						s = d.State()
						delete(running, uid)
						break
					}
				} else {
					size := func() string { return fmt.Sprint(1 + random.IntN(len(m.CPUs)/2)) }
					next := withInit(pod(fmt.Sprint("pod", step), container("a", size()), container("b", size())), container("i", size()), sidecar(container("s", size())))
					var nodes numa.Mask
					if hints := p.Draft(s).PodHints(next)["cpu"]; len(hints) > 0 {
						nodes = hints[0].Nodes
					}
					after, err := allocate(p, s, next, nodes)
					if err != nil {
						var smt *SMTAlignmentError
						if !errors.As(err, &smt) && !strings.Contains(err.Error(), "not enough cpus available") {
							t.Fatal(err)
						}
						continue
					}
					s = after
					running[string(next.UID)] = next
				}
				check(t, p, s, running)
			}
			d := p.Draft(s)
			for uid, containers := range s.Assigned {
				for name := range containers {
					d.Release(uid, name)
				}
			}
			if !d.State().Equal(empty) {
				t.Fatalf("after all have gone: %v, at first: %v", d.State(), empty)
			}
		}
	}
}

func check(t *testing.T, p *Policy, s State, running map[string]*v1.Pod) {
	t.Helper()
	if _, err := p.Start(s); err != nil {
		t.Fatalf("a restart would refuse %v: %v", s, err)
	}
	owner := map[int]string{}
	for uid, pod := range running {
		for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
			cpus := s.Of(uid, c.Name)
			if want := c.Resources.Requests.Cpu().Value(); int64(cpus.Size()) != want {
				t.Fatalf("%s %s has %s, wanted %d", uid, c.Name, cpus, want)
			}
			for _, id := range cpus.List() {
				who := uid + " " + c.Name
				if c.Name == "i" { // shares with the pod's later containers
					who = uid
				}
				if before, taken := owner[id]; taken && before != who && before != uid && !strings.HasPrefix(before, who+" ") {
					t.Fatalf("CPU %d belongs to %s and %s", id, before, who)
				}
				if owner[id] == "" || c.Name != "i" {
					owner[id] = who
				}
				if id == 0 {
					t.Fatalf("%s has the reserved CPU", who)
				}
			}
		}
	}
}

func TestBadConfigurationsAreNamed(t *testing.T) {
	for want, c := range map[string]Config{
		"greater than zero":                  {},
		"unknown CPU Manager Policy option":  {ReservedMilli: 1, Options: map[string]string{"x": "true"}},
		"bad value for option":               {ReservedMilli: 1, Options: map[string]string{"full-pcpus-only": "maybe"}},
		"Alpha-level Options not enabled":    {ReservedMilli: 1, Options: map[string]string{"align-by-socket": "true"}},
		"Beta-level Options not enabled":     {ReservedMilli: 1, NoBetaOptions: true, Options: map[string]string{"distribute-cpus-across-numa": "true"}},
		"can not be used at the same time":   {ReservedMilli: 1, Options: map[string]string{"distribute-cpus-across-numa": "true", "prefer-align-cpus-by-uncorecache": "true"}},
		"unable to reserve":                  {ReservedMilli: 1500, ReservedCPUs: cpuset.New(0)},
		"do not exist":                       {ReservedMilli: 1000, ReservedCPUs: cpuset.New(99)},
		"is incompatible with option align-": {ReservedMilli: 1, AlphaOptions: true, Options: map[string]string{"align-by-socket": "true"}},
	} {
		if _, err := NewStatic(layout(2, 1, 1, 4, 2), c, numa.PolicySingleNode); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestStatesThatDoNotFitTheMachineAreRefused(t *testing.T) {
	own := map[string]map[string]cpuset.CPUSet{"a": {"c": cpuset.New(2)}}
	for want, s := range map[string]State{
		"cannot be empty":         {Assigned: own},
		"not all reserved cpus":   {Default: cpuset.New(1, 3), Assigned: own},
		"overlaps with default":   {Default: cpuset.New(0, 1, 2, 3), Assigned: own},
		"doesn't match with CPUs": {Default: cpuset.New(0, 1), Assigned: own},
	} {
		if _, err := static(t, layout(1, 1, 1, 4, 1), "0").Start(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", s, err, want)
		}
	}
	strict := static(t, layout(1, 1, 1, 4, 1), "0", "strict-cpu-reservation")
	if _, err := strict.Start(State{Default: cpuset.New(0, 1, 3), Assigned: own}); err == nil || !strings.Contains(err.Error(), "strictly reserved") {
		t.Errorf("strict: %v", err)
	}
}
