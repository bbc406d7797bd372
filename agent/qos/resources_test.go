package qos

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodSettings(t *testing.T) {
	for name, test := range map[string]struct {
		pod  *v1.Pod
		want settings
	}{
		"best effort weighs least": {podOf(container(nil, nil)), settings{shares: 2}},
		"guaranteed has all limits": {
			podOf(container(list("cpu", "500m", "memory", "64Mi"), list("cpu", "500m", "memory", "64Mi"))),
			settings{shares: 512, quota: 50_000, memory: 64 << 20}},
		"containers add up": {
			podOf(container(list("cpu", "250m"), list("cpu", "1", "memory", "64Mi")), container(list("cpu", "250m"), list("cpu", "1", "memory", "32Mi"))),
			settings{shares: 512, quota: 200_000, memory: 96 << 20}},
		"one container without a memory limit leaves the pod without": {
			podOf(container(nil, list("cpu", "1", "memory", "64Mi")), container(nil, list("cpu", "1"))),
			settings{shares: 2, quota: 200_000}},
		"one container without a CPU limit leaves the pod without": {
			podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi")), container(nil, list("memory", "64Mi"))),
			settings{shares: 1024, memory: 128 << 20}},
		"an init container without limits leaves the pod without": {
			withInit(podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))), container(nil, nil)),
			settings{shares: 1024}},
		"the largest init container counts": {
			withInit(podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))), container(list("cpu", "2"), list("cpu", "2", "memory", "16Mi"))),
			settings{shares: 2048, quota: 200_000, memory: 64 << 20}},
		"sidecars run beside the containers": {
			withInit(podOf(container(list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))), sidecar("s", list("cpu", "1"), list("cpu", "1", "memory", "64Mi"))),
			settings{shares: 2048, quota: 200_000, memory: 128 << 20}},
		"a tiny limit gets the kernel's smallest quota": {
			podOf(container(list("cpu", "1m"), list("cpu", "1m"))), settings{shares: 2, quota: 1000}},
		"the pod level's limits hold whatever containers say": {
			withPodLevel(podOf(container(nil, nil)), list("cpu", "1"), list("cpu", "2", "memory", "1Gi")),
			settings{shares: 1024, quota: 200_000, memory: 1 << 30}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := podSettings(test.pod); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
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

func TestBurstableShares(t *testing.T) {
	burstable := podOf(container(list("cpu", "500m"), nil))
	guaranteed := podOf(container(list("cpu", "1", "memory", "1Gi"), list("cpu", "1", "memory", "1Gi")))
	if got := burstableShares(nil); got != 2 {
		t.Errorf("no pods: got %d, want 2", got)
	}
	if got := burstableShares([]*v1.Pod{burstable, guaranteed, burstable, podOf(container(nil, nil))}); got != 1024 {
		t.Errorf("two burstable pods of half a CPU: got %d, want 1024", got)
	}
}

func TestSharesToWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 0, 2: 1, 1024: 39, 262144: 10000} {
		if got := sharesToWeight(shares); got != want {
			t.Errorf("%d shares: got weight %d, want %d", shares, got, want)
		}
	}
}
