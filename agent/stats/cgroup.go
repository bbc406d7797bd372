package stats

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

const cgroupMount = "/sys/fs/cgroup"

// unlimited is where a memory limit begins to be none: the kernel rounds
// "no limit" down to a page (isMemoryUnlimited of pkg/kubelet/stats/helper.go).
const unlimited = uint64(1) << 62

// usage is what a cgroup has used and may use.
type usage struct {
	at              time.Time
	made            time.Time // when the cgroup was made, as far as its directory tells
	cpu             uint64    // ns
	memory, working uint64
	limit           uint64 // of memory; zero: none
	rss             uint64
	faults, majors  uint64
	swap, swapLimit uint64 // swapLimit zero: none
	hasSwap         bool
	cpuPressure     *cgroups.PSIStats
	memoryPressure  *cgroups.PSIStats
	ioPressure      *cgroups.PSIStats
}

// readCgroup reads a cgroup; path gives its place in each v1 controller's
// hierarchy, or with "" in the unified one.
func readCgroup(path func(controller string) string) (usage, error) {
	at := time.Now()
	if cgroups.IsCgroup2UnifiedMode() {
		dir := filepath.Join(cgroupMount, path(""))
		info, err := os.Stat(dir)
		if err != nil {
			return usage{}, fmt.Errorf("read cgroup: %w", err)
		}
		m, err := fs2.NewManager(&cgroups.Cgroup{}, dir)
		if err != nil {
			return usage{}, fmt.Errorf("read cgroup %s: %w", dir, err)
		}
		s, err := m.GetStats()
		if err != nil {
			return usage{}, fmt.Errorf("read cgroup %s: %w", dir, err)
		}
		u := fromV2(at, s)
		u.made = info.ModTime()
		return u, nil
	}
	var info os.FileInfo
	dirs := map[string]string{}
	for _, controller := range []string{"cpuacct", "memory"} {
		mount, err := cgroups.FindCgroupMountpoint(cgroupMount, controller)
		if err != nil {
			return usage{}, fmt.Errorf("find cgroup controller %s: %w", controller, err)
		}
		dirs[controller] = filepath.Join(mount, path(controller))
		if info, err = os.Stat(dirs[controller]); err != nil {
			return usage{}, fmt.Errorf("read cgroup: %w", err)
		}
	}
	m, err := fs.NewManager(&cgroups.Cgroup{Resources: &cgroups.Resources{}}, dirs)
	if err != nil {
		return usage{}, fmt.Errorf("read cgroup %s: %w", path("memory"), err)
	}
	s, err := m.GetStats()
	if err != nil {
		return usage{}, fmt.Errorf("read cgroup %s: %w", path("memory"), err)
	}
	u := fromV1(at, s)
	u.made = info.ModTime()
	return u, nil
}

func fromV2(at time.Time, s *cgroups.Stats) usage {
	m := &s.MemoryStats
	u := usage{
		at: at, cpu: s.CpuStats.CpuUsage.TotalUsage,
		memory: m.Usage.Usage, working: minus(m.Usage.Usage, m.Stats["inactive_file"]), limit: m.Usage.Limit,
		rss: m.Stats["anon"], faults: m.Stats["pgfault"], majors: m.Stats["pgmajfault"],
		swap: m.SwapOnlyUsage.Usage, swapLimit: m.SwapOnlyUsage.Limit, hasSwap: m.SwapOnlyUsage.Limit != 0 || m.SwapOnlyUsage.Usage != 0,
		cpuPressure: s.CpuStats.PSI, memoryPressure: m.PSI, ioPressure: s.BlkioStats.PSI,
	}
	return u.bounded()
}

func fromV1(at time.Time, s *cgroups.Stats) usage {
	m := &s.MemoryStats
	u := usage{
		at: at, cpu: s.CpuStats.CpuUsage.TotalUsage,
		memory: m.Usage.Usage, working: minus(m.Usage.Usage, m.Stats["total_inactive_file"]), limit: m.Usage.Limit,
		rss: m.Stats["total_rss"], faults: m.Stats["total_pgfault"], majors: m.Stats["total_pgmajfault"],
	}
	if swap, ok := m.Stats["total_swap"]; ok {
		u.hasSwap, u.swap = true, swap
		if m.SwapUsage.Limit < unlimited {
			u.swapLimit = minus(m.SwapUsage.Limit, m.Usage.Limit)
		}
	}
	return u.bounded()
}

