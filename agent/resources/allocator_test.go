package resources

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/resources/cpus"
	"github.com/berth-io/berth/agent/resources/devices"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/memory"
	"github.com/berth-io/berth/agent/resources/numa"
)

// fakeRuntime remembers the CPUs of containers.
type fakeRuntime struct {
	mu    sync.Mutex
	cpus  map[string]string
	calls int
	err   error
}

func (f *fakeRuntime) UpdateContainerResources(_ context.Context, r *runtimeapi.UpdateContainerResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.err != nil {
		return nil, f.err
	}
	f.cpus[r.GetContainerId()] = r.GetLinux().GetCpusetCpus()
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// dual is a machine of two sockets, each a node with four CPUs and 1 GiB.
func dual() *machine.Info {
	m := &machine.Info{MemoryBytes: 2 << 30}
	for id := range 8 {
		m.CPUs = append(m.CPUs, machine.CPU{ID: id, Core: id, Socket: id / 4, Node: id / 4, UncoreCache: id / 4})
	}
	for id := range 2 {
		m.Nodes = append(m.Nodes, machine.Node{ID: id, MemoryBytes: 1 << 30})
	}
	return m
}

func quantities(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func config(dir, topology, scope string) Config {
	return Config{
		Dir: dir, Machine: dual(), Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		CPUs:     cpus.Config{Policy: cpus.PolicyStatic, ReservedMilli: 1000},
		Memory:   memory.Config{Policy: memory.PolicyStatic, Reserved: map[int]v1.ResourceList{0: quantities("memory", "64Mi")}, Total: quantities("memory", "64Mi")},
		Topology: numa.Config{Policy: topology, Scope: scope},
	}
}

func allocator(t *testing.T, c Config) (*Allocator, *fakeRuntime) {
	t.Helper()
	plugins, err := devices.New(devices.Config{Dir: filepath.Join(c.Dir, "device-plugins"), Nodes: c.Machine.NodeIDs(), Log: c.Log})
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeRuntime{cpus: map[string]string{}}
	a, err := New(c, plugins, r)
	if err != nil {
		t.Fatal(err)
	}
	return a, r
}

func container(name, cpu, memory string) v1.Container {
	l := quantities("cpu", cpu, "memory", memory)
	return v1.Container{Name: name, Resources: v1.ResourceRequirements{Requests: l, Limits: l}}
}

func pod(uid string, containers ...v1.Container) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Name: uid, Namespace: "default"}, Spec: v1.PodSpec{Containers: containers}}
}

func applied(a *Allocator, pod *v1.Pod, i int) *runtimeapi.LinuxContainerResources {
	c := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 100_000, CpuQuota: 200_000}}}
	a.Apply(pod, &pod.Spec.Containers[i], c)
	return c.Linux.Resources
}

func TestCPUsAndMemoryComeFromOneNode(t *testing.T) {
	a, _ := allocator(t, config(t.TempDir(), numa.PolicySingleNode, ""))
	first, second := pod("1", container("c", "2", "100Mi")), pod("2", container("c", "3", "100Mi"))
	for _, p := range []*v1.Pod{first, second} {
		if r := a.Admit(p, []*v1.Pod{first}); r != nil {
			t.Fatal(r)
		}
	}
	if got := applied(a, first, 0); got.CpusetCpus != "1-2" || got.CpusetMems != "0" || got.CpuQuota != -1 {
		t.Errorf("first: %v", got)
	}
	if got := applied(a, second, 0); got.CpusetCpus != "4-6" || got.CpusetMems != "1" {
		t.Errorf("second: %v", got)
	}
	shared := pod("3", container("c", "500m", "100Mi"))
	if r := a.Admit(shared, []*v1.Pod{first, second}); r != nil {
		t.Fatal(r)
	}
	if got := applied(a, shared, 0); got.CpusetCpus != "0,3,7" || got.CpuQuota != 200_000 {
		t.Errorf("shared: %v", got)
	}
	if !a.ExclusiveCPUs(first) || a.ExclusiveCPUs(shared) {
		t.Error("who has exclusive CPUs is not told right")
	}
}

