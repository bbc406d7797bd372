package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestAPodMayUseWhatItsContainersMayAndItsOverhead(t *testing.T) {
	type r = runtimeapi.LinuxContainerResources
	for name, c := range map[string]struct {
		resources, overhead *r
		want                Limits
	}{
		"nothing asked":     {nil, nil, Limits{}},
		"containers only":   {&r{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20}, nil, Limits{512, 50000, 100000, 64 << 20}},
		"both":              {&r{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20}, &r{CpuShares: 256, CpuPeriod: 100000, CpuQuota: 25000, MemoryLimitInBytes: 32 << 20}, Limits{768, 75000, 100000, 96 << 20}},
		"different periods": {&r{CpuPeriod: 50000, CpuQuota: 10000}, &r{CpuPeriod: 100000, CpuQuota: 10000}, Limits{0, 15000, 50000, 0}},
		"no container limit, so none for the pod": {&r{CpuShares: 2}, &r{CpuPeriod: 100000, CpuQuota: 25000, MemoryLimitInBytes: 32 << 20}, Limits{CPUShares: 2}},
		"limits taken away":                       {&r{CpuPeriod: 100000, CpuQuota: -1, MemoryLimitInBytes: -1}, &r{MemoryLimitInBytes: 1}, Limits{0, -1, 100000, -1}},
	} {
		if got := PodLimits(c.resources, c.overhead); got != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got, c.want)
		}
	}
}

func TestLimitsAreWrittenToTheKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes cgroups")
	}
	tree, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	path := "/berth-test-limit-" + strconv.Itoa(os.Getpid())
	if _, err := tree.Ensure(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(path); err != nil {
			t.Error(err)
		}
	})
	if err := tree.Limit(path, Limits{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"memory/memory.limit_in_bytes": "67108864", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.shares": "512"}
	if tree.Unified {
		want = map[string]string{"memory.max": "67108864", "cpu.max": "50000 100000"}
	}
	for file, value := range want {
		dir, base := filepath.Split(file)
		got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", dir, path, base))
		if err != nil || strings.TrimSpace(string(got)) != value {
			t.Errorf("%s: %q, %v; want %s", file, got, err, value)
		}
	}
}
