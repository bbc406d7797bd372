package metrics

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var containerScrapeError = desc("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise")

// cri shows what the runtime measures under cAdvisor's names, as the kubelet
// does with PodAndContainerStatsFromCRI (pkg/kubelet/metrics/collectors/cri_metrics.go).
// Descriptors are asked for at each scrape: a runtime may have become another one.
type cri struct {
	runtime Runtime
	log     *slog.Logger
}

func newCRI(r Runtime, c Config) *cri { return &cri{runtime: r, log: c.Log} }

// Describe names nothing: what there is depends on the runtime. The registry
// then checks each scrape.
func (c *cri) Describe(chan<- *prometheus.Desc) {}

// Collect asks the runtime. A runtime that cannot say shows as container_scrape_error.
func (c *cri) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	failed := 0.0
	if err := c.collect(ctx, ch); err != nil {
		failed = 1
		c.log.Warn("the runtime has no metrics of its containers", "err", err)
	}
	ch <- gauge(containerScrapeError, failed)
}

func (c *cri) collect(ctx context.Context, ch chan<- prometheus.Metric) error {
	list, err := c.runtime.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		return err
	}
	descs := map[string]*prometheus.Desc{}
	for _, d := range list.GetDescriptors() {
		descs[d.GetName()] = desc(d.GetName(), d.GetHelp(), d.GetLabelKeys()...)
	}
	all, err := c.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	for _, pod := range all.GetPodMetrics() {
		for _, m := range pod.GetMetrics() {
			c.send(ch, descs, m)
		}
		for _, container := range pod.GetContainerMetrics() {
			for _, m := range container.GetMetrics() {
				c.send(ch, descs, m)
			}
		}
	}
	return nil
}

// send leaves out a metric without a descriptor, or with labels other than it says.
func (c *cri) send(ch chan<- prometheus.Metric, descs map[string]*prometheus.Desc, m *runtimeapi.Metric) {
	d := descs[m.GetName()]
	if d == nil {
		return
	}
	kind := prometheus.CounterValue
	if m.GetMetricType() == runtimeapi.MetricType_GAUGE {
		kind = prometheus.GaugeValue
	}
	out, err := prometheus.NewConstMetric(d, kind, float64(m.GetValue().GetValue()), m.GetLabelValues()...)
	if err != nil {
		c.log.Debug("the runtime's metric does not match its descriptor", "metric", m.GetName(), "err", err)
		return
	}
	if t := m.GetTimestamp(); t != 0 {
		out = prometheus.NewMetricWithTimestamp(time.Unix(0, t), out)
	}
	ch <- out
}

// machine are cAdvisor's machine_* that dashboards use.
func machine(c Config) prometheus.Collector {
	labels := []string{"boot_id", c.BootID, "machine_id", c.MachineID, "system_uuid", c.SystemUUID}
	cores, sockets := topology()
	memory, swap := memoryOf()
	return several{
		constant("machine_cpu_cores", "Number of logical CPU cores.", float64(runtime.NumCPU()), labels...),
		constant("machine_cpu_physical_cores", "Number of physical CPU cores.", float64(cores), labels...),
		constant("machine_cpu_sockets", "Number of CPU sockets.", float64(sockets), labels...),
		constant("machine_memory_bytes", "Amount of memory installed on the machine.", memory, labels...),
		constant("machine_swap_bytes", "Amount of swap memory available on the machine.", swap, labels...),
	}
}

// topology reads physical cores and sockets; a machine that does not tell has
// one socket, and a core for each CPU.
func topology() (cores, sockets int) {
	data, _ := os.ReadFile("/proc/cpuinfo") // there on every Linux
	seen, packages := map[string]bool{}, map[string]bool{}
	physical := ""
	for line := range bytes.Lines(data) {
		name, value, _ := strings.Cut(string(line), ":")
		switch strings.TrimSpace(name) {
		case "physical id":
			physical = strings.TrimSpace(value)
			packages[physical] = true
		case "core id":
			seen[physical+"/"+strings.TrimSpace(value)] = true
		}
	}
	if len(seen) == 0 {
		return runtime.NumCPU(), 1
	}
	return len(seen), max(1, len(packages))
}

func memoryOf() (total, swap float64) {
	data, _ := os.ReadFile("/proc/meminfo") // there on every Linux
	for line := range bytes.Lines(data) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "MemTotal:":
			total = n * 1024
		case "SwapTotal:":
			swap = n * 1024
		}
	}
	return total, swap
}
