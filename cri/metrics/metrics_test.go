package metrics

import (
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/stats"
)

func ptr[T any](v T) *T { return &v }

// everything is a sample that has all there is, each number another.
func everything() Sample {
	at := time.Unix(1_000, 0)
	return Sample{
		Labels:    Labels{Container: "main", ID: "/pod/c", Image: "image:1", Name: "c", Namespace: "default", Pod: "web"},
		StartedAt: time.Unix(900, 0),
		Usage: stats.Detail{
			Usage: stats.Usage{
				At: at,
				CPU: &stats.CPU{Total: 71500 * time.Millisecond, CPUDetail: stats.CPUDetail{
					User: 50 * time.Second, System: 21 * time.Second, Periods: 12, ThrottledPeriods: 3, Throttled: 4 * time.Second,
					BurstPeriods: 5, Burst: 6 * time.Second,
				}},
				Memory: &stats.Memory{Usage: 101, Limit: 102, WorkingSet: 103, RSS: 104, PageFaults: 105, MajorPageFaults: 106, MemoryDetail: stats.MemoryDetail{
					Cache: 107, MappedFile: 108, Kernel: 109, ActiveFile: 110, InactiveFile: 111, Peak: 112, LimitHits: 113, OOMKills: 114,
				}},
				Swap:           &stats.Swap{Usage: 201, Limit: 202},
				CPUPressure:    &stats.Pressure{Some: stats.Stall{Total: 301 * time.Second}, Full: stats.Stall{Total: 302 * time.Second}},
				MemoryPressure: &stats.Pressure{Some: stats.Stall{Total: 303 * time.Second}, Full: stats.Stall{Total: 304 * time.Second}},
				IOPressure:     &stats.Pressure{Some: stats.Stall{Total: 305 * time.Second}, Full: stats.Stall{Total: 306 * time.Second}},
			},
			IO:        []stats.DeviceIO{{Major: 8, Minor: 16, ReadBytes: 401, WrittenBytes: 402, Reads: 403, Writes: 404}},
			HugePages: []stats.HugePages{{Size: "2MB", Usage: 411, Peak: ptr(uint64(412))}, {Size: "1GB", Usage: 413}},
			Tasks:     ptr(uint64(501)), MaxTasks: ptr(uint64(502)),
		},
		Limits:    &runtimeapi.LinuxContainerResources{CpuPeriod: 601, CpuQuota: 602, CpuShares: 603, MemoryLimitInBytes: 604, MemorySwapLimitInBytes: 605},
		Processes: &Processes{Count: 701, Open: &stats.OpenFiles{Files: 702, Sockets: 703}, FileLimit: ptr(uint64(704))},
		Layer:     &Layer{LayerUsage: stats.LayerUsage{At: time.Unix(990, 0), Bytes: 801, Inodes: 802}, Device: "/dev/sda1", Capacity: 803, Inodes: 804, AvailableInodes: 805},
		Network:   []stats.Interface{{Name: "eth0", RxBytes: 901, TxBytes: 902, RxPackets: 903, TxPackets: 904, RxErrors: 905, TxErrors: 906, RxDropped: 907, TxDropped: 908}},
		Device:    func(major, minor uint32) string { return "/dev/sdb" },
	}
}

func TestEveryMetricHasItsDescriptorAndItsLabels(t *testing.T) {
	described := map[string][]string{}
	for _, d := range Descriptors() {
		if described[d.Name] != nil {
			t.Errorf("%s is described twice", d.Name)
		}
		if d.Help == "" || !strings.HasPrefix(d.Name, "container_") {
			t.Errorf("descriptor %v", d)
		}
		described[d.Name] = d.LabelKeys
	}
	seen := map[string]bool{}
	for _, m := range Metrics(everything()) {
		keys := described[m.Name]
		if len(keys) == 0 || len(keys) != len(m.LabelValues) {
			t.Errorf("%s has labels %q, described are %q", m.Name, m.LabelValues, keys)
		}
		line := m.Name + strings.Join(m.LabelValues, ",")
		if seen[line] {
			t.Errorf("%s is there twice", line)
		}
		seen[line], seen[m.Name] = true, true
		isCounter := strings.HasSuffix(m.Name, "_total") && m.Name != "container_fs_inodes_total" || m.Name == "container_memory_failcnt"
		if isCounter != (m.MetricType == counter) {
			t.Errorf("%s is a %v", m.Name, m.MetricType)
		}
	}
	for name := range described {
		if !seen[name] {
			t.Errorf("%s is described, and never there", name)
		}
	}
}

