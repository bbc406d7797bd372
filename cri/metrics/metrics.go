// Package metrics gives what the runtime measures the names, types, labels and
// units of cAdvisor (v0.56, metrics/prometheus.go), which dashboards and alerts
// know: with PodAndContainerStatsFromCRI (KEP-2371) the kubelet's
// /metrics/cadvisor shows the runtime's metrics instead of cAdvisor's. It is
// pure: what was measured goes in, messages come out. The CRI server calls it.
//
// The descriptors and the metrics come from one table (table.go), so that no
// metric can be without its descriptor or have other labels.
package metrics

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/stats"
)

// Labels are those that every metric has.
type Labels struct {
	Container string // name of the container; empty for the pod as a whole
	ID        string // cgroup
	Image     string
	Name      string // container ID
	Namespace string
	Pod       string
}

// baseKeys are the keys of Labels, sorted as the kubelet's cAdvisor has them.
var baseKeys = []string{"container", "id", "image", "name", "namespace", "pod"}

func (l Labels) values() []string {
	return []string{l.Container, l.ID, l.Image, l.Name, l.Namespace, l.Pod}
}

// Sample is all that is known of a container, or of a pod as a whole. What is
// nil or empty gives no metrics.
type Sample struct {
	Labels    Labels
	StartedAt time.Time
	Usage     stats.Detail
	Limits    *runtimeapi.LinuxContainerResources
	Processes *Processes
	Layer     *Layer
	Network   []stats.Interface
	// Device names a block device, /dev/sda.
	Device func(major, minor uint32) string
}

// Processes of a container or a pod.
type Processes struct {
	Count     int
	Open      *stats.OpenFiles
	FileLimit *uint64 // of the first process
}

// Layer is a container's writable layer and the file system it is on.
type Layer struct {
	stats.LayerUsage
	Device                  string
	Capacity                uint64 // bytes
	Inodes, AvailableInodes uint64
}

// metric is one line of the table.
type metric struct {
	name, help string
	kind       runtimeapi.MetricType
	labels     []string // beside baseKeys
	values     func(Sample) []value
}

// value of a metric.
type value struct {
	n      uint64
	labels []string // of metric.labels
	at     time.Time
}

const (
	counter = runtimeapi.MetricType_COUNTER
	gauge   = runtimeapi.MetricType_GAUGE
)

// Descriptors of all metrics there can be.
func Descriptors() []*runtimeapi.MetricDescriptor {
	var list []*runtimeapi.MetricDescriptor
	for _, m := range table {
		keys := append(append([]string(nil), baseKeys...), m.labels...)
		list = append(list, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: keys})
	}
	return list
}

// Metrics of a sample.
func Metrics(s Sample) []*runtimeapi.Metric {
	var list []*runtimeapi.Metric
	base := s.Labels.values()
	for _, m := range table {
		for _, v := range m.values(s) {
			labels := base // shared by all that have no others
			if len(v.labels) > 0 {
				labels = append(append(make([]string, 0, len(base)+len(v.labels)), base...), v.labels...)
			}
			out := &runtimeapi.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: v.n},
			}
			if !v.at.IsZero() {
				out.Timestamp = v.at.UnixNano()
			}
			list = append(list, out)
		}
	}
	return list
}

// one is a metric with one value, if there is one.
func one(get func(Sample) (uint64, bool)) func(Sample) []value {
	return func(s Sample) []value {
		if n, ok := get(s); ok {
			return []value{{n: n}}
		}
		return nil
	}
}

// seconds, whole ones: the CRI has no fractions.
func seconds(d time.Duration) uint64 { return uint64(max(d, 0) / time.Second) }

func cpu(get func(*stats.CPU) uint64) func(Sample) []value {
	return one(func(s Sample) (uint64, bool) {
		if s.Usage.CPU == nil {
			return 0, false
		}
		return get(s.Usage.CPU), true
	})
}

// quota is cpu for those that have a CPU limit.
func quota(get func(*stats.CPU) uint64) func(Sample) []value {
	return one(func(s Sample) (uint64, bool) {
		if s.Usage.CPU == nil || s.Limits.GetCpuQuota() <= 0 {
			return 0, false
		}
		return get(s.Usage.CPU), true
	})
}

func memory(get func(*stats.Memory) uint64) func(Sample) []value {
	return one(func(s Sample) (uint64, bool) {
		if s.Usage.Memory == nil {
			return 0, false
		}
		return get(s.Usage.Memory), true
	})
}

func stalled(of func(*stats.Usage) *stats.Pressure, line func(*stats.Pressure) stats.Stall) func(Sample) []value {
	return one(func(s Sample) (uint64, bool) {
		p := of(&s.Usage.Usage)
		if p == nil {
			return 0, false
		}
		return seconds(line(p).Total), true
	})
}

func limits(get func(*runtimeapi.LinuxContainerResources) (uint64, bool)) func(Sample) []value {
	return one(func(s Sample) (uint64, bool) {
		if s.Limits == nil {
			return 0, false
		}
		return get(s.Limits)
	})
}

func network(get func(stats.Interface) uint64) func(Sample) []value {
	return func(s Sample) []value {
		var list []value
		for _, i := range s.Network {
			list = append(list, value{n: get(i), labels: []string{i.Name}})
		}
		return list
	}
}

func disk(get func(stats.DeviceIO) uint64) func(Sample) []value {
	return func(s Sample) []value {
		var list []value
		for _, d := range s.Usage.IO {
			list = append(list, value{n: get(d), labels: []string{s.device(d)}})
		}
		return list
	}
}

func (s Sample) device(d stats.DeviceIO) string {
	if s.Device == nil {
		return ""
	}
	return s.Device(d.Major, d.Minor)
}

func layer(get func(*Layer) uint64) func(Sample) []value {
	return func(s Sample) []value {
		if s.Layer == nil {
			return nil
		}
		return []value{{n: get(s.Layer), labels: []string{s.Layer.Device}, at: s.Layer.At}}
	}
}

func optional(n *uint64) (uint64, bool) {
	if n == nil {
		return 0, false
	}
	return *n, true
}