func TestRejectionsAreInTheKubeletsWords(t *testing.T) {
	c := config(t.TempDir(), numa.PolicySingleNode, "")
	c.CPUs.Options = map[string]string{"full-pcpus-only": "true"}
	for i := range c.Machine.CPUs {
		c.Machine.CPUs[i].Core = i / 2 * 2
	}
	c.CPUs.ReservedMilli = 2000
	a, _ := allocator(t, c)
	for name, test := range map[string]struct {
		pod  *v1.Pod
		want Rejection
	}{
		"no node is large enough": {pod("1", container("c", "5", "100Mi")),
			Rejection{"TopologyAffinityError", "Resources cannot be allocated with Topology locality"}},
		"half a core": {pod("2", container("c", "3", "100Mi")),
			Rejection{"SMTAlignmentError", "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"}},
	} {
		if r := a.Admit(test.pod, nil); r == nil || *r != test.want {
			t.Errorf("%s: got %v", name, r)
		}
	}
	plain, _ := allocator(t, config(t.TempDir(), numa.PolicyNone, ""))
	want := Rejection{"UnexpectedAdmissionError", "Allocate failed due to not enough cpus available to satisfy request: requested=8, available=7, which is unexpected"}
	if r := plain.Admit(pod("1", container("c", "8", "1Mi")), nil); r == nil || *r != want {
		t.Errorf("too many CPUs: %v", r)
	}
}

// bounds notes what was to be within a boundary.
type bounds struct {
	uncounted
	lines []string
}

func (b *bounds) Bounded(scope, boundary string, has bool) {
	b.lines = append(b.lines, fmt.Sprint(scope, " ", boundary, " ", has))
}

func TestWhatAPolicyPromisesIsCounted(t *testing.T) {
	for _, test := range []struct {
		policy, scope string
		whole         bool // cores
		want          []string
	}{
		{numa.PolicyRestricted, numa.ScopePod, false, []string{"container uncore_cache true", "container uncore_cache true"}},
		{numa.PolicySingleNode, numa.ScopeContainer, false, []string{
			"container uncore_cache true", "container numa_node true", "container uncore_cache true", "container numa_node true", "container numa_node false",
		}},
		{numa.PolicySingleNode, numa.ScopePod, false, []string{
			"container uncore_cache true", "container uncore_cache true", "pod numa_node true", "pod numa_node false",
		}},
		{numa.PolicyNone, numa.ScopeContainer, true, []string{
			"container physical_cpu true", "container uncore_cache true", "container physical_cpu true", "container uncore_cache true", "container physical_cpu false",
		}},
	} {
		c, counts := config(t.TempDir(), test.policy, test.scope), &bounds{}
		c.Counts = counts
		if test.whole {
			c.CPUs.Options = map[string]string{"full-pcpus-only": "true"}
			for i := range c.Machine.CPUs {
				c.Machine.CPUs[i].Core = i / 2 * 2
			}
		}
		a, _ := allocator(t, c)
		if r := a.Admit(pod("1", container("a", "2", "100Mi"), container("b", "2", "100Mi")), nil); r != nil {
			t.Fatal(r)
		}
		a.Admit(pod("2", container("c", "5", "100Mi")), nil)
		if !slices.Equal(counts.lines, test.want) {
			t.Errorf("%s, scope %s: counted %q, want %q", test.policy, test.scope, counts.lines, test.want)
		}
	}
}

func TestCPUsAreCountedByNode(t *testing.T) {
	a, _ := allocator(t, config(t.TempDir(), numa.PolicySingleNode, ""))
	p := pod("1", container("a", "2", "100Mi"), container("b", "3", "100Mi"))
	if r := a.Admit(p, nil); r != nil {
		t.Fatal(r)
	}
	if got := a.CPUsByNode(); !maps.Equal(got, map[int]int{0: 2, 1: 3}) {
		t.Errorf("got %v", got)
	}
	none := config(t.TempDir(), numa.PolicyNone, "")
	none.CPUs.Policy = cpus.PolicyNone
	a, _ = allocator(t, none)
	if got := a.CPUsByNode(); len(got) > 0 {
		t.Errorf("without a policy: %v", got)
	}
}

func TestAPodThatIsRefusedHasNothing(t *testing.T) {
	for _, scope := range []string{numa.ScopeContainer, numa.ScopePod} {
		a, _ := allocator(t, config(t.TempDir(), numa.PolicyBestEffort, scope))
		// The memory of the second container does not fit: the first one's CPUs go back.
		if r := a.Admit(pod("1", container("a", "2", "100Mi"), container("b", "2", "9Gi")), nil); r == nil {
			t.Fatal("admitted")
		}
		if r := a.Admit(pod("2", container("c", "7", "100Mi")), nil); r != nil {
			t.Errorf("scope %s: %v", scope, r)
		}
	}
}

