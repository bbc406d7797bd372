// Package metrics has the kubelet's metrics under the kubelet's names. It owns
// the registries behind /metrics, /metrics/cadvisor, /metrics/resource,
// /metrics/probes and /metrics/slis.
//
// What can be counted when somebody scrapes is counted then: pods, containers,
// volumes, everything the runtime measures. What happens in between is told by who
// does it, through the methods of Events.
//
//	metrics.go  the registries and their handlers
//	events.go   what is told of the runtime, of probes and of requests
//	pods.go     what is told of pods
//	counts.go   what is told of the node and what it has
//	images.go   what is told of images, and the records of their pulls
//	workers.go  what the pods' workers are at, counted at a scrape
//	node.go     what is counted at a scrape: pods, containers, volumes
//	resource.go /metrics/resource
//	cadvisor.go /metrics/cadvisor
//	stability.go  how stable the kubelet calls its metrics
//	client.go   requests to the API server
package metrics

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Pods are the pods of this node.
type Pods interface{ Pods() []*v1.Pod }

// Stats measures (agent/stats.Collector).
type Stats interface {
	Summary(context.Context) (*statsapi.Summary, error)
	CPUAndMemory(context.Context) (*statsapi.Summary, error)
}

// Runtime is the part of the CRI that is asked at a scrape.
type Runtime interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest, ...grpc.CallOption) (*runtimeapi.ListMetricDescriptorsResponse, error)
	ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error)
	ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxMetricsResponse, error)
}

// Config of Metrics.
type Config struct {
	// Events may have been told of before there are registries to show them, as
	// by the connection that Runtime stands on; nil: new ones.
	Events   *Events
	NodeName string
	// Version, Commit and BuildDate are those of kubernetes_build_info; Version
	// as "v1.36.3".
	Version, Commit, BuildDate string
	// Machine labels machine_* as cAdvisor does.
	MachineID, SystemUUID, BootID string
	CgroupVersion                 int // 1 or 2
	// ClientExpiry and ServerExpiry are when certificates end; nil or a zero
	// time: there is none.
	ClientExpiry, ServerExpiry func() time.Time
	// CPUs are how many containers share and how many some have to themselves;
	// nil: none.
	CPUs func() (shared, exclusive int)
	// CPUsByNode are how many of each NUMA node containers have to themselves;
	// nil: nobody knows.
	CPUsByNode func() map[int]int
	// Records are how many records there are of pulls that are under way and of
	// those that have ended; nil: none are kept.
	Records func() (pulling, pulled int, err error)
	// Working are the pods that have a worker, by what it is at; nil: nobody knows.
	Working func() map[Working]int
	// Gates are the feature gates.
	Gates []Gate
	Log   *slog.Logger
}

// Gate is a feature gate: Stage is ALPHA, BETA, DEPRECATED, or empty for one that
// is there for good.
type Gate struct {
	Name, Stage string
	On          bool
}

// scrapeTimeout bounds what is measured for one scrape.
const scrapeTimeout = 30 * time.Second

// Metrics are all of them.
type Metrics struct {
	*Events
	start                                  time.Time
	main, cadvisor, resource, probes, slis *prometheus.Registry
}

// New makes the registries.
func New(runtime Runtime, stats Stats, pods Pods, c Config) *Metrics {
	if c.Events == nil {
		c.Events = NewEvents()
	}
	m := &Metrics{
		Events: c.Events, start: time.Now(), main: prometheus.NewRegistry(), cadvisor: prometheus.NewRegistry(),
		resource: prometheus.NewRegistry(), probes: prometheus.NewRegistry(), slis: prometheus.NewRegistry(),
	}
	started := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "process_start_time_seconds", Help: "[" + alpha + "] Start time of the process since unix epoch in seconds.",
	})
	started.Set(float64(m.start.UnixNano()) / float64(time.Second))
	m.main.MustRegister(collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(collectors.MetricsAll)), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), buildInfo(c), constants(c))
	m.main.MustRegister(m.Events.kubelet()...)
	m.main.MustRegister(&node{runtime: runtime, stats: stats, pods: pods, cpus: c.CPUs, cpusByNode: c.CPUsByNode, log: c.Log}, gates(c.Gates))
	if c.Records != nil {
		m.main.MustRegister(pullRecords(c.Records))
	}
	if c.Working != nil {
		m.main.MustRegister(workers(c.Working))
	}
	for name, expiry := range map[string]func() time.Time{"client": c.ClientExpiry, "server": c.ServerExpiry} {
		if expiry != nil {
			m.main.MustRegister(certificateTTL(name, expiry))
		}
	}
	m.cadvisor.MustRegister(newCRI(runtime, c), machine(c))
	m.resource.MustRegister(&resources{stats: stats, log: c.Log})
	m.probes.MustRegister(started, m.Events.probes, m.probeDuration)
	m.slis.MustRegister(started, m.health, m.healthTotal)
	return m
}