// bounded writes "no limit" as zero.
func (u usage) bounded() usage {
	if u.limit >= unlimited {
		u.limit = 0
	}
	if u.swapLimit >= unlimited {
		u.swapLimit = 0
	}
	return u
}

func minus(a, b uint64) uint64 { return a - min(a, b) }

// container writes a cgroup's usage in the summary's form. Name is set by the caller.
func (c *Collector) container(key string, u usage) statsapi.ContainerStats {
	at := metav1.NewTime(u.at)
	s := statsapi.ContainerStats{
		CPU: &statsapi.CPUStats{
			Time: at, UsageCoreNanoSeconds: &u.cpu, UsageNanoCores: c.rates.next(key, u.at, u.cpu), PSI: pressure(u.cpuPressure),
		},
		Memory: &statsapi.MemoryStats{
			Time: at, UsageBytes: &u.memory, WorkingSetBytes: &u.working, RSSBytes: &u.rss,
			PageFaults: &u.faults, MajorPageFaults: &u.majors, PSI: pressure(u.memoryPressure),
		},
	}
	if u.limit != 0 {
		available := minus(u.limit, u.working)
		s.Memory.AvailableBytes = &available
	}
	if u.hasSwap {
		s.Swap = &statsapi.SwapStats{Time: at, SwapUsageBytes: &u.swap}
		if u.swapLimit != 0 {
			available := minus(u.swapLimit, u.swap)
			s.Swap.SwapAvailableBytes = &available
		}
	}
	if u.ioPressure != nil {
		s.IO = &statsapi.IOStats{Time: at, PSI: pressure(u.ioPressure)}
	}
	return s
}

// pressure is in nanoseconds, as the summary API says; the kernel has microseconds.
func pressure(p *cgroups.PSIStats) *statsapi.PSIStats {
	if p == nil {
		return nil
	}
	data := func(d cgroups.PSIData) statsapi.PSIData {
		return statsapi.PSIData{Total: d.Total * uint64(time.Microsecond), Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &statsapi.PSIStats{Some: data(p.Some), Full: data(p.Full)}
}

// at is the same place in every hierarchy.
func at(path string) func(string) string { return func(string) string { return path } }

// own are the places of this process.
func own() (func(string) string, error) {
	places, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find the agent's own cgroup: %w", err)
	}
	return func(controller string) string { return places[controller] }, nil
}

// systemContainers are the cgroups that are no pods'. One that is not there is
// left out, as by the kubelet.
func (c *Collector) systemContainers() []statsapi.ContainerStats {
	var out []statsapi.ContainerStats
	for _, name := range []string{statsapi.SystemContainerKubelet, statsapi.SystemContainerRuntime, statsapi.SystemContainerMisc, statsapi.SystemContainerPods} {
		s, err := c.systemContainer(name)
		switch {
		case err == nil && s != nil:
			out = append(out, *s)
		case err != nil && !errors.Is(err, os.ErrNotExist):
			c.config.Log.Warn("a system container is not measured", "container", name, "err", err)
		}
	}
	return out
}

// systemContainer is nil for one that has no cgroup.
func (c *Collector) systemContainer(name string) (*statsapi.ContainerStats, error) {
	path, named := c.config.System[name]
	place := at(path)
	isOwn := !named && (name == statsapi.SystemContainerKubelet || name == statsapi.SystemContainerRuntime)
	switch {
	case name == statsapi.SystemContainerPods:
		place = at(c.cgroups.PodsPath())
	case isOwn:
		var err error
		if place, err = own(); err != nil {
			return nil, err
		}
	case path == "":
		return nil, nil
	}
	u, err := readCgroup(place)
	if err != nil {
		return nil, err
	}
	s := c.container("system/"+name, u)
	s.Name, s.StartTime = name, metav1.NewTime(u.made)
	if isOwn {
		s.StartTime = metav1.NewTime(c.started)
	}
	return &s, nil
}
