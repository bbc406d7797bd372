package metrics

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// The metrics of /metrics/resource, which metrics-server reads
// (pkg/kubelet/metrics/collectors/resource_metrics.go).
var (
	nodeCPU    = desc("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds")
	nodeMemory = desc("node_memory_working_set_bytes", "Current working set of the node in bytes")
	nodeSwap   = desc("node_swap_usage_bytes", "Current swap usage of the node in bytes. Reported only on non-windows systems")

	containerStart     = desc("container_start_time_seconds", "Start time of the container since unix epoch in seconds", "container", "pod", "namespace")
	containerCPU       = desc("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds", "container", "pod", "namespace")
	containerMemory    = desc("container_memory_working_set_bytes", "Current working set of the container in bytes", "container", "pod", "namespace")
	containerSwap      = desc("container_swap_usage_bytes", "Current amount of the container swap usage in bytes. Reported only on non-windows systems", "container", "pod", "namespace")
	containerSwapLimit = desc("container_swap_limit_bytes", "Current amount of the container swap limit in bytes. Reported only on non-windows systems", "container", "pod", "namespace")

	podCPU    = desc("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", "pod", "namespace")
	podMemory = desc("pod_memory_working_set_bytes", "Current working set of the pod in bytes", "pod", "namespace")
	podSwap   = desc("pod_swap_usage_bytes", "Current amount of the pod swap usage in bytes. Reported only on non-windows systems", "pod", "namespace")

	// The kubelet's older name of it, scrape_error, is hidden since 1.36.
	resourceScrapeError = desc("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise")
)

// resources measures CPU and memory at a scrape.
type resources struct {
	stats Stats
	log   *slog.Logger
}

// Describe names all metrics.
func (r *resources) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		nodeCPU, nodeMemory, nodeSwap, containerStart, containerCPU, containerMemory, containerSwap, containerSwapLimit,
		podCPU, podMemory, podSwap, resourceScrapeError,
	} {
		ch <- d
	}
}

// Collect measures, or says with the scrape error that it could not.
func (r *resources) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	s, err := r.stats.CPUAndMemory(ctx)
	failed := 0.0
	if err != nil {
		failed = 1
		r.log.Warn("the node cannot be measured for its metrics", "err", err)
	} else {
		usage(ch, s.Node.CPU, s.Node.Memory, s.Node.Swap, nodeCPU, nodeMemory, nodeSwap)
		for i := range s.Pods {
			pod(ch, &s.Pods[i])
		}
	}
	ch <- gauge(resourceScrapeError, failed)
}

func pod(ch chan<- prometheus.Metric, p *statsapi.PodStats) {
	for i := range p.Containers {
		c := &p.Containers[i]
		labels := []string{c.Name, p.PodRef.Name, p.PodRef.Namespace}
		if c.StartTime.Unix() > 0 {
			ch <- gauge(containerStart, seconds(uint64(c.StartTime.UnixNano())), labels...)
		}
		usage(ch, c.CPU, c.Memory, c.Swap, containerCPU, containerMemory, containerSwap, labels...)
		if c.Swap != nil && c.Swap.SwapAvailableBytes != nil {
			limit := float64(*c.Swap.SwapAvailableBytes)
			if c.Swap.SwapUsageBytes != nil {
				limit += float64(*c.Swap.SwapUsageBytes)
			}
			ch <- at(c.Swap.Time, gauge(containerSwapLimit, limit, labels...))
		}
	}
	usage(ch, p.CPU, p.Memory, p.Swap, podCPU, podMemory, podSwap, p.PodRef.Name, p.PodRef.Namespace)
}

// usage sends what is known of CPU, memory and swap.
func usage(ch chan<- prometheus.Metric, c *statsapi.CPUStats, m *statsapi.MemoryStats, s *statsapi.SwapStats, cpu, memory, swap *prometheus.Desc, labels ...string) {
	if c != nil && c.UsageCoreNanoSeconds != nil {
		ch <- at(c.Time, prometheus.MustNewConstMetric(cpu, prometheus.CounterValue, seconds(*c.UsageCoreNanoSeconds), labels...))
	}
	if m != nil && m.WorkingSetBytes != nil {
		ch <- at(m.Time, gauge(memory, float64(*m.WorkingSetBytes), labels...))
	}
	if s != nil && s.SwapUsageBytes != nil {
		ch <- at(s.Time, gauge(swap, float64(*s.SwapUsageBytes), labels...))
	}
}

func at(t metav1.Time, m prometheus.Metric) prometheus.Metric {
	return prometheus.NewMetricWithTimestamp(t.Time, m)
}

func seconds(ns uint64) float64 { return float64(ns) / float64(time.Second) }
