package stats

import (
	"path/filepath"
	"time"
)

// unlimitedV1 is beyond every limit that version 1 has: without one it shows
// the largest multiple of a page.
const unlimitedV1 = 1 << 62

// readV1 reads a cgroup of version 1 (Linux, Documentation/admin-guide/cgroup-v1).
// PSI it has none of its own, but on a hybrid host systemd may keep the
// processes in a cgroup of version 2 with the same name.
func (r *Reader) readV1(f *files, path string, d *Detail, all bool) {
	dir := func(controller string) string {
		if mount := r.host.Mount(controller); mount != "" {
			return filepath.Join(mount, path)
		}
		return ""
	}
	readCPUV1(f, dir("cpuacct"), dir("cpu"), &d.Usage, all)
	readMemoryV1(f, dir("memory"), &d.Usage, all)
	if hybrid := dir(""); populated(f, hybrid) {
		f.pressures(hybrid, &d.Usage)
	}
	if !all {
		return
	}
	if bytes, ok := f.read(dir("blkio"), "blkio.throttle.io_service_bytes_recursive"); ok {
		// The next read takes the buffer.
		bytes := append([]byte(nil), bytes...)
		if operations, ok := f.read(dir("blkio"), "blkio.throttle.io_serviced_recursive"); ok {
			d.IO = blkio(bytes, operations)
		}
	}
	d.Tasks, d.MaxTasks = f.optional(dir("pids"), "pids.current"), f.optional(dir("pids"), "pids.max")
	for _, size := range r.host.HugePageSizes {
		// Reserved pages count against the limit, since Linux 5.7.
		for _, kind := range []string{".rsvd", ""} {
			prefix := "hugetlb." + size + kind
			if usage, ok := f.number(dir("hugetlb"), prefix+".usage_in_bytes"); ok {
				peak := f.optional(dir("hugetlb"), prefix+".max_usage_in_bytes")
				d.HugePages = append(d.HugePages, HugePages{Size: size, Usage: usage, Peak: peak})
				break
			}
		}
	}
}

func readCPUV1(f *files, cpuacct, cpu string, u *Usage, all bool) {
	total, ok := f.number(cpuacct, "cpuacct.usage")
	if !ok {
		return
	}
	u.CPU = &CPU{Total: time.Duration(total)}
	if !all {
		return
	}
	c := &u.CPU.CPUDetail
	user, _ := f.number(cpuacct, "cpuacct.usage_user")
	system, _ := f.number(cpuacct, "cpuacct.usage_sys")
	c.User, c.System = time.Duration(user), time.Duration(system)
	f.keyed(cpu, "cpu.stat", func(key []byte, n uint64) {
		switch string(key) {
		case "nr_periods":
			c.Periods = n
		case "nr_throttled":
			c.ThrottledPeriods = n
		case "throttled_time":
			c.Throttled = time.Duration(n)
		case "nr_bursts":
			c.BurstPeriods = n
		case "burst_time":
			c.Burst = time.Duration(n)
		}
	})
}

func readMemoryV1(f *files, dir string, u *Usage, all bool) {
	usage, ok := f.number(dir, "memory.usage_in_bytes")
	if !ok {
		return
	}
	m := Memory{Usage: usage, Limit: Unlimited}
	var swap uint64
	f.keyed(dir, "memory.stat", func(key []byte, n uint64) {
		switch string(key) {
		case "total_rss":
			m.RSS = n
		case "total_cache":
			m.Cache = n
		case "total_mapped_file":
			m.MappedFile = n
		case "total_active_file":
			m.ActiveFile = n
		case "total_inactive_file":
			m.InactiveFile = n
		case "total_pgfault":
			m.PageFaults = n
		case "total_pgmajfault":
			m.MajorPageFaults = n
		case "total_swap":
			swap = n
		}
	})
	m.WorkingSet = workingSet(m)
	if limit, ok := f.number(dir, "memory.limit_in_bytes"); ok && limit < unlimitedV1 {
		m.Limit = limit
	}
	if both, ok := f.number(dir, "memory.memsw.limit_in_bytes"); ok {
		u.Swap = &Swap{Usage: swap, Limit: Unlimited}
		if both < unlimitedV1 && m.Limit != Unlimited {
			u.Swap.Limit = both - min(both, m.Limit)
		}
	}
	if all {
		m.Kernel, _ = f.number(dir, "memory.kmem.usage_in_bytes")
		m.Peak, _ = f.number(dir, "memory.max_usage_in_bytes")
		m.LimitHits, _ = f.number(dir, "memory.failcnt")
		f.keyed(dir, "memory.oom_control", func(key []byte, n uint64) {
			if string(key) == "oom_kill" {
				m.OOMKills = n
			}
		})
	}
	u.Memory = &m
}

// populated tells whether a cgroup of version 2 has processes: the pressure on
// an empty one is none, whatever happens to those elsewhere.
func populated(f *files, dir string) bool {
	has := false
	f.keyed(dir, "cgroup.events", func(key []byte, n uint64) { has = has || string(key) == "populated" && n > 0 })
	return has
}