// Handlers by path.
func (m *Metrics) Handlers() map[string]http.Handler {
	of := func(r prometheus.Gatherer) http.Handler {
		return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, ProcessStartTime: m.start})
	}
	return map[string]http.Handler{
		"/metrics": of(staged{m.main}), "/metrics/cadvisor": of(m.cadvisor), "/metrics/resource": of(staged{m.resource}),
		"/metrics/probes": of(staged{m.probes}), "/metrics/slis": of(staged{m.slis}),
	}
}

// Registry is that of /metrics, for parts with metrics of their own.
func (m *Metrics) Registry() prometheus.Registerer { return m.main }

// constant makes a gauge that is always n.
func constant(name, help string, n float64, labels ...string) prometheus.Collector {
	l := prometheus.Labels{}
	for i := 0; i+1 < len(labels); i += 2 {
		l[labels[i]] = labels[i+1]
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: l})
	g.Set(n)
	return g
}

// several registers as one.
type several []prometheus.Collector

func (s several) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s {
		c.Describe(ch)
	}
}

func (s several) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s {
		c.Collect(ch)
	}
}

func constants(c Config) prometheus.Collector {
	return several{
		constant("kubelet_node_name", "The node's name. The count is always 1.", 1, "node", c.NodeName),
		constant("kubelet_cgroup_version", "cgroup version on the hosts.", float64(c.CgroupVersion)),
		constant("kubelet_metrics_provider", "Metrics provider used by kubelet to collect container stats. Values can be 'cadvisor' and 'cri'", 1, "provider", "cri"),
	}
}

var featureEnabled = desc("kubernetes_feature_enabled", "This metric records the data about the stage and enablement of a k8s feature.", "name", "stage")

// gates shows feature gates.
type gates []Gate

func (gates) Describe(ch chan<- *prometheus.Desc) { ch <- featureEnabled }

func (g gates) Collect(ch chan<- prometheus.Metric) {
	for _, one := range g {
		on := 0.0
		if one.On {
			on = 1
		}
		ch <- gauge(featureEnabled, on, one.Name, one.Stage)
	}
}

func buildInfo(c Config) prometheus.Collector {
	major, rest, _ := strings.Cut(strings.TrimPrefix(c.Version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return constant("kubernetes_build_info",
		"A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running.",
		1, "major", major, "minor", minor, "git_version", c.Version, "git_commit", c.Commit, "git_tree_state", "", "build_date", c.BuildDate,
		"go_version", runtime.Version(), "compiler", runtime.Compiler, "platform", runtime.GOOS+"/"+runtime.GOARCH)
}

// certificateTTL counts down to the end of a certificate, as the kubelet's
// certificate managers do.
func certificateTTL(name string, expiry func() time.Time) prometheus.Collector {
	help := "Gauge of the TTL (time-to-live) of the Kubelet's " + name + " certificate. The value is in seconds until certificate expiry (negative if already expired). " +
		"If " + name + " certificate is invalid or unused, the value will be +INF."
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kubelet_certificate_manager_" + name + "_ttl_seconds", Help: help}, func() float64 {
		if end := expiry(); !end.IsZero() {
			return time.Until(end).Truncate(time.Second).Seconds()
		}
		return inf
	})
}
