package qos

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodSettings(t *testing.T) {
	for name, test := range map[string]struct {
		pod  *v1.Pod
		want Settings
	}{
		"best effort weighs least": {podOf(container(nil, nil)), Settings{CPUShares: 2}},
		"guaranteed has all limits": {
			podOf(container(list("cpu", "500m", "memory", "64Mi"), list("cpu", "500m", "memory", "64Mi"))),
			Settings{CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 100_000, MemoryBytes: 64 << 20}},
		"containers add up": {
			podOf(container(list("cpu", "250m"), list("cpu", "1", "memory", "64Mi")), container(list("cpu", "250m"), list("cpu", "1", "memory", "32Mi"))),
			Settings{CPUShares: 512, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 96 << 20}},
		"one container without a memory limit leaves the pod without": {
			podOf(container(nil, list("cpu", "1", "memory", "64Mi")), container(nil, list("cpu", "1"))),
			Settings{CPUShares: 2, CPUQuota: 200_000, CPUPeriod: 100_000}},
		"one container without a CPU limit leaves the pod without": {
			podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi")), container(nil, list("memory", "64Mi"))),
			Settings{CPUShares: 1024, MemoryBytes: 128 << 20}},
		"an init container without limits leaves the pod without": {
			withInit(podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))), container(nil, nil)),
			Settings{CPUShares: 1024}},
		"the largest init container counts": {
			withInit(podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))), container(list("cpu", "2"), list("cpu", "2", "memory", "16Mi"))),
			Settings{CPUShares: 2048, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 64 << 20}},
		"sidecars run beside the containers": {
			withInit(podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))), sidecar("s", list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))),
			Settings{CPUShares: 2048, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 128 << 20}},
		"a tiny limit gets the kernel's smallest quota": {
			podOf(container(list("cpu", "1m"), list("cpu", "1m"))), Settings{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100_000}},
		"the pod level's limits hold whatever containers say": {
			withPodLevel(podOf(container(nil, nil)), list("cpu", "1"), list("cpu", "2", "memory", "1Gi")),
			Settings{CPUShares: 1024, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 1 << 30}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, PodSettings(test.pod, false, NodeInfo{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestContainerResources(t *testing.T) {
	const gi = 1 << 30
	v1Host := NodeInfo{MemoryBytes: 4 * gi}
	for name, test := range map[string]struct {
		pod  *v1.Pod
		node NodeInfo
		want *runtimeapi.LinuxContainerResources
	}{
		"best effort": {
			podOf(container(nil, nil)), v1Host,
			&runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100_000, OomScoreAdj: 1000}},
		"a CPU limit stands in for the request": {
			podOf(container(nil, list("cpu", "1500m"))), v1Host,
			&runtimeapi.LinuxContainerResources{CpuShares: 1536, CpuPeriod: 100_000, CpuQuota: 150_000, OomScoreAdj: 999}},
		"a request of zero is a request": {
			podOf(container(list("cpu", "0"), list("cpu", "1"))), v1Host,
			&runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100_000, CpuQuota: 100_000, OomScoreAdj: 999}},
		"no swap on v1 where swap is limited": {
			podOf(container(nil, list("memory", "1Gi"))), NodeInfo{MemoryBytes: 4 * gi, SwapLimits: true},
			&runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100_000, MemoryLimitInBytes: gi, MemorySwapLimitInBytes: gi, OomScoreAdj: 999}},
		"no swap on v2 and the whole container is killed": {
			podOf(container(nil, list("memory", "1Gi"))), NodeInfo{MemoryBytes: 4 * gi, SwapLimits: true, CgroupV2: true},
			&runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100_000, MemoryLimitInBytes: gi, OomScoreAdj: 999,
				Unified: map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}}},
		"huge pages not asked for are limited to zero": {
			podOf(container(nil, list("hugepages-2Mi", "4Mi"))), NodeInfo{MemoryBytes: 4 * gi, HugePageSizes: []string{"2MB", "1GB"}},
			&runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100_000, OomScoreAdj: 1000,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}, {PageSize: "1GB"}}}},
		"the pod level's limits stand in for the container's": {
			withPodLevel(podOf(container(list("cpu", "1"), nil)), nil, list("cpu", "2", "memory", "1Gi", "hugepages-1Gi", "1Gi")),
			NodeInfo{MemoryBytes: 4 * gi, HugePageSizes: []string{"1GB"}},
			&runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100_000, CpuQuota: 200_000, MemoryLimitInBytes: gi, OomScoreAdj: 999,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "1GB", Limit: gi}}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := ContainerResources(test.pod, &test.pod.Spec.Containers[0], test.node)
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPodSettingsFollowTheKubeletsConfiguration(t *testing.T) {
	guaranteed := podOf(container(list("cpu", "2", "memory", "1Gi"), list("cpu", "2", "memory", "1Gi")))
	burstable := podOf(container(list("cpu", "1", "memory", "64Mi", "hugepages-2Mi", "4Mi"), list("cpu", "2", "memory", "128Mi", "hugepages-2Mi", "4Mi")))
	tiered := NodeInfo{CgroupV2: true, Enforcement: Enforcement{MemoryQoS: &MemoryQoS{Tiered: true}}}
	for name, test := range map[string]struct {
		pod       *v1.Pod
		exclusive bool
		node      NodeInfo
		want      Settings
	}{
		"without CPU quota": {guaranteed, false, NodeInfo{Enforcement: Enforcement{NoCPUQuota: true}},
			Settings{CPUShares: 2048, CPUQuota: -1, CPUPeriod: 100_000, MemoryBytes: 1 << 30}},
		"another period": {guaranteed, false, NodeInfo{Enforcement: Enforcement{CPUPeriod: 5 * time.Millisecond}},
			Settings{CPUShares: 2048, CPUQuota: 10_000, CPUPeriod: 5_000, MemoryBytes: 1 << 30}},
		"exclusive CPUs are not throttled": {guaranteed, true, NodeInfo{},
			Settings{CPUShares: 2048, CPUQuota: -1, CPUPeriod: 100_000, MemoryBytes: 1 << 30}},
		"huge pages": {burstable, false, NodeInfo{},
			Settings{CPUShares: 1024, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 128 << 20, HugePages: map[string]uint64{"2MB": 4 << 20}}},
		"memory.min for guaranteed pods": {guaranteed, false, tiered,
			Settings{CPUShares: 2048, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 1 << 30, Unified: map[string]string{"memory.min": "1073741824"}}},
		"memory.low for burstable pods": {burstable, false, tiered,
			Settings{CPUShares: 1024, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 128 << 20, HugePages: map[string]uint64{"2MB": 4 << 20},
				Unified: map[string]string{"memory.low": "67108864"}}},
		"no protection on v1": {guaranteed, false, NodeInfo{Enforcement: tiered.Enforcement},
			Settings{CPUShares: 2048, CPUQuota: 200_000, CPUPeriod: 100_000, MemoryBytes: 1 << 30}},
		"overhead counts": {withOverhead(guaranteed, list("cpu", "500m", "memory", "64Mi")), false, NodeInfo{},
			Settings{CPUShares: 2560, CPUQuota: 250_000, CPUPeriod: 100_000, MemoryBytes: 1<<30 + 64<<20}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, PodSettings(test.pod, test.exclusive, test.node), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func withOverhead(pod *v1.Pod, overhead v1.ResourceList) *v1.Pod {
	pod = pod.DeepCopy()
	pod.Spec.Overhead = overhead
	return pod
}

func TestContainerUnifiedSettings(t *testing.T) {
	const gi = 1 << 30
	burstable := podOf(container(list("memory", "1Gi"), list("memory", "2Gi")))
	open := podOf(container(list("memory", "1Gi"), nil))
	guaranteed := podOf(container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi")))
	critical := burstable.DeepCopy()
	critical.Spec.Priority = new(int32)
	*critical.Spec.Priority = 2_000_000_000
	node := func(e Enforcement) NodeInfo {
		return NodeInfo{Enforcement: e, MemoryBytes: 8 * gi, SwapBytes: 4 * gi, CgroupV2: true, SwapLimits: e.Swap != ""}
	}
	throttled := Enforcement{SingleProcessOOMKill: true, MemoryQoS: &MemoryQoS{ThrottlingFactor: 0.9, Tiered: true, AllocatableBytes: 6 * gi}}
	for name, test := range map[string]struct {
		pod  *v1.Pod
		node NodeInfo
		want map[string]string
	}{
		"the whole container is killed":                {burstable, node(Enforcement{}), map[string]string{"memory.oom.group": "1"}},
		"one process is killed":                        {burstable, node(Enforcement{SingleProcessOOMKill: true}), nil},
		"no swap":                                      {burstable, node(Enforcement{Swap: NoSwap}), map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		"swap in proportion to the request":            {burstable, node(Enforcement{Swap: LimitedSwap}), map[string]string{"memory.oom.group": "1", "memory.swap.max": "536870912"}},
		"no swap for guaranteed pods":                  {guaranteed, node(Enforcement{Swap: LimitedSwap}), map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		"no swap for critical pods":                    {critical, node(Enforcement{Swap: LimitedSwap}), map[string]string{"memory.oom.group": "1", "memory.swap.max": "0"}},
		"throttled between request and limit":          {burstable, node(throttled), map[string]string{"memory.low": "1073741824", "memory.high": "2040107008"}},
		"throttled between request and the node's all": {open, node(throttled), map[string]string{"memory.low": "1073741824", "memory.high": "5905580032"}},
		"a guaranteed container is protected":          {guaranteed, node(throttled), map[string]string{"memory.min": "1073741824"}},
		"protection is taken back": {guaranteed, node(Enforcement{SingleProcessOOMKill: true, MemoryQoS: &MemoryQoS{ThrottlingFactor: 0.9}}),
			map[string]string{"memory.min": "0", "memory.low": "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := ContainerResources(test.pod, &test.pod.Spec.Containers[0], test.node)
			if diff := cmp.Diff(test.want, got.Unified); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestContainerCPUQuotaFollowsTheConfiguration(t *testing.T) {
	pod := podOf(container(nil, list("cpu", "500m")))
	if got := ContainerResources(pod, &pod.Spec.Containers[0], NodeInfo{Enforcement: Enforcement{NoCPUQuota: true}}); got.CpuQuota != 0 || got.CpuPeriod != 0 {
		t.Errorf("without quota: %v", got)
	}
	if got := ContainerResources(pod, &pod.Spec.Containers[0], NodeInfo{Enforcement: Enforcement{CPUPeriod: 10 * time.Millisecond}}); got.CpuQuota != 5_000 || got.CpuPeriod != 10_000 {
		t.Errorf("period of 10 ms: %v", got)
	}
}

func TestSandboxResourcesAreThePodsWithoutItsOverhead(t *testing.T) {
	pod := withOverhead(podOf(container(list("cpu", "1"), list("cpu", "2", "memory", "64Mi")), container(nil, list("memory", "64Mi"))), list("cpu", "250m", "memory", "32Mi"))
	resources, overhead := SandboxResources(pod, NodeInfo{})
	want := &runtimeapi.LinuxContainerResources{CpuShares: 1024, CpuPeriod: 100_000, CpuQuota: 200_000, MemoryLimitInBytes: 128 << 20}
	if diff := cmp.Diff(want, resources, protocmp.Transform()); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
	want = &runtimeapi.LinuxContainerResources{CpuShares: 256, CpuPeriod: 100_000, CpuQuota: 25_000, MemoryLimitInBytes: 32 << 20}
	if diff := cmp.Diff(want, overhead, protocmp.Transform()); diff != "" {
		t.Errorf("overhead (-want +got):\n%s", diff)
	}
}

func TestClassSettings(t *testing.T) {
	burstable := podOf(container(list("cpu", "500m", "memory", "64Mi"), nil))
	guaranteed := podOf(container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi")))
	if got := classSettings(nil, NodeInfo{}).burstable.CPUShares; got != 2 {
		t.Errorf("no pods: got %d shares, want 2", got)
	}
	pods := []*v1.Pod{burstable, guaranteed, burstable, podOf(container(nil, nil))}
	if got := classSettings(pods, NodeInfo{}); got.burstable.CPUShares != 1024 || got.burstable.Unified != nil || got.kubepods.Unified != nil {
		t.Errorf("two burstable pods of half a CPU: got %+v, want 1024 shares", got)
	}
	got := classSettings(pods, NodeInfo{CgroupV2: true, Enforcement: Enforcement{MemoryQoS: &MemoryQoS{Tiered: true}}})
	if got.kubepods.Unified[memoryMin] != fmt.Sprint(1<<30+128<<20) || got.burstable.Unified[memoryLow] != fmt.Sprint(128<<20) ||
		got.guaranteedBytes != 1<<30 || got.burstableBytes != 128<<20 {
		t.Errorf("protected memory: got %+v", got)
	}
	got = classSettings(pods, NodeInfo{CgroupV2: true, Enforcement: Enforcement{MemoryQoS: &MemoryQoS{}}})
	if got.kubepods.Unified[memoryMin] != "0" || got.burstable.Unified[memoryLow] != "0" || got.guaranteedBytes != 0 || got.burstableBytes != 0 {
		t.Errorf("no memory is protected without tiers: got %+v", got)
	}
}

func TestSharesToWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 2: 1, 1024: 39, 262144: 10000} {
		if got := sharesToWeight(shares); got != want {
			t.Errorf("%d shares: got weight %d, want %d", shares, got, want)
		}
	}
}
