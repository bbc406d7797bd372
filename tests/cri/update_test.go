package cri

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestUpdates(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	for _, s := range []struct {
		name string
		run  func(*testing.T, *runtime)
	}{
		{"every limit of a running container is changed, in the kernel and for good", updateRunning},
		{"limits of a created container are those it starts with", updateCreated},
		{"limits of an ended container cannot be changed", updateEnded},
		{"limits that the kernel refuses leave all as it was", updateRefused},
		{"a pod's own cgroup has the limits of the pod and its overhead", updateOwnPod},
		{"limits of a pod whose cgroup is another's are remembered", updateForeignPod},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, r.on(t)) })
	}
	r.CheckNothingLeft()
}

func (r *runtime) update(id string, change *runtimeapi.LinuxContainerResources) error {
	_, err := r.UpdateContainerResources(r.ctx(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: change})
	return err
}

// allLimits has every limit that this host can change.
func allLimits(r *runtime, unified bool) *runtimeapi.LinuxContainerResources {
	change := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 50000, CpuQuota: 20000, CpuShares: 333, MemoryLimitInBytes: 96 << 20, CpusetCpus: "0", CpusetMems: "0",
	}
	if unified {
		change.Unified = map[string]string{"memory.high": fmt.Sprint(80 << 20)}
	}
	if hugePages(unified) {
		change.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 6 << 20}}
	}
	return change
}

// hugePages: the host accounts huge pages of 2 MiB.
func hugePages(unified bool) bool {
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		return false
	}
	if !unified {
		_, err := os.Stat("/sys/fs/cgroup/hugetlb/cgroup.procs")
		return err == nil
	}
	controllers, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return err == nil && slices.Contains(strings.Fields(string(controllers)), "hugetlb")
}

func (k kernel) check(r *runtimeapi.LinuxContainerResources) {
	k.t.Helper()
	equal(k.t, "memory limit", k.memory(), fmt.Sprint(r.MemoryLimitInBytes))
	equal(k.t, "quota", k.quota(), fmt.Sprint(r.CpuQuota))
	equal(k.t, "CPUs", k.read("cpuset.cpus", "cpuset", "cpuset.cpus"), r.CpusetCpus)
	equal(k.t, "memory nodes", k.read("cpuset.mems", "cpuset", "cpuset.mems"), r.CpusetMems)
	for _, h := range r.HugepageLimits {
		equal(k.t, "huge pages", k.read("hugetlb."+h.PageSize+".max", "hugetlb", "hugetlb."+h.PageSize+".limit_in_bytes"), fmt.Sprint(h.Limit))
	}
	if k.unified {
		equal(k.t, "period", k.read("cpu.max", "", ""), fmt.Sprintf("%d %d", r.CpuQuota, r.CpuPeriod))
		equal(k.t, "memory.high", k.read("memory.high", "", ""), r.Unified["memory.high"])
		return
	}
	equal(k.t, "period", k.read("", "cpu", "cpu.cfs_period_us"), fmt.Sprint(r.CpuPeriod))
	equal(k.t, "shares", k.read("", "cpu", "cpu.shares"), fmt.Sprint(r.CpuShares))
}

func sameLimits(t *testing.T, r *runtime, id string, want *runtimeapi.LinuxContainerResources) {
	t.Helper()
	if got := r.status(id).GetResources().GetLinux(); !proto.Equal(got, want) {
		t.Errorf("the status has %v, want %v", got, want)
	}
}

func updateRunning(t *testing.T, r *runtime) {
	pod := r.podConfig("running")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "pause")
	id := r.run(sandbox, pod, config)
	k := kernelOf(r, pod, id)
	change := allLimits(r, k.unified)
	must(t, r.update(id, change))
	k.check(change)
	want := proto.CloneOf(change)
	want.OomScoreAdj = config.Linux.Resources.OomScoreAdj
	sameLimits(t, r, id, want)
	// One alone leaves the others.
	must(t, r.update(id, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}))
	change.MemoryLimitInBytes, want.MemoryLimitInBytes = 128<<20, 128<<20
	k.check(change)
	r.Kill()
	r.Start()
	sameLimits(t, r, id, want)
	k.check(change)
	must(t, r.update(id, &runtimeapi.LinuxContainerResources{CpuQuota: -1}))
	equal(t, "quota taken away", map[string]bool{"-1": true, "max": true}[k.quota()], true)
	r.removePod(sandbox, pod)
}

