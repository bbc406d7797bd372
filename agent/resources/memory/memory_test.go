package memory

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/numa"
)

const mi = 1 << 20

func list(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

// layout has nodes of 1 GiB each with 64 huge pages of 2 MiB. 128 MiB of the
// first node are reserved.
func layout(nodes int) *machine.Info {
	m := &machine.Info{}
	for id := range nodes {
		m.Nodes = append(m.Nodes, machine.Node{ID: id, MemoryBytes: 1024 * mi, HugePages: map[int64]int64{2 * mi: 64}})
	}
	return m
}

func static(t testing.TB, nodes int) *Policy {
	t.Helper()
	p, err := NewStatic(layout(nodes), Config{Reserved: map[int]v1.ResourceList{0: list("memory", "128Mi")}, Total: list("memory", "128Mi", "cpu", "1")})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func container(name string, pairs ...string) v1.Container {
	l := list(pairs...)
	l[v1.ResourceCPU] = resource.MustParse("1")
	return v1.Container{Name: name, Resources: v1.ResourceRequirements{Requests: l, Limits: l}}
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

func allocate(p *Policy, s State, pod *v1.Pod, hint numa.Hint) (State, error) {
	d := p.Draft(s)
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if err := d.Allocate(pod, &containers[i], hint); err != nil {
				return s, err
			}
		}
	}
	return d.State(), nil
}

func start(t testing.TB, p *Policy) State {
	t.Helper()
	s, err := p.Start(State{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheFirstStateIsTheMachine(t *testing.T) {
	p := static(t, 2)
	s := start(t, p)
	want := map[v1.ResourceName]*Table{
		"memory":        {TotalMemSize: 1024 * mi, SystemReserved: 128 * mi, Allocatable: 768 * mi, Free: 768 * mi},
		"hugepages-2Mi": {TotalMemSize: 128 * mi, Allocatable: 128 * mi, Free: 128 * mi},
	}
	if diff := cmp.Diff(want, s.Nodes[0].MemoryMap); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	blocks := []Block{{[]int{0}, "hugepages-2Mi", 128 * mi}, {[]int{0}, "memory", 768 * mi}, {[]int{1}, "hugepages-2Mi", 128 * mi}, {[]int{1}, "memory", 896 * mi}}
	if diff := cmp.Diff(blocks, p.Allocatable()); diff != "" {
		t.Errorf("allocatable (-want +got):\n%s", diff)
	}
}

func TestMemoryIsPlaced(t *testing.T) {
	p := static(t, 2)
	empty := start(t, p)
	full, err := allocate(p, empty, pod("x", container("c", "memory", "700Mi")), numa.Hint{Nodes: 1, Preferred: true})
	if err != nil {
		t.Fatal(err)
	}
	wide, err := allocate(p, empty, pod("x", container("c", "memory", "1000Mi")), numa.Hint{Preferred: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		state State
		hint  numa.Hint
		ask   []string
		want  numa.Mask
		err   string
	}{
		"anywhere":                      {empty, numa.Hint{Preferred: true}, []string{"memory", "100Mi"}, numa.MaskOf(0), ""},
		"where it was said":             {empty, numa.Hint{Nodes: 2, Preferred: true}, []string{"memory", "100Mi"}, numa.MaskOf(1), ""},
		"where there is room":           {full, numa.Hint{Preferred: true}, []string{"memory", "100Mi"}, numa.MaskOf(1), ""},
		"on both nodes":                 {empty, numa.Hint{Preferred: true}, []string{"memory", "1000Mi"}, numa.MaskOf(0, 1), ""},
		"huge pages beside":             {empty, numa.Hint{Preferred: true}, []string{"memory", "10Mi", "hugepages-2Mi", "200Mi"}, numa.MaskOf(0, 1), ""},
		"a group stays a group":         {wide, numa.Hint{Preferred: true}, []string{"memory", "100Mi"}, 0, "default preferred hint"},
		"a group may be shared":         {wide, numa.Hint{}, []string{"memory", "100Mi"}, numa.MaskOf(0, 1), ""},
		"a node in use makes no group":  {full, numa.Hint{Nodes: 3}, []string{"memory", "800Mi"}, 0, "violates NUMA node allocation"},
		"too little where it was said":  {full, numa.Hint{Nodes: 1, Preferred: true}, []string{"memory", "100Mi"}, 0, "extend the current topology hint"},
		"more than there is":            {empty, numa.Hint{Preferred: true}, []string{"memory", "10Gi"}, 0, "no NUMA nodes with enough memory"},
		"huge pages of an unknown size": {empty, numa.Hint{Preferred: true}, []string{"memory", "10Mi", "hugepages-1Gi", "1Gi"}, 0, "no NUMA nodes with enough memory"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := allocate(p, test.state, pod("a", container("c", test.ask...)), test.hint)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil || s.NodesOf("a", "c") != test.want {
				t.Errorf("got %v, %v, want %v", s.NodesOf("a", "c").Nodes(), err, test.want.Nodes())
			}
		})
	}
}

func TestHintsStayWhereTheMemoryIs(t *testing.T) {
	p := static(t, 2)
	a := pod("a", container("c", "memory", "100Mi"))
	s, err := allocate(p, start(t, p), a, numa.Hint{Nodes: 2, Preferred: true})
	if err != nil {
		t.Fatal(err)
	}
	want := numa.Hints{"memory": {{Nodes: 2, Preferred: true}}}
	if diff := cmp.Diff(want, p.Draft(s).Hints(a, &a.Spec.Containers[0])); diff != "" {
		t.Errorf("container (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, p.Draft(s).PodHints(a)); diff != "" {
		t.Errorf("pod (-want +got):\n%s", diff)
	}
	next := pod("b", container("c", "memory", "850Mi"))
	want = numa.Hints{"memory": {}}
	if diff := cmp.Diff(want, p.Draft(s).Hints(next, &next.Spec.Containers[0])); diff != "" {
		t.Errorf("no room (-want +got):\n%s", diff)
	}
	burstable := pod("c", container("c", "memory", "1Mi"))
	burstable.Spec.Containers[0].Resources.Limits = nil
	if got := p.Draft(s).Hints(burstable, &burstable.Spec.Containers[0]); got != nil {
		t.Errorf("burstable: %v", got)
	}
}

func TestNoMemoryIsGivenTwiceAndReleaseReturnsAll(t *testing.T) {
	for _, nodes := range []int{1, 2, 4} {
		random := rand.New(rand.NewPCG(uint64(nodes), 1))
		p := static(t, nodes)
		s := start(t, p)
		running := map[string]*v1.Pod{}
		for step := range 300 {
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
				ask := func(name string) v1.Container {
					return container(name, "memory", fmt.Sprint(random.IntN(400), "Mi"), "hugepages-2Mi", fmt.Sprint(2*random.IntN(20), "Mi"))
				}
				next := withInit(pod(fmt.Sprint("pod", step), ask("a"), ask("b")), ask("i"), ask("j"), sidecar(ask("s")))
				var hint numa.Hint
				if hints := p.Draft(s).PodHints(next)["memory"]; len(hints) > 0 {
					hint = hints[random.IntN(len(hints))]
				}
				if after, err := allocate(p, s, next, hint); err == nil {
					s = after
					running[string(next.UID)] = next
				}
			}
			if _, err := p.Start(s); err != nil {
				t.Fatalf("a restart would refuse the state: %v", err)
			}
			var reserved, booked uint64
			for _, n := range s.Nodes {
				for name, table := range n.MemoryMap {
					if table.Free+table.Reserved != table.Allocatable {
						t.Fatalf("%s: %+v", name, table)
					}
					reserved += table.Reserved
				}
			}
			for _, containers := range s.Assigned {
				for _, blocks := range containers {
					for _, b := range blocks {
						booked += b.Size
					}
				}
			}
			if reserved != booked {
				t.Fatalf("step %d: %d bytes are reserved, %d are assigned", step, reserved, booked)
			}
		}
		d := p.Draft(s)
		for uid, containers := range s.Assigned {
			for name := range containers {
				d.Release(uid, name)
			}
		}
		if diff := cmp.Diff(start(t, p), d.State()); diff != "" {
			t.Fatalf("after all have gone (-first +last):\n%s", diff)
		}
	}
}

func TestBadConfigurationsAreNamed(t *testing.T) {
	for want, c := range map[string]Config{
		"you should specify":      {},
		"NUMA node 7":             {Reserved: map[int]v1.ResourceList{7: list("memory", "1Mi")}},
		"is not equal to":         {Reserved: map[int]v1.ResourceList{0: list("memory", "1Mi")}, Total: list("memory", "2Mi")},
		`of type "hugepages-2Mi"`: {Reserved: map[int]v1.ResourceList{0: list("memory", "1Mi")}, Total: list("memory", "1Mi", "hugepages-2Mi", "2Mi")},
	} {
		if _, err := NewStatic(layout(2), c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func stateFile(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "memory_manager_state")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// kubelets is a file of the kubelet's, with its checksum.
const kubelets = `{"policyName":"static",
"machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":{"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},
"entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}},"checksum":4215593881}`

func TestStateFilesOfTheKubeletAreRead(t *testing.T) {
	s, err := Load(stateFile(t, kubelets), "static")
	if err != nil || s.NodesOf("pod", "container1") != 1 || s.Nodes[0].MemoryMap["memory"].Free != 1024 {
		t.Errorf("got %+v, %v", s, err)
	}
	for content, want := range map[string]string{
		`{`: "unexpected end of JSON input",
		strings.Replace(kubelets, "1024", "1025", 1):        "checkpoint is corrupted",
		`{"policyName":"None","checksum":0}`:                `configured policy "static" differs from state checkpoint policy "None"`,
		`{"policyName":"static","machineState":{"0":null}}`: "NUMA node 0 is empty",
	} {
		if _, err := Load(stateFile(t, content), "static"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", content, err, want)
		}
	}
}

func TestStatesThatDoNotFitTheMachineAreRefused(t *testing.T) {
	p := static(t, 2)
	s, err := allocate(p, start(t, p), pod("a", container("c", "memory", "100Mi")), numa.Hint{Nodes: 2, Preferred: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := static(t, 1).Start(s); err == nil {
		t.Error("a machine with fewer nodes was accepted")
	}
	d := p.Draft(s)
	delete(d.state.Assigned, "a")
	if _, err := p.Start(d.State()); err == nil || !strings.Contains(err.Error(), "different from the real one") {
		t.Errorf("memory that nobody has: %v", err)
	}
	if _, err := p.Start(State{Assigned: s.Assigned}); err == nil {
		t.Error("assignments without a machine were accepted")
	}
}

func TestAStateThatIsSavedIsLoaded(t *testing.T) {
	p := static(t, 2)
	s, err := allocate(p, start(t, p), pod("a", container("c", "memory", "1000Mi", "hugepages-2Mi", "4Mi")), numa.Hint{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "memory_manager_state")
	if err := Save(path, "static", s); err != nil {
		t.Fatal(err)
	}
	again, err := Load(path, "static")
	if diff := cmp.Diff(s, again); err != nil || diff != "" {
		t.Errorf("%v (-saved +loaded):\n%s", err, diff)
	}
}

func FuzzStateFile(f *testing.F) {
	f.Add(kubelets)
	f.Add(`{"policyName":"static","machineState":null,"entries":{"a":{"b":[{"numaAffinity":[0,99,-1],"type":"memory","size":18446744073709551615}]}}}`)
	p := static(f, 2)
	f.Fuzz(func(t *testing.T, content string) {
		s, err := decode([]byte(content), "static")
		if err != nil {
			return
		}
		file, err := json.Marshal(encode("static", s))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decode(file, "static"); err != nil || !again.Equal(s) {
			t.Errorf("saved %v, loaded %v, %v", s, again, err)
		}
		if s, err = p.Start(s); err != nil {
			return
		}
		d := p.Draft(s)
		for uid, containers := range s.Assigned {
			for name := range containers {
				d.Release(uid, name)
			}
		}
	})
}
