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
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
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
	exact, err := c.cpuTimes(ctx)
	if err != nil {
		return err
	}
	all, err := c.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	send := func(m *runtimeapi.Metric) {
		out, err := convert(descs[m.GetName()], m, exact)
		switch {
		case err != nil:
			c.log.Debug("the runtime's metric does not match its descriptor", "metric", m.GetName(), "err", err)
		case out != nil:
			ch <- out
		}
	}
	for _, pod := range all.GetPodMetrics() {
		for _, m := range pod.GetMetrics() {
			send(m)
		}
		for _, container := range pod.GetContainerMetrics() {
			for _, m := range container.GetMetrics() {
				send(m)
			}
		}
	}
	return nil
}

// cpuTime is the metric that rates are taken of. The CRI's metrics are whole
// numbers, which makes steps of seconds of it; its statistics have nanoseconds.
const cpuTime = "container_cpu_usage_seconds_total"

// cpuTimes are the CPU times of containers and pods by ID; none of a runtime
// without statistics of pods.
func (c *cri) cpuTimes(ctx context.Context) (map[string]*runtimeapi.CpuUsage, error) {
	r, err := c.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	times := map[string]*runtimeapi.CpuUsage{}
	for _, pod := range r.GetStats() {
		times[pod.GetAttributes().GetId()] = pod.GetLinux().GetCpu()
		for _, container := range pod.GetLinux().GetContainers() {
			times[container.GetAttributes().GetId()] = container.GetCpu()
		}
	}
	return times, nil
}

// convert is nil for a metric without a descriptor. IDs are the values of
// labels: "name" with Berth's runtime, "id" with containerd.
func convert(d *prometheus.Desc, m *runtimeapi.Metric, exact map[string]*runtimeapi.CpuUsage) (prometheus.Metric, error) {
	if d == nil {
		return nil, nil
	}
	kind := prometheus.CounterValue
	if m.GetMetricType() == runtimeapi.MetricType_GAUGE {
		kind = prometheus.GaugeValue
	}
	value, at := float64(m.GetValue().GetValue()), m.GetTimestamp()
	if m.GetName() == cpuTime {
		for _, label := range m.GetLabelValues() {
			if cpu := exact[label]; cpu.GetUsageCoreNanoSeconds() != nil && label != "" {
				value, at = seconds(cpu.GetUsageCoreNanoSeconds().GetValue()), cpu.GetTimestamp()
			}
		}
	}
	out, err := prometheus.NewConstMetric(d, kind, value, m.GetLabelValues()...)
	if err != nil || at == 0 {
		return out, err
	}
	return prometheus.NewMetricWithTimestamp(time.Unix(0, at), out), nil
}

// machine are cAdvisor's machine_* that dashboards use.
func machine(c Config) prometheus.Collector {
	labels := []string{"boot_id", c.BootID, "machine_id", c.MachineID, "system_uuid", c.SystemUUID}
	cores, sockets := topology()
	memory, swap := memoryOf()
	return several{
		version(),
		constant("machine_scrape_error", "1 if there was an error while getting machine metrics, 0 otherwise.", 0),
		constant("machine_cpu_cores", "Number of logical CPU cores.", float64(runtime.NumCPU()), labels...),
		constant("machine_cpu_physical_cores", "Number of physical CPU cores.", float64(cores), labels...),
		constant("machine_cpu_sockets", "Number of CPU sockets.", float64(sockets), labels...),
		constant("machine_memory_bytes", "Amount of memory installed on the machine.", memory, labels...),
		constant("machine_swap_bytes", "Amount of swap memory available on the machine.", swap, labels...),
	}
}

// version is cAdvisor's of the host: dashboards read kernel and system from it.
// There is no cAdvisor, and no docker.
func version() prometheus.Collector {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails only for a bad pointer
	system := "Linux"
	data, _ := os.ReadFile("/etc/os-release") // not there in a bare image
	for line := range bytes.Lines(data) {
		if name, ok := strings.CutPrefix(string(line), "PRETTY_NAME="); ok {
			system = strings.Trim(strings.TrimSpace(name), `"`)
		}
	}
	return constant("cadvisor_version_info", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.",
		1, "kernelVersion", unix.ByteSliceToString(u.Release[:]), "osVersion", system, "dockerVersion", "", "cadvisorVersion", "", "cadvisorRevision", "")
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