func TestValuesAndLabels(t *testing.T) {
	base := []string{"main", "/pod/c", "image:1", "c", "default", "web"}
	got := map[string]*runtimeapi.Metric{}
	for _, m := range Metrics(everything()) {
		if !slices.Equal(m.LabelValues[:len(base)], base) {
			t.Errorf("%s has labels %q", m.Name, m.LabelValues)
		}
		got[m.Name+" "+strings.Join(m.LabelValues[len(base):], " ")] = m
	}
	for line, want := range map[string]uint64{
		"container_last_seen ": 1000, "container_start_time_seconds ": 900,
		"container_cpu_usage_seconds_total total": 71, "container_cpu_user_seconds_total ": 50, "container_cpu_system_seconds_total ": 21,
		"container_cpu_cfs_periods_total ": 12, "container_cpu_cfs_throttled_periods_total ": 3, "container_cpu_cfs_throttled_seconds_total ": 4,
		"container_cpu_cfs_burst_periods_total ": 5, "container_cpu_cfs_burst_seconds_total ": 6,
		"container_memory_usage_bytes ": 101, "container_memory_working_set_bytes ": 103, "container_memory_rss ": 104,
		"container_memory_failures_total pgfault container": 105, "container_memory_failures_total pgmajfault container": 106,
		"container_memory_failures_total pgfault hierarchy": 105, "container_memory_failures_total pgmajfault hierarchy": 106,
		"container_memory_cache ": 107, "container_memory_mapped_file ": 108, "container_memory_kernel_usage ": 109,
		"container_memory_total_active_file_bytes ": 110, "container_memory_total_inactive_file_bytes ": 111,
		"container_memory_max_usage_bytes ": 112, "container_memory_failcnt ": 113, "container_oom_events_total ": 114, "container_memory_swap ": 201,
		"container_pressure_cpu_waiting_seconds_total ": 301, "container_pressure_cpu_stalled_seconds_total ": 302,
		"container_pressure_memory_waiting_seconds_total ": 303, "container_pressure_memory_stalled_seconds_total ": 304,
		"container_pressure_io_waiting_seconds_total ": 305, "container_pressure_io_stalled_seconds_total ": 306,
		"container_fs_reads_bytes_total /dev/sdb": 401, "container_fs_writes_bytes_total /dev/sdb": 402,
		"container_fs_reads_total /dev/sdb": 403, "container_fs_writes_total /dev/sdb": 404,
		"container_blkio_device_usage_total /dev/sdb 8 16 Read": 401, "container_blkio_device_usage_total /dev/sdb 8 16 Write": 402,
		"container_hugetlb_usage_bytes 2MB": 411, "container_hugetlb_max_usage_bytes 2MB": 412, "container_hugetlb_usage_bytes 1GB": 413,
		"container_threads ": 501, "container_threads_max ": 502,
		"container_spec_cpu_period ": 601, "container_spec_cpu_quota ": 602, "container_spec_cpu_shares ": 603,
		"container_spec_memory_limit_bytes ": 604, "container_spec_memory_swap_limit_bytes ": 605, "container_spec_memory_reservation_limit_bytes ": 0,
		"container_processes ": 701, "container_file_descriptors ": 702, "container_sockets ": 703, "container_ulimits_soft max_open_files": 704,
		"container_fs_usage_bytes /dev/sda1": 801, "container_fs_limit_bytes /dev/sda1": 803,
		"container_fs_inodes_total /dev/sda1": 804, "container_fs_inodes_free /dev/sda1": 805,
		"container_network_receive_bytes_total eth0": 901, "container_network_transmit_bytes_total eth0": 902,
		"container_network_receive_packets_total eth0": 903, "container_network_transmit_packets_total eth0": 904,
		"container_network_receive_errors_total eth0": 905, "container_network_transmit_errors_total eth0": 906,
		"container_network_receive_packets_dropped_total eth0": 907, "container_network_transmit_packets_dropped_total eth0": 908,
	} {
		m := got[line]
		if m == nil || m.Value.Value != want {
			t.Errorf("%s is %v, want %d", line, m, want)
			continue
		}
		// Only what was kept from earlier has a time.
		if kept := strings.HasSuffix(line, "/dev/sda1"); kept != (m.Timestamp == 990*1e9) || !kept && m.Timestamp != 0 {
			t.Errorf("%s has the time %d", line, m.Timestamp)
		}
		delete(got, line)
	}
	for line := range got {
		t.Errorf("%s was not expected", line)
	}
}

func TestWhatIsNotKnownGivesNoMetric(t *testing.T) {
	if got := Metrics(Sample{}); len(got) > 0 {
		t.Errorf("of nothing: %v", got)
	}
	s := everything()
	s.Limits = &runtimeapi.LinuxContainerResources{CpuQuota: -1}
	s.Usage.MaxTasks = ptr(uint64(stats.Unlimited))
	for _, m := range Metrics(s) {
		switch {
		case strings.HasPrefix(m.Name, "container_cpu_cfs_"), m.Name == "container_spec_cpu_quota":
			t.Errorf("without a CPU limit: %v", m)
		case m.Name == "container_threads_max" && m.Value.Value != 0,
			m.Name == "container_spec_cpu_shares" && m.Value.Value != 1024,
			m.Name == "container_spec_cpu_period" && m.Value.Value != 100_000:
			t.Errorf("without a limit: %v", m)
		}
	}
}
