package stats

import "time"

// readV2 reads a cgroup of version 2 (Linux, Documentation/admin-guide/cgroup-v2.rst).
func (r *Reader) readV2(f *files, dir string, d *Detail, all bool) {
	readCPUV2(f, dir, &d.Usage)
	readMemoryV2(f, dir, &d.Usage, all)
	if usage, ok := f.number(dir, "memory.swap.current"); ok {
		d.Swap = &Swap{Usage: usage, Limit: Unlimited}
		if limit, ok := f.number(dir, "memory.swap.max"); ok {
			d.Swap.Limit = limit
		}
	}
	f.pressures(dir, &d.Usage)
	if !all {
		return
	}
	if data, ok := f.read(dir, "io.stat"); ok {
		d.IO = ioStat(data)
	}
	d.Tasks, d.MaxTasks = f.optional(dir, "pids.current"), f.optional(dir, "pids.max")
	for _, size := range r.host.HugePageSizes {
		// Reserved pages count against the limit, since Linux 5.7.
		for _, file := range []string{".rsvd.current", ".current"} {
			if usage, ok := f.number(dir, "hugetlb."+size+file); ok {
				d.HugePages = append(d.HugePages, HugePages{Size: size, Usage: usage})
				break
			}
		}
	}
}

func readCPUV2(f *files, dir string, u *Usage) {
	var c CPU
	µs := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	ok := f.keyed(dir, "cpu.stat", func(key []byte, n uint64) {
		switch string(key) {
		case "usage_usec":
			c.Total = µs(n)
		case "user_usec":
			c.User = µs(n)
		case "system_usec":
			c.System = µs(n)
		case "nr_periods":
			c.Periods = n
		case "nr_throttled":
			c.ThrottledPeriods = n
		case "throttled_usec":
			c.Throttled = µs(n)
		case "nr_bursts":
			c.BurstPeriods = n
		case "burst_usec":
			c.Burst = µs(n)
		}
	})
	if ok {
		u.CPU = &c
	}
}

func readMemoryV2(f *files, dir string, u *Usage, all bool) {
	usage, ok := f.number(dir, "memory.current")
	if !ok {
		return
	}
	m := Memory{Usage: usage, Limit: Unlimited}
	f.keyed(dir, "memory.stat", func(key []byte, n uint64) {
		switch string(key) {
		case "anon":
			m.RSS = n
		case "file":
			m.Cache = n
		case "file_mapped":
			m.MappedFile = n
		case "kernel":
			m.Kernel = n
		case "active_file":
			m.ActiveFile = n
		case "inactive_file":
			m.InactiveFile = n
		case "pgfault":
			m.PageFaults = n
		case "pgmajfault":
			m.MajorPageFaults = n
		}
	})
	m.WorkingSet = workingSet(m)
	if limit, ok := f.number(dir, "memory.max"); ok {
		m.Limit = limit
	}
	if all {
		m.Peak, _ = f.number(dir, "memory.peak") // since Linux 5.19
		f.keyed(dir, "memory.events", func(key []byte, n uint64) {
			switch string(key) {
			case "max":
				m.LimitHits = n
			case "oom_kill":
				m.OOMKills = n
			}
		})
	}
	u.Memory = &m
}

// workingSet is what cAdvisor calls by this name, and what evictions go by.
// The two numbers are not of the same moment.
func workingSet(m Memory) uint64 { return m.Usage - min(m.Usage, m.InactiveFile) }
