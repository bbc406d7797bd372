package cri

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// TestStatistics asserts numbers against what containers do. It is also run on
// a pure cgroup v2 host by tests/vm.
func TestStatistics(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	t.Run("on one node", func(t *testing.T) {
		for _, c := range []struct {
			name string // a sentence
			run  func(*testing.T, *runtime)
		}{
			{"CPU time is what was burnt, and its use that of the window", cpuStats},
			{"memory is what was touched, and what is left of the limit", memoryStats},
			{"a writable layer is what was written", layerStats},
			{"traffic is counted from the pod's point of view", networkStats},
			{"processes are those of all the pod's containers", processStats},
			{"filters let through what they name", statsFilters},
			{"what does not run uses nothing but its layer", statsOfTheStopped},
			{"a pod on the host's network has no network of its own", hostNetworkStats},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t, r.on(t))
			})
		}
	})
	r.CheckNothingLeft()
}

func (r *runtime) containerStats(id string) *runtimeapi.ContainerStats {
	r.t.Helper()
	resp, err := r.ContainerStats(r.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	must(r.t, err)
	return resp.Stats
}

func (r *runtime) podStats(id string) *runtimeapi.LinuxPodSandboxStats {
	r.t.Helper()
	resp, err := r.PodSandboxStats(r.ctx(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
	must(r.t, err)
	return resp.Stats.Linux
}

// between fails the test unless least <= got <= most.
func between(t testing.TB, what string, got *runtimeapi.UInt64Value, least, most uint64) {
	t.Helper()
	if got == nil || got.Value < least || got.Value > most {
		t.Errorf("%s is %v, want %d to %d", what, got, least, most)
	}
}

const noLimit = 1 << 62

func cpuStats(t *testing.T, r *runtime) {
	pod := r.podConfig("cpu")
	sandbox := r.runPod(pod)
	burner := r.containerConfig("burner", "testbox", "burn", "--cpu", "2s")
	burnt := r.run(sandbox, pod, burner)
	endless := r.containerConfig("endless", "testbox", "burn", "--cpu", "0")
	endless.Linux.Resources.CpuPeriod, endless.Linux.Resources.CpuQuota = 100_000, 20_000
	endlessID := r.run(sandbox, pod, endless)
	r.waitLog(pod, endless, "burning")

	// Two readings further apart than the window, and what the first says at once.
	first := r.podStats(sandbox)
	again := r.podStats(sandbox)
	if first.Cpu.UsageNanoCores != nil {
		t.Errorf("use of CPU without a window: %v", first.Cpu)
	}
	if again.Cpu.Timestamp-first.Cpu.Timestamp >= int64(time.Second) {
		first = again // so late that it is the end of a window itself
	} else if again.Cpu.UsageNanoCores != nil {
		t.Errorf("use of CPU in less than a window: %v, %v", first.Cpu, again.Cpu)
	}
	time.Sleep(1500 * time.Millisecond)
	second := r.podStats(sandbox)
	window := float64(second.Cpu.Timestamp-first.Cpu.Timestamp) / 1e9
	want := float64(second.Cpu.UsageCoreNanoSeconds.Value-first.Cpu.UsageCoreNanoSeconds.Value) / window
	// The time stamps are not the kernel's, and the two clocks may drift.
	between(t, "use of CPU by the pod", second.Cpu.UsageNanoCores, uint64(0.98*want), uint64(1.02*want)+1000)

	r.waitLog(pod, burner, "burnt")
	cpu := r.containerStats(burnt).Cpu
	between(t, "CPU time of the container", cpu.UsageCoreNanoSeconds, uint64(1900*time.Millisecond), uint64(2500*time.Millisecond))
	podCPU := r.podStats(sandbox).Cpu.UsageCoreNanoSeconds
	between(t, "CPU time of the pod", podCPU, cpu.UsageCoreNanoSeconds.Value, noLimit)
	checkPressure(t, r, endlessID)
	r.removePod(sandbox, pod)
}

// checkPressure: a container that its quota holds up waits for CPU most of the
// time. The kernel measures it in version 2, which on a hybrid host the
// container need not be in.
func checkPressure(t *testing.T, r *runtime, id string) {
	t.Helper()
	psi := r.containerStats(id).Cpu.Psi
	_, err := os.Stat("/proc/pressure/cpu")
	cgroups, readErr := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", r.pid(id)))
	must(t, readErr)
	measured := err == nil && slices.ContainsFunc(strings.Split(string(cgroups), "\n"), func(line string) bool {
		return strings.HasPrefix(line, "0::") && strings.Contains(line, id)
	})
	switch {
	case !measured && psi != nil:
		t.Errorf("pressure from nowhere: %v", psi)
	case measured && (psi == nil || psi.Some.Total < uint64(500*time.Millisecond)):
		t.Errorf("pressure is %v", psi)
	}
}

// pid of a container's first process, on the host.
func (r *runtime) pid(id string) int {
	r.t.Helper()
	resp, err := r.RuntimeServiceClient.ContainerStatus(r.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(r.t, err)
	var info struct{ Pid int }
	must(r.t, json.Unmarshal([]byte(resp.Info["info"]), &info))
	return info.Pid
}

func memoryStats(t *testing.T, r *runtime) {
	pod := r.podConfig("memory")
	sandbox := r.runPod(pod)
	const mib = 1 << 20
	config := r.containerConfig("main", "testbox", "alloc", "--mib", "48")
	config.Linux.Resources.MemoryLimitInBytes = 96 * mib
	id := r.run(sandbox, pod, config)
	r.waitLog(pod, config, "holding")
	st := r.containerStats(id)
	m := st.Memory
	between(t, "anonymous memory", m.RssBytes, 48*mib, 60*mib)
	between(t, "working set", m.WorkingSetBytes, 48*mib, 96*mib)
	between(t, "usage", m.UsageBytes, m.WorkingSetBytes.Value, 96*mib)
	between(t, "page faults", m.PageFaults, 24, noLimit) // with huge pages of 2 MiB
	between(t, "major page faults", m.MajorPageFaults, 0, m.PageFaults.GetValue())
	equal(t, "available", m.AvailableBytes.GetValue(), 96*mib-m.WorkingSetBytes.Value)
	if m.Timestamp <= 0 || time.Since(time.Unix(0, m.Timestamp)).Abs() > callTimeout {
		t.Errorf("time is %d", m.Timestamp)
	}
	if st.Swap != nil {
		between(t, "swap", st.Swap.SwapUsageBytes, 0, 96*mib)
	}
	podMemory := r.podStats(sandbox).Memory
	between(t, "anonymous memory of the pod", podMemory.RssBytes, 48*mib, 64*mib)
	if podMemory.AvailableBytes != nil {
		t.Errorf("the pod has no limit, and yet %v is available", podMemory.AvailableBytes)
	}
	r.removePod(sandbox, pod)
}

func layerStats(t *testing.T, r *runtime) {
	pod := r.podConfig("layer")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	before := r.containerStats(id).WritableLayer
	if before.GetFsId().GetMountpoint() == "" || before.GetTimestamp() <= 0 {
		t.Fatalf("the layer is %v", before)
	}
	r.exec(id, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=8 && mkdir /dir && for i in 1 2 3 4 5; do echo x > /dir/$i; done && ln /big /dir/again")
	harness.Eventually(t, callTimeout, "a new measurement of the layer", func() string {
		after := r.containerStats(id).WritableLayer
		if after.Timestamp == before.Timestamp {
			return "it is the old one"
		}
		const mib = 1 << 20
		// One that began before all was written is followed by another.
		bytes, inodes := after.UsedBytes.GetValue()-before.UsedBytes.Value, after.InodesUsed.GetValue()-before.InodesUsed.Value
		if bytes < 8*mib || bytes > 8*mib+256<<10 || inodes != 7 {
			return fmt.Sprintf("%d bytes and %d inodes more than before", bytes, inodes)
		}
		return ""
	})
	r.removePod(sandbox, pod)
}

func networkStats(t *testing.T, r *runtime) {
	pod := r.podConfig("network")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	before := r.podStats(sandbox).Network
	equal(t, "default interface", before.DefaultInterface.Name, "eth0")
	r.exec(id, "testbox", "datagram", "--to", gateway(r, id)+":9", "--n", "500", "--size", "1000")
	after := r.podStats(sandbox).Network
	sent := after.DefaultInterface.TxBytes.Value - before.DefaultInterface.TxBytes.Value
	// Headers of Ethernet, IP and UDP are 42 bytes; some ARP may go with it.
	if least := uint64(500 * 1042); sent < least || sent > least+10_000 {
		t.Errorf("sent %d bytes, want %d and a little", sent, least)
	}
	// The pod's own view, from two sides.
	rx, tx := interfaceBytes(t, r.exec(id, "cat", "/proc/net/dev"), "eth0")
	last := r.podStats(sandbox).Network.DefaultInterface
	between(t, "bytes received as the pod sees them", &runtimeapi.UInt64Value{Value: rx}, after.DefaultInterface.RxBytes.Value, last.RxBytes.Value)
	between(t, "bytes sent as the pod sees them", &runtimeapi.UInt64Value{Value: tx}, after.DefaultInterface.TxBytes.Value, last.TxBytes.Value)
	for _, i := range after.Interfaces {
		if i.Name == "lo" || i.Name == "eth0" {
			t.Errorf("%s is among the other interfaces", i.Name)
		}
	}
	r.removePod(sandbox, pod)
}

// gateway of a container, from the kernel's table of routes.
func gateway(r *runtime, id string) string {
	r.t.Helper()
	for line := range strings.Lines(r.exec(id, "cat", "/proc/net/route")) {
		f := strings.Fields(line)
		if len(f) > 2 && f[1] == "00000000" {
			n, err := strconv.ParseUint(f[2], 16, 32)
			must(r.t, err)
			return fmt.Sprintf("%d.%d.%d.%d", byte(n), byte(n>>8), byte(n>>16), byte(n>>24))
		}
	}
	r.t.Fatalf("there is no default route")
	return ""
}

func interfaceBytes(t *testing.T, table, name string) (rx, tx uint64) {
	t.Helper()
	for line := range strings.Lines(table) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+":")
		if !ok {
			continue
		}
		f := strings.Fields(rest)
		rx, err := strconv.ParseUint(f[0], 10, 64)
		must(t, err)
		tx, err := strconv.ParseUint(f[8], 10, 64)
		must(t, err)
		return rx, tx
	}
	t.Fatalf("no %s in %s", name, table)
	return 0, 0
}

func processStats(t *testing.T, r *runtime) {
	pod := r.podConfig("processes")
	sandbox := r.runPod(pod)
	shell := r.containerConfig("shell", "sh", "-c", "sleep 1000 & sleep 1000 & echo started; wait")
	r.run(sandbox, pod, shell)
	r.waitLog(pod, shell, "started")
	r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause")) // one process, many threads
	st := r.podStats(sandbox)
	equal(t, "processes", st.Process.ProcessCount.Value, 4)
	equal(t, "containers", len(st.Containers), 2)
	r.removePod(sandbox, pod)
}

func statsFilters(t *testing.T, r *runtime) {
	var sandboxes, containers []string
	var pods []*runtimeapi.PodSandboxConfig
	for _, name := range []string{"filter-a", "filter-b"} {
		pod := r.podConfig(name)
		pod.Labels["test"], pod.Labels["pod"] = "filters", name
		sandbox := r.runPod(pod)
		for _, c := range []string{"one", "two"} {
			config := r.containerConfig(c, "testbox", "pause")
			config.Labels["test"], config.Labels["in"] = "filters", name
			containers = append(containers, r.run(sandbox, pod, config))
		}
		sandboxes, pods = append(sandboxes, sandbox), append(pods, pod)
	}
	ours := map[string]string{"test": "filters"}
	for _, c := range []struct {
		name string
		f    *runtimeapi.ContainerStatsFilter
		want []string
	}{
		{"labels", &runtimeapi.ContainerStatsFilter{LabelSelector: ours}, containers},
		{"labels, all of them", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"test": "filters", "in": "filter-b"}}, containers[2:]},
		{"an ID", &runtimeapi.ContainerStatsFilter{Id: containers[1]}, containers[1:2]},
		{"an abbreviated ID", &runtimeapi.ContainerStatsFilter{Id: containers[1][:12]}, containers[1:2]},
		{"a sandbox", &runtimeapi.ContainerStatsFilter{PodSandboxId: sandboxes[0]}, containers[:2]},
		{"a sandbox and an ID of another", &runtimeapi.ContainerStatsFilter{PodSandboxId: sandboxes[0], Id: containers[3]}, nil},
		{"an ID that there is not", &runtimeapi.ContainerStatsFilter{Id: "none"}, nil},
	} {
		resp, err := r.ListContainerStats(r.ctx(), &runtimeapi.ListContainerStatsRequest{Filter: c.f})
		must(t, err)
		var got []string
		for _, st := range resp.Stats {
			got = append(got, st.Attributes.Id)
		}
		sameIDs(t, "containers by "+c.name, got, c.want)
	}
	for _, c := range []struct {
		name string
		f    *runtimeapi.PodSandboxStatsFilter
		want []string
	}{
		{"labels", &runtimeapi.PodSandboxStatsFilter{LabelSelector: ours}, sandboxes},
		{"an abbreviated ID", &runtimeapi.PodSandboxStatsFilter{Id: sandboxes[1][:12]}, sandboxes[1:]},
		{"an ID and labels of another", &runtimeapi.PodSandboxStatsFilter{Id: sandboxes[1], LabelSelector: map[string]string{"pod": "filter-a"}}, nil},
	} {
		resp, err := r.ListPodSandboxStats(r.ctx(), &runtimeapi.ListPodSandboxStatsRequest{Filter: c.f})
		must(t, err)
		var got []string
		for _, st := range resp.Stats {
			got = append(got, st.Attributes.Id)
			equal(t, "containers of "+st.Attributes.Metadata.Name, len(st.Linux.Containers), 2)
			if st.Linux.Cpu == nil || st.Linux.Memory == nil || st.Linux.Network == nil || st.Linux.Process == nil {
				t.Errorf("incomplete: %v", st.Linux)
			}
		}
		sameIDs(t, "sandboxes by "+c.name, got, c.want)
	}
	for i := range sandboxes {
		r.removePod(sandboxes[i], pods[i])
	}
}

func sameIDs(t testing.TB, what string, got, want []string) {
	t.Helper()
	got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func statsOfTheStopped(t *testing.T, r *runtime) {
	pod := r.podConfig("stopped")
	sandbox := r.runPod(pod)
	created := r.create(sandbox, pod, r.containerConfig("created", "testbox", "pause"))
	exited := r.run(sandbox, pod, r.containerConfig("exited", "sh", "-c", "echo x > /written"))
	r.waitExit(exited)
	for _, id := range []string{created, exited} {
		st := r.containerStats(id)
		if st.Attributes.GetId() != id || st.Cpu != nil || st.Memory != nil || st.WritableLayer == nil {
			t.Errorf("got %v", st)
		}
	}
	list, err := r.ListContainerStats(r.ctx(), &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{PodSandboxId: sandbox}})
	must(t, err)
	equal(t, "containers that run", len(list.Stats), 0)
	_, err = r.StopPodSandbox(r.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
	must(t, err)
	if st := r.podStats(sandbox); st.Cpu != nil || st.Memory != nil || st.Network != nil || len(st.Containers) > 0 {
		t.Errorf("a stopped pod uses %v", st)
	}
	r.removePod(sandbox, pod)
	_, err = r.PodSandboxStats(r.ctx(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sandbox})
	equal(t, "of a sandbox that was removed", status.Code(err), codes.NotFound)
	_, err = r.ContainerStats(r.ctx(), &runtimeapi.ContainerStatsRequest{ContainerId: exited})
	equal(t, "of a container that was removed", status.Code(err), codes.NotFound)
}

func hostNetworkStats(t *testing.T, r *runtime) {
	pod := r.podConfig("host")
	pod.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "pause")
	config.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	r.run(sandbox, pod, config)
	if st := r.podStats(sandbox); st.Network != nil || st.Cpu == nil {
		t.Errorf("got %v", st)
	}
	r.removePod(sandbox, pod)
}