func TestThePodScopeKeepsContainersTogether(t *testing.T) {
	a, _ := allocator(t, config(t.TempDir(), numa.PolicySingleNode, numa.ScopePod))
	p := pod("1", container("a", "2", "100Mi"), container("b", "2", "100Mi"))
	if r := a.Admit(p, nil); r != nil {
		t.Fatal(r)
	}
	if x, y := applied(a, p, 0), applied(a, p, 1); x.CpusetMems != "1" || y.CpusetMems != "1" || x.CpusetCpus != "4-5" || y.CpusetCpus != "6-7" {
		t.Errorf("got %v and %v", x, y)
	}
	if r := a.Admit(pod("2", container("a", "2", "10Mi"), container("b", "3", "10Mi")), []*v1.Pod{p}); r == nil || r.Reason != "TopologyAffinityError" {
		t.Errorf("five CPUs on one node of four: %v", r)
	}
}

func TestContainersThatRunFollowTheSharedCPUs(t *testing.T) {
	a, r := allocator(t, config(t.TempDir(), numa.PolicyNone, ""))
	shared, own := pod("1", container("c", "100m", "1Mi")), pod("2", container("c", "3", "1Mi"))
	w := World{Pods: []*v1.Pod{shared}, Running: []Running{{"s", "1", "c"}}}
	sync := func(cpus map[string]string, calls int) {
		t.Helper()
		if err := a.Sync(context.Background(), w); err != nil {
			t.Fatal(err)
		}
		for id, want := range cpus {
			if r.cpus[id] != want {
				t.Errorf("container %s is on %s, want %s", id, r.cpus[id], want)
			}
		}
		if r.calls != calls {
			t.Errorf("the runtime was called %d times, want %d", r.calls, calls)
		}
	}
	sync(map[string]string{"s": "0-7"}, 1)
	sync(nil, 1)
	if rejection := a.Admit(own, w.Pods); rejection != nil {
		t.Fatal(rejection)
	}
	if len(a.poke) != 1 {
		t.Error("Run was not told that the shared CPUs are fewer")
	}
	w = World{Pods: []*v1.Pod{shared, own}, Running: []Running{{"s", "1", "c"}, {"o", "2", "c"}}}
	sync(map[string]string{"s": "0,4-7", "o": "1-3"}, 3)
	w = World{Pods: []*v1.Pod{shared}, Running: []Running{{"s", "1", "c"}}}
	sync(map[string]string{"s": "0-7"}, 4)
	// Nothing is taken back before the pods are known.
	if rejection := a.Admit(own, w.Pods); rejection != nil {
		t.Fatal(rejection)
	}
	w = World{Running: []Running{{"s", "1", "c"}}}
	sync(map[string]string{"s": "0,4-7"}, 5)
	r.err = errors.New("the runtime is away")
	w.Running = append(w.Running, Running{"new", "1", "c"})
	if err := a.Sync(context.Background(), w); err == nil || !strings.Contains(err.Error(), "the runtime is away") {
		t.Errorf("got %v", err)
	}
	r.err = nil
	sync(map[string]string{"new": "0,4-7"}, 7)
}

func TestTheMemoryOfInitContainersGoesBackOnceTheyHaveEnded(t *testing.T) {
	a, _ := allocator(t, config(t.TempDir(), numa.PolicyNone, ""))
	p := pod("1", container("app", "1", "100Mi"))
	p.Spec.InitContainers = []v1.Container{container("first", "1", "500Mi")}
	if r := a.Admit(p, nil); r != nil {
		t.Fatal(r)
	}
	big := pod("2", container("c", "1", "800Mi"))
	free := func() uint64 {
		var sum uint64
		for _, n := range a.memoryState.Nodes {
			sum += n.MemoryMap["memory"].Free
		}
		return sum
	}
	before := free()
	for _, w := range []World{
		{Pods: []*v1.Pod{p}},
		{Pods: []*v1.Pod{p}, Running: []Running{{"f", "1", "first"}}},
	} {
		if err := a.Sync(context.Background(), w); err != nil {
			t.Fatal(err)
		}
		if free() != before {
			t.Fatal("an init container lost its memory before a later one ran")
		}
	}
	if err := a.Sync(context.Background(), World{Pods: []*v1.Pod{p}, Running: []Running{{"a", "1", "app"}}}); err != nil {
		t.Fatal(err)
	}
	if got := free(); got != before+400<<20 {
		t.Errorf("free: %d, want %d", got, before+400<<20)
	}
	if r := a.Admit(big, []*v1.Pod{p}); r != nil {
		t.Error(r)
	}
}

