package machine

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// tree is a file system from lines "path: content".
func tree(t *testing.T, lines ...string) fstest.MapFS {
	t.Helper()
	root := fstest.MapFS{}
	for _, line := range lines {
		path, content, found := strings.Cut(line, ": ")
		if !found {
			t.Fatalf("bad line %q", line)
		}
		root[path] = &fstest.MapFile{Data: []byte(content + "\n")}
	}
	return root
}

func cpu(id, socket, core int) []string {
	dir := fmt.Sprintf("sys/devices/system/cpu/cpu%d/topology/", id)
	return []string{dir + fmt.Sprintf("core_id: %d", core), dir + fmt.Sprintf("physical_package_id: %d", socket)}
}

func cache(id, level int, cacheID int, shared string) []string {
	dir := fmt.Sprintf("sys/devices/system/cpu/cpu%d/cache/index%d/", id, level)
	return []string{dir + fmt.Sprintf("level: %d", level), dir + fmt.Sprintf("id: %d", cacheID), dir + "shared_cpu_list: " + shared}
}

func node(id int, cpus string, kilobytes int, distance string) []string {
	dir := fmt.Sprintf("sys/devices/system/node/node%d/", id)
	return []string{dir + "cpulist: " + cpus, dir + fmt.Sprintf("meminfo: Node %d MemTotal:  %d kB", id, kilobytes),
		dir + "distance: " + distance, dir + "hugepages/hugepages-2048kB/nr_hugepages: 4"}
}