func updateCreated(t *testing.T, r *runtime) {
	pod := r.podConfig("created")
	sandbox := r.runPod(pod)
	id := r.create(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	k := kernelOf(r, pod, id)
	change := allLimits(r, k.unified)
	change.OomScoreAdj = 600
	must(t, r.update(id, change))
	sameLimits(t, r, id, change)
	r.Kill()
	r.Start()
	sameLimits(t, r, id, change)
	r.start(id)
	k.check(change)
	equal(t, "OOM score", r.exec(id, "cat", "/proc/1/oom_score_adj"), "600")
	r.removePod(sandbox, pod)
}

func updateEnded(t *testing.T, r *runtime) {
	pod := r.podConfig("ended")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "exit"))
	r.waitExit(id)
	err := r.update(id, &runtimeapi.LinuxContainerResources{CpuShares: 300})
	equal(t, "code", status.Code(err), codes.FailedPrecondition)
	equal(t, "shares", r.status(id).GetResources().GetLinux().GetCpuShares(), 100)
	r.removePod(sandbox, pod)
}

func updateRefused(t *testing.T, r *runtime) {
	pod := r.podConfig("refused")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "pause")
	config.Linux.Resources.MemoryLimitInBytes = 64 << 20
	id := r.run(sandbox, pod, config)
	err := r.update(id, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpusetCpus: "4000"})
	if err == nil {
		t.Error("CPU 4000 is there")
	}
	sameLimits(t, r, id, config.Linux.Resources)
	equal(t, "memory limit", kernelOf(r, pod, id).memory(), fmt.Sprint(64<<20))
	r.removePod(sandbox, pod)
}

// ownPod is a pod that nobody made a cgroup for.
func (r *runtime) ownPod(name string) *runtimeapi.PodSandboxConfig {
	pod := r.podConfig(name)
	pod.Linux.CgroupParent = ""
	pod.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 200, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20}
	pod.Linux.Overhead = &runtimeapi.LinuxContainerResources{CpuShares: 100, CpuPeriod: 100000, CpuQuota: 10000, MemoryLimitInBytes: 16 << 20}
	return pod
}

func updateOwnPod(t *testing.T, r *runtime) {
	if r.Config.CgroupDriver == "systemd" {
		t.Skip("with systemd, a pod without a cgroup parent has no cgroup of its own")
	}
	pod := r.ownPod("own")
	sandbox := r.runPod(pod)
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	k := kernel{t, err == nil, "/berth/" + sandbox}
	equal(t, "memory limit", k.memory(), fmt.Sprint(80<<20))
	equal(t, "quota", k.quota(), "60000")
	_, err = r.UpdatePodSandboxResources(r.ctx(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: sandbox, Resources: &runtimeapi.LinuxContainerResources{CpuQuota: 70000, MemoryLimitInBytes: 128 << 20},
	})
	must(t, err)
	equal(t, "memory limit after the update", k.memory(), fmt.Sprint(144<<20))
	equal(t, "quota after the update", k.quota(), "80000")
	r.removePod(sandbox, pod)
}

func updateForeignPod(t *testing.T, r *runtime) {
	pod := r.podConfig("foreign")
	sandbox := r.runPod(pod)
	_, err := r.UpdatePodSandboxResources(r.ctx(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: sandbox, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20},
	})
	must(t, err)
	r.Kill()
	r.Start()
	resp, err := r.PodSandboxStatus(r.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	must(t, err)
	var info struct {
		Config struct {
			Linux struct {
				Resources struct {
					Memory int64 `json:"memory_limit_in_bytes"`
				} `json:"resources"`
			} `json:"linux"`
		} `json:"config"`
	}
	decode(t, resp.Info["info"], &info)
	equal(t, "memory limit in the verbose status", info.Config.Linux.Resources.Memory, 128<<20)
	r.removePod(sandbox, pod)
	_, err = r.UpdatePodSandboxResources(r.ctx(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: sandbox})
	equal(t, "code once it is gone", status.Code(err), codes.NotFound)
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	must(t, json.Unmarshal([]byte(text), into))
}