func TestARestartedAgentGivesTheSameAnswer(t *testing.T) {
	c := config(t.TempDir(), numa.PolicyRestricted, "")
	a, _ := allocator(t, c)
	var pods []*v1.Pod
	for i := range 3 {
		p := pod(fmt.Sprint(i), container("a", "1", "50Mi"), container("b", "1", "60Mi"))
		if r := a.Admit(p, pods); r != nil {
			t.Fatal(r)
		}
		pods = append(pods, p)
	}
	again, r := allocator(t, c)
	for _, p := range pods {
		for i := range p.Spec.Containers {
			if got, want := applied(again, p, i), applied(a, p, i); got.String() != want.String() {
				t.Errorf("pod %s: %v, before %v", p.UID, got, want)
			}
		}
		if rejection := again.Admit(p, pods); rejection != nil {
			t.Errorf("admitted again: %v", rejection)
		}
	}
	if !again.cpuState.Equal(a.cpuState) || !again.memoryState.Equal(a.memoryState) {
		t.Error("admitting pods again changed who has what")
	}
	if r.calls != 0 {
		t.Error("a restart touched a container")
	}
}

func TestAStateThatDoesNotFitIsAnErrorWithAWayOut(t *testing.T) {
	c := config(t.TempDir(), numa.PolicyNone, "")
	allocator(t, c)
	for name, change := range map[string]func(*Config){
		"cpu_manager_state":    func(c *Config) { c.CPUs = cpus.Config{} },
		"memory_manager_state": func(c *Config) { c.Memory = memory.Config{} },
	} {
		changed := c
		change(&changed)
		plugins, err := devices.New(devices.Config{Dir: filepath.Join(c.Dir, "device-plugins"), Log: c.Log})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New(changed, plugins, nil); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "drain this node and delete") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWithoutPoliciesNothingIsGivenButTheFilesAreThere(t *testing.T) {
	dir := t.TempDir()
	c := config(dir, "", "")
	c.CPUs, c.Memory = cpus.Config{}, memory.Config{}
	a, r := allocator(t, c)
	p := pod("1", container("c", "2", "1Mi"))
	if rejection := a.Admit(p, nil); rejection != nil {
		t.Fatal(rejection)
	}
	if got := applied(a, p, 0); got.CpusetCpus != "" || got.CpusetMems != "" || got.CpuQuota != 200_000 {
		t.Errorf("got %v", got)
	}
	if err := a.Sync(context.Background(), World{Pods: []*v1.Pod{p}, Running: []Running{{"c", "1", "c"}}}); err != nil || r.calls != 0 {
		t.Errorf("%v, %d calls", err, r.calls)
	}
	for file, want := range map[string]string{
		"cpu_manager_state":    `{"policyName":"none","defaultCpuSet":"","checksum":1353318690}`,
		"memory_manager_state": `{"policyName":"None","machineState":{},"checksum":`,
	} {
		content, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || !strings.HasPrefix(string(content), want) {
			t.Errorf("%s: %s, %v", file, content, err)
		}
	}
	if all := a.Allocatable(); !all.CPUs.IsEmpty() || all.Memory != nil || all.Devices != nil {
		t.Errorf("allocatable: %+v", all)
	}
}

func TestEndedInitContainers(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	p := pod("1", container("app", "1", "1Mi"))
	p.Spec.InitContainers = []v1.Container{container("a", "1", "1Mi"), container("s", "1", "1Mi"), container("b", "1", "1Mi")}
	p.Spec.InitContainers[1].RestartPolicy = &always
	for running, want := range map[string][]string{"": nil, "a": nil, "s": {"a"}, "s,b": {"a"}, "s,app": {"a", "b"}, "a,app": {"b"}} {
		var list []Running
		for name := range strings.SplitSeq(running, ",") {
			list = append(list, Running{name, "1", name})
		}
		if got := endedInit(p, list); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", running, got, want)
		}
	}
}
