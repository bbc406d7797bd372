package metrics

import (
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/stats"
)

// What Linux has where nobody set anything.
const (
	defaultCPUPeriod = 100_000 // µs
	defaultCPUShares = 1024
)

// table has the metrics that a kubelet's cAdvisor shows (its pkg/kubelet/server
// names the kinds) and those of huge pages, without those that are always zero there: container_tasks_state
// and container_cpu_load_average_10s need a reader that the kubelet switches off,
// and the rest of container_fs_* is only measured for raw block devices.
var table = []metric{
	{"container_last_seen", "Last time the container was seen, in seconds since the epoch.", gauge, nil,
		one(func(s Sample) (uint64, bool) { return unix(s.Usage.At.Unix()), !s.Usage.At.IsZero() })},
	{"container_start_time_seconds", "Start time of the container, in seconds since the epoch.", gauge, nil,
		one(func(s Sample) (uint64, bool) { return unix(s.StartedAt.Unix()), !s.StartedAt.IsZero() })},

	{"container_cpu_usage_seconds_total", "CPU time used, in seconds.", counter, []string{"cpu"},
		func(s Sample) []value {
			if s.Usage.CPU == nil {
				return nil
			}
			return []value{{n: seconds(s.Usage.CPU.Total), labels: []string{"total"}}}
		}},
	{"container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.", counter, nil,
		cpu(func(c *stats.CPU) uint64 { return seconds(c.User) })},
	{"container_cpu_system_seconds_total", "CPU time used in the kernel, in seconds.", counter, nil,
		cpu(func(c *stats.CPU) uint64 { return seconds(c.System) })},
	{"container_cpu_cfs_periods_total", "Periods of the CPU limit in which the container ran.", counter, nil,
		quota(func(c *stats.CPU) uint64 { return c.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "Periods in which the container used up its CPU limit.", counter, nil,
		quota(func(c *stats.CPU) uint64 { return c.ThrottledPeriods })},
	{"container_cpu_cfs_throttled_seconds_total", "Time in which the CPU limit held the container up, in seconds.", counter, nil,
		quota(func(c *stats.CPU) uint64 { return seconds(c.Throttled) })},
	{"container_cpu_cfs_burst_periods_total", "Periods in which the container used more than its CPU limit, from what it had saved.", counter, nil,
		quota(func(c *stats.CPU) uint64 { return c.BurstPeriods })},
	{"container_cpu_cfs_burst_seconds_total", "CPU time used beyond the CPU limit, in seconds.", counter, nil,
		quota(func(c *stats.CPU) uint64 { return seconds(c.Burst) })},

	{"container_memory_usage_bytes", "Memory in use, whenever it was used last.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.Usage })},
	{"container_memory_working_set_bytes", "Memory in use without file pages that can be dropped at once.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.WorkingSet })},
	{"container_memory_rss", "Anonymous memory, in bytes.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.RSS })},
	{"container_memory_cache", "Page cache, in bytes.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.Cache })},
	{"container_memory_mapped_file", "Files mapped into memory, in bytes.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.MappedFile })},
	{"container_memory_kernel_usage", "Memory that the kernel uses for the container, in bytes.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.Kernel })},
	{"container_memory_total_active_file_bytes", "File pages in use.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", "File pages that can be dropped at once.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.InactiveFile })},
	{"container_memory_max_usage_bytes", "The most memory that was in use.", gauge, nil,
		memory(func(m *stats.Memory) uint64 { return m.Peak })},
	{"container_memory_failcnt", "How often the memory limit was reached.", counter, nil,
		memory(func(m *stats.Memory) uint64 { return m.LimitHits })},
	{"container_memory_failures_total", "Page faults.", counter, []string{"failure_type", "scope"}, pageFaults},
	{"container_memory_swap", "Swap in use, in bytes; zero where the kernel does not account it.", gauge, nil,
		one(func(s Sample) (uint64, bool) {
			if s.Usage.Swap == nil {
				return 0, s.Usage.Memory != nil
			}
			return s.Usage.Swap.Usage, true
		})},
	{"container_hugetlb_usage_bytes", "Huge pages in use or reserved.", gauge, []string{"pagesize"},
		hugePages(func(h stats.HugePages) (uint64, bool) { return h.Usage, true })},
	{"container_hugetlb_max_usage_bytes", "The most huge pages that were in use or reserved.", gauge, []string{"pagesize"},
		hugePages(func(h stats.HugePages) (uint64, bool) { return optional(h.Peak) })},
	{"container_oom_events_total", "Processes killed because there was no memory.", counter, nil,
		memory(func(m *stats.Memory) uint64 { return m.OOMKills })},

	{"container_fs_usage_bytes", "What the container's writable layer takes.", gauge, []string{"device"},
		layer(func(l *Layer) uint64 { return l.Bytes })},
	{"container_fs_limit_bytes", "Size of the file system that the writable layer is on.", gauge, []string{"device"},
		layer(func(l *Layer) uint64 { return l.Capacity })},
	{"container_fs_inodes_total", "Inodes of that file system.", gauge, []string{"device"},
		layer(func(l *Layer) uint64 { return l.Inodes })},
	{"container_fs_inodes_free", "Inodes of that file system that are free.", gauge, []string{"device"},
		layer(func(l *Layer) uint64 { return l.AvailableInodes })},

	{"container_fs_reads_bytes_total", "Bytes read from a block device.", counter, []string{"device"},
		disk(func(d stats.DeviceIO) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", "Read operations of a block device.", counter, []string{"device"},
		disk(func(d stats.DeviceIO) uint64 { return d.Reads })},
	{"container_fs_writes_bytes_total", "Bytes written to a block device.", counter, []string{"device"},
		disk(func(d stats.DeviceIO) uint64 { return d.WrittenBytes })},
	{"container_fs_writes_total", "Write operations of a block device.", counter, []string{"device"},
		disk(func(d stats.DeviceIO) uint64 { return d.Writes })},
	{"container_blkio_device_usage_total", "Bytes read from and written to a block device.", counter,
		[]string{"device", "major", "minor", "operation"}, blockDevices},

	{"container_processes", "Processes.", gauge, nil,
		one(func(s Sample) (uint64, bool) {
			if s.Processes == nil {
				return 0, false
			}
			return uint64(s.Processes.Count), true
		})},
	{"container_file_descriptors", "Open files.", gauge, nil,
		open(func(o *stats.OpenFiles) int { return o.Files })},
	{"container_sockets", "Open sockets.", gauge, nil,
		open(func(o *stats.OpenFiles) int { return o.Sockets })},
	{"container_threads", "Threads.", gauge, nil,
		one(func(s Sample) (uint64, bool) { return optional(s.Usage.Tasks) })},
	{"container_threads_max", "How many threads there may be; zero is without a limit.", gauge, nil,
		one(func(s Sample) (uint64, bool) {
			n, ok := optional(s.Usage.MaxTasks)
			if n == stats.Unlimited {
				n = 0
			}
			return n, ok
		})},
	{"container_ulimits_soft", "Soft limits of the container's first process.", gauge, []string{"ulimit"},
		func(s Sample) []value {
			if s.Processes == nil || s.Processes.FileLimit == nil {
				return nil
			}
			return []value{{n: *s.Processes.FileLimit, labels: []string{"max_open_files"}}}
		}},

	{"container_spec_cpu_period", "Period of the CPU limit, in microseconds.", gauge, nil,
		limits(func(l *runtimeapi.LinuxContainerResources) (uint64, bool) {
			return orDefault(l.GetCpuPeriod(), defaultCPUPeriod), true
		})},
	{"container_spec_cpu_quota", "CPU time that may be used in a period, in microseconds.", gauge, nil,
		limits(func(l *runtimeapi.LinuxContainerResources) (uint64, bool) {
			return orDefault(l.GetCpuQuota(), 0), l.GetCpuQuota() > 0
		})},
	{"container_spec_cpu_shares", "CPU shares.", gauge, nil,
		limits(func(l *runtimeapi.LinuxContainerResources) (uint64, bool) {
			return orDefault(l.GetCpuShares(), defaultCPUShares), true
		})},
	{"container_spec_memory_limit_bytes", "Memory limit; zero is without.", gauge, nil,
		limits(func(l *runtimeapi.LinuxContainerResources) (uint64, bool) {
			return orDefault(l.GetMemoryLimitInBytes(), 0), true
		})},
	{"container_spec_memory_swap_limit_bytes", "Limit of memory and swap together; zero is without.", gauge, nil,
		limits(func(l *runtimeapi.LinuxContainerResources) (uint64, bool) {
			return orDefault(l.GetMemorySwapLimitInBytes(), 0), true
		})},
	{"container_spec_memory_reservation_limit_bytes", "Memory reservation: the CRI has none.", gauge, nil,
		limits(func(*runtimeapi.LinuxContainerResources) (uint64, bool) { return 0, true })},

	{"container_network_receive_bytes_total", "Bytes received.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.RxBytes })},
	{"container_network_receive_packets_total", "Packets received.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.RxPackets })},
	{"container_network_receive_packets_dropped_total", "Packets dropped while receiving.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.RxDropped })},
	{"container_network_receive_errors_total", "Errors while receiving.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.RxErrors })},
	{"container_network_transmit_bytes_total", "Bytes sent.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.TxBytes })},
	{"container_network_transmit_packets_total", "Packets sent.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.TxPackets })},
	{"container_network_transmit_packets_dropped_total", "Packets dropped while sending.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.TxDropped })},
	{"container_network_transmit_errors_total", "Errors while sending.", counter, []string{"interface"},
		network(func(i stats.Interface) uint64 { return i.TxErrors })},

	{"container_pressure_cpu_waiting_seconds_total", "Time in which some tasks waited for a CPU, in seconds.", counter, nil, stalled(cpuPressure, some)},
	{"container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU, in seconds.", counter, nil, stalled(cpuPressure, full)},
	{"container_pressure_memory_waiting_seconds_total", "Time in which some tasks waited for memory, in seconds.", counter, nil, stalled(memoryPressure, some)},
	{"container_pressure_memory_stalled_seconds_total", "Time in which all tasks waited for memory, in seconds.", counter, nil, stalled(memoryPressure, full)},
	{"container_pressure_io_waiting_seconds_total", "Time in which some tasks waited for I/O, in seconds.", counter, nil, stalled(ioPressure, some)},
	{"container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for I/O, in seconds.", counter, nil, stalled(ioPressure, full)},
}

func cpuPressure(u *stats.Usage) *stats.Pressure    { return u.CPUPressure }
func memoryPressure(u *stats.Usage) *stats.Pressure { return u.MemoryPressure }
func ioPressure(u *stats.Usage) *stats.Pressure     { return u.IOPressure }
func some(p *stats.Pressure) stats.Stall            { return p.Some }
func full(p *stats.Pressure) stats.Stall            { return p.Full }

// pageFaults has the same numbers in both scopes, as cAdvisor has.
func pageFaults(s Sample) []value {
	m := s.Usage.Memory
	if m == nil {
		return nil
	}
	var list []value
	for _, scope := range []string{"container", "hierarchy"} {
		list = append(list, value{n: m.PageFaults, labels: []string{"pgfault", scope}},
			value{n: m.MajorPageFaults, labels: []string{"pgmajfault", scope}})
	}
	return list
}

func hugePages(get func(stats.HugePages) (uint64, bool)) func(Sample) []value {
	return func(s Sample) []value {
		var list []value
		for _, h := range s.Usage.HugePages {
			if n, ok := get(h); ok {
				list = append(list, value{n: n, labels: []string{h.Size}})
			}
		}
		return list
	}
}

func blockDevices(s Sample) []value {
	var list []value
	for _, d := range s.Usage.IO {
		device := []string{s.device(d), strconv.Itoa(int(d.Major)), strconv.Itoa(int(d.Minor))}
		list = append(list, value{n: d.ReadBytes, labels: append(device[:3:3], "Read")},
			value{n: d.WrittenBytes, labels: append(device[:3:3], "Write")})
	}
	return list
}

func open(get func(*stats.OpenFiles) int) func(Sample) []value {
	return one(func(s Sample) (uint64, bool) {
		if s.Processes == nil || s.Processes.Open == nil {
			return 0, false
		}
		return uint64(get(s.Processes.Open)), true
	})
}

// orDefault: what is not set is zero or, for no limit, negative.
func orDefault(n int64, otherwise uint64) uint64 {
	if n <= 0 {
		return otherwise
	}
	return uint64(n)
}

func unix(seconds int64) uint64 { return uint64(max(seconds, 0)) }