func lines(parts ...[]string) []string {
	var all []string
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func common(online, nodes string) []string {
	return []string{"proc/meminfo: MemTotal:       1000 kB", "sys/devices/system/cpu/online: " + online, "sys/devices/system/node/online: " + nodes,
		"proc/sys/kernel/pid_max: 4194304", "proc/sys/kernel/threads-max: 1000",
		"proc/swaps: Filename\tType\tSize\tUsed\tPriority\n/swapfile file 100 0 -2\n/dev/sda2 partition 28 0 -3",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages: 8"}
}

func TestTopologiesOfMachines(t *testing.T) {
	for name, test := range map[string]struct {
		files []string
		cpus  []CPU
		nodes []int
	}{
		"one socket with two threads a core": {
			lines(common("0-3", "0"), node(0, "0-3", 1000, "10"), cpu(0, 0, 0), cpu(1, 0, 1), cpu(2, 0, 0), cpu(3, 0, 1),
				cache(0, 3, 0, "0-3"), cache(1, 3, 0, "0-3"), cache(2, 3, 0, "0-3"), cache(3, 3, 0, "0-3")),
			[]CPU{{0, 0, 0, 0, 0}, {1, 0, 0, 1, 0}, {2, 0, 0, 0, 0}, {3, 0, 0, 1, 0}}, []int{0},
		},
		"two sockets, a node each, core numbers repeat": {
			lines(common("0-3", "0-1"), node(0, "0,2", 600, "10 21"), node(1, "1,3", 400, "21 10"), cpu(0, 0, 0), cpu(2, 0, 1), cpu(1, 1, 0), cpu(3, 1, 1)),
			[]CPU{{0, 0, 0, 0, 0}, {1, 1, 1, 1, 1}, {2, 0, 0, 2, 0}, {3, 1, 1, 3, 1}}, []int{0, 1},
		},
		"one socket with two last-level caches": {
			lines(common("0-3", "0"), node(0, "0-3", 1000, "10"), cpu(0, 0, 0), cpu(1, 0, 1), cpu(2, 0, 2), cpu(3, 0, 3),
				cache(0, 3, 0, "0-1"), cache(1, 3, 0, "0-1"), cache(2, 3, 1, "2-3"), cache(3, 3, 1, "2-3"), cache(0, 2, 7, "0")),
			[]CPU{{0, 0, 0, 0, 0}, {1, 0, 0, 1, 0}, {2, 0, 0, 2, 1}, {3, 0, 0, 3, 1}}, []int{0},
		},
		"a CPU that is offline": {
			lines(common("0,3", "0"), node(0, "0,3", 1000, "10"), cpu(0, 0, 0), cpu(3, 0, 1)),
			[]CPU{{0, 0, 0, 0, 0}, {3, 0, 0, 3, 0}}, []int{0},
		},
		"a virtual machine that does not know its socket, and a node without CPUs": {
			lines(common("0", "0,2"), node(0, "0", 600, "10 20"), node(2, "", 400, "20 10"), cpu(0, -1, 0)),
			[]CPU{{0, 0, 0, 0, 0}}, []int{0, 2},
		},
		"a kernel without NUMA": {
			[]string{"proc/meminfo: MemTotal: 1000 kB", "sys/devices/system/cpu/online: 0", "sys/devices/system/cpu/cpu0/topology/core_id: 0",
				"sys/devices/system/cpu/cpu0/topology/physical_package_id: 0"},
			[]CPU{{0, 0, 0, 0, 0}}, []int{0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			i, err := Read(tree(t, test.files...))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.cpus, i.CPUs); diff != "" {
				t.Errorf("CPUs (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.nodes, i.NodeIDs()); diff != "" {
				t.Errorf("nodes (-want +got):\n%s", diff)
			}
			if i.MemoryBytes != 1000<<10 {
				t.Errorf("memory: %d", i.MemoryBytes)
			}
		})
	}
}

func TestMemoryHugePagesSwapAndProcessIDs(t *testing.T) {
	i, err := Read(tree(t, lines(common("0-1", "0-1"), node(0, "0", 600, "10 21"), node(1, "1", 400, "21 10"), cpu(0, 0, 0), cpu(1, 1, 0))...))
	if err != nil {
		t.Fatal(err)
	}
	want := []Node{{0, 600 << 10, map[int64]int64{2 << 20: 4}, []uint64{10, 21}}, {1, 400 << 10, map[int64]int64{2 << 20: 4}, []uint64{21, 10}}}
	if diff := cmp.Diff(want, i.Nodes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if i.HugePages[2<<20] != 8 || i.SwapBytes != 128<<10 || i.MaxPIDs != 1000 {
		t.Errorf("got %+v", i)
	}
	if i.Cores() != 2 || i.Sockets() != 2 || i.CPUNodes() != 2 || i.UncoreCaches() != 2 {
		t.Errorf("counts of %+v", i)
	}
}

func TestThisMachineCanBeRead(t *testing.T) {
	i, err := Read(os.DirFS("/"))
	if err != nil {
		t.Fatal(err)
	}
	if len(i.CPUs) == 0 || i.MemoryBytes == 0 || len(i.Nodes) == 0 {
		t.Errorf("got %+v", i)
	}
}

func TestBrokenFilesAreNamed(t *testing.T) {
	good := lines(common("0", "0"), node(0, "0", 600, "10"), cpu(0, 0, 0))
	for _, line := range []string{"proc/meminfo: MemFree: 1 kB", "sys/devices/system/cpu/online: x", "sys/devices/system/node/node0/distance: far",
		"sys/devices/system/cpu/cpu0/topology/core_id: one", "proc/sys/kernel/pid_max: many"} {
		_, err := Read(tree(t, append(good, line)...))
		path, _, _ := strings.Cut(line, ": ")
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func amounts(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func same(t *testing.T, what string, got, want v1.ResourceList) {
	t.Helper()
	for name, q := range want {
		if have, found := got[name]; !found || have.Cmp(q) != 0 {
			t.Errorf("%s: %s is %v, want %v", what, name, &have, &q)
		}
	}
	for name := range got {
		if _, found := want[name]; !found {
			t.Errorf("%s: unexpected %s", what, name)
		}
	}
}

func TestCapacityAndAllocatable(t *testing.T) {
	i := &Info{CPUs: make([]CPU, 4), MemoryBytes: 8 << 30, HugePages: map[int64]int64{2 << 20: 512, 1 << 30: 0}, MaxPIDs: 32768}
	r := Reservation{
		System: amounts("cpu", "500m", "memory", "512Mi", "pid", "1000"), Kube: amounts("cpu", "250m", "memory", "256Mi", "ephemeral-storage", "1Gi"),
		Eviction: amounts("memory", "100Mi", "ephemeral-storage", "10Gi"), MaxPods: 110,
	}
	got, err := Capacity(i, r, 100<<30, Devices{Capacity: amounts("example.com/gpu", "2"), Allocatable: amounts("example.com/gpu", "1")})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "capacity", got.Capacity, amounts("cpu", "4", "memory", "8Gi", "hugepages-2Mi", "1Gi", "hugepages-1Gi", "0", "pods", "110", "ephemeral-storage", "100Gi", "example.com/gpu", "2"))
	same(t, "allocatable", got.Allocatable, amounts("cpu", "3250m", "memory", "6300Mi", "hugepages-2Mi", "1Gi", "hugepages-1Gi", "0", "pods", "110", "ephemeral-storage", "89Gi", "example.com/gpu", "1"))
	same(t, "enforced", got.Enforced, amounts("cpu", "3250m", "memory", "7424Mi", "hugepages-2Mi", "1Gi", "hugepages-1Gi", "0", "pid", "31768", "ephemeral-storage", "99Gi"))
	same(t, "reserved", got.Reserved, amounts("cpu", "750m", "memory", "868Mi", "pid", "1000", "ephemeral-storage", "11Gi"))

	r.PodsPerCore = 10
	if got, _ = Capacity(i, r.WithReservedCPUs(2), 0, Devices{}); got.Capacity.Pods().Value() != 40 || got.Allocatable.Cpu().Value() != 2 {
		t.Errorf("10 pods a core, 2 CPUs reserved: %v, %v", got.Capacity, got.Allocatable)
	}
	if r.System.Cpu().MilliValue() != 500 {
		t.Error("the reservation that was given has changed")
	}
	if _, found := got.Capacity[v1.ResourceEphemeralStorage]; found {
		t.Error("ephemeral storage that is not known was reported")
	}
	if _, err := Capacity(i, Reservation{System: amounts("cpu", "5")}, 0, Devices{}); err == nil || !strings.Contains(err.Error(), `Resource "cpu" has a reservation of 5 but capacity of 4`) {
		t.Errorf("a reservation of more than there is: %v", err)
	}
}
