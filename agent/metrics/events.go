package metrics

import (
	"context"
	"math"
	"path"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var inf = math.Inf(1)

// podStartBuckets are those of everything that ends with a pod running.
var podStartBuckets = []float64{0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}

// Events is what is told when it happens: each method counts one kind of event,
// and those who call it declare what they need of them as an interface of their
// own. All are safe for concurrent use, and none waits.
type Events struct {
	pods            podCounts
	firstNetworkPod sync.Once
	node            nodeCounts
	images          imageCounts
	workers         workerCounts

	relist, relistInterval, podRelist, eventDelay prometheus.Histogram
	lastSeen                                      prometheus.Gauge
	connected, connectErrors                      prometheus.Counter
	operations, operationErrors, sandboxErrors    *prometheus.CounterVec
	operationDuration, sandboxDuration            *prometheus.HistogramVec
	podsStarted, podsStartErrors                  prometheus.Counter
	userNamespaces, userNamespaceErrors           prometheus.Counter

	probes        *prometheus.CounterVec
	probeDuration *prometheus.HistogramVec

	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec
	requestsNow     *prometheus.GaugeVec
	webSockets      *prometheus.CounterVec
	health          *prometheus.GaugeVec
	healthTotal     *prometheus.CounterVec
	all             []prometheus.Collector
}

const subsystem = "kubelet"

func (e *Events) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help})
	e.all = append(e.all, c)
	return c
}

func (e *Events) counters(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Subsystem: subsystem, Name: name, Help: help}, labels)
	e.all = append(e.all, c)
	return c
}

func (e *Events) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help})
	e.all = append(e.all, g)
	return g
}

// lateGauge is one that is not shown before it is set.
func (e *Events) lateGauge(name, help string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Subsystem: subsystem, Name: name, Help: help}, nil)
	e.all = append(e.all, g)
	return g
}

func (e *Events) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Subsystem: subsystem, Name: name, Help: help, Buckets: buckets})
	e.all = append(e.all, h)
	return h
}

func (e *Events) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Subsystem: subsystem, Name: name, Help: help, Buckets: buckets}, labels)
	e.all = append(e.all, h)
	return h
}

// NewEvents makes the counters, with the names, help texts and buckets of
// pkg/kubelet/metrics and pkg/kubelet/server/metrics. They are shown by the
// Metrics that they are given to.
func NewEvents() *Events {
	e := &Events{}
	e.newPods()
	e.newNode()
	e.newImages()
	e.newWorkers()
	e.runtime()
	e.server()
	e.probes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Subsystem: "prober", Name: "probe_total", Help: "Cumulative number of a liveness, readiness or startup probe for a container by result.",
	}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"})
	e.probeDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Subsystem: "prober", Name: "probe_duration_seconds", Help: "Duration in seconds for a probe response.",
	}, []string{"probe_type", "container", "pod", "namespace"})
	return e
}

func (e *Events) runtime() {
	e.operations = e.counters("runtime_operations_total", "Cumulative number of runtime operations by operation type.", "operation_type")
	e.operationErrors = e.counters("runtime_operations_errors_total", "Cumulative number of runtime operation errors by operation type.", "operation_type")
	e.operationDuration = e.histograms("runtime_operations_duration_seconds", "Duration in seconds of runtime operations. Broken down by operation type.", prometheus.ExponentialBuckets(.005, 2.5, 14), "operation_type")
	e.sandboxDuration = e.histograms("run_podsandbox_duration_seconds", "Duration in seconds of the run_podsandbox operations. Broken down by RuntimeClass.Handler.", prometheus.DefBuckets, "runtime_handler")
	e.sandboxErrors = e.counters("run_podsandbox_errors_total", "Cumulative number of the run_podsandbox operation errors by RuntimeClass.Handler.", "runtime_handler")
	e.podsStarted = e.counter("started_pods_total", "Cumulative number of pods started")
	e.podsStartErrors = e.counter("started_pods_errors_total", "Cumulative number of errors when starting pods")
	e.userNamespaces = e.counter("started_user_namespaced_pods_total", "Cumulative number of pods with user namespaces started. This metric will only be collected on Linux.")
	e.userNamespaceErrors = e.counter("started_user_namespaced_pods_errors_total", "Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.")
	e.relist = e.histogram("pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.", prometheus.DefBuckets)
	e.relistInterval = e.histogram("pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG.", prometheus.DefBuckets)
	e.podRelist = e.histogram("pleg_pod_relist_duration_seconds", "Duration in seconds for relisting a single pod in PLEG.", prometheus.DefBuckets)
	e.lastSeen = e.gauge("pleg_last_seen_seconds", "Timestamp in seconds when PLEG was last seen active.")
	e.connected = e.counter("evented_pleg_connection_success_count", "The number of times a streaming client was obtained to receive CRI Events.")
	e.connectErrors = e.counter("evented_pleg_connection_error_count", "The number of errors encountered during the establishment of streaming connection with the CRI runtime.")
	e.eventDelay = e.histogram("evented_pleg_connection_latency_seconds", "The latency of streaming connection with the CRI runtime, measured in seconds.", prometheus.DefBuckets)
}

// Relisted counts that everything which runs was asked for, and how long after
// the last time; zero: it was the first.
func (e *Events) Relisted(took, after time.Duration) {
	e.relist.Observe(took.Seconds())
	if after > 0 {
		e.relistInterval.Observe(after.Seconds())
	}
	e.lastSeen.SetToCurrentTime()
}

// PodRelisted counts that one pod was asked about.
func (e *Events) PodRelisted(took time.Duration) { e.podRelist.Observe(took.Seconds()) }

// Following counts that the runtime's events were asked for.
func (e *Events) Following(err error) {
	if err != nil {
		e.connectErrors.Inc()
		return
	}
	e.connected.Inc()
}

// RuntimeTold counts an event of the runtime that came after that delay.
func (e *Events) RuntimeTold(delay time.Duration) {
	e.eventDelay.Observe(max(0, delay).Seconds())
	e.lastSeen.SetToCurrentTime()
}

func (e *Events) server() {
	labels := []string{"method", "path", "server_type", "long_running"}
	e.requests = e.counters("http_requests_total", "Number of the http requests received since the server started", labels...)
	e.requestDuration = e.histograms("http_requests_duration_seconds", "Duration in seconds to serve http requests", prometheus.DefBuckets, labels...)
	e.requestsNow = prometheus.NewGaugeVec(prometheus.GaugeOpts{Subsystem: subsystem, Name: "http_inflight_requests", Help: "Number of the inflight http requests"}, labels)
	e.all = append(e.all, e.requestsNow)
	e.webSockets = e.counters("websocket_streaming_requests_total", "Total number of WebSocket streaming requests (exec/attach/portforward) received by the kubelet.", "subresource")
	e.health = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "kubernetes_healthcheck", Help: "This metric records the result of a single healthcheck."}, []string{"name", "type"})
	e.healthTotal = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "kubernetes_healthchecks_total", Help: "This metric records the results of all healthcheck."}, []string{"name", "type", "status"})
}

func (e *Events) kubelet() []prometheus.Collector { return e.all }

// operation names a CRI call as the kubelet does (instrumented_services.go of
// pkg/kubelet/kuberuntime); a call that is not there is not counted.
var operation = map[string]string{
	"Version": "version", "Status": "status", "CreateContainer": "create_container", "StartContainer": "start_container",
	"StopContainer": "stop_container", "RemoveContainer": "remove_container", "ListContainers": "list_containers",
	"ContainerStatus": "container_status", "UpdateContainerResources": "update_container", "ReopenContainerLog": "reopen_container_log",
	"ExecSync": "exec_sync", "Exec": "exec", "Attach": "attach", "PortForward": "port_forward",
	"RunPodSandbox": "run_podsandbox", "StopPodSandbox": "stop_podsandbox", "RemovePodSandbox": "remove_podsandbox",
	"PodSandboxStatus": "podsandbox_status", "ListPodSandbox": "list_podsandbox",
	"ContainerStats": "container_stats", "ListContainerStats": "list_container_stats", "PodSandboxStats": "podsandbox_stats", "ListPodSandboxStats": "list_podsandbox_stats",
	"UpdatePodSandboxResources": "update_podsandbox_resources", "UpdateRuntimeConfig": "update_runtime_config",
	"ListImages": "list_images", "ImageStatus": "image_status", "PullImage": "pull_image", "RemoveImage": "remove_image", "ImageFsInfo": "image_fs_info",
	"CheckpointContainer": "checkpoint_container", "GetContainerEvents": "get_container_events",
	"ListMetricDescriptors": "list_metric_descriptors", "ListPodSandboxMetrics": "list_podsandbox_metrics", "RuntimeConfig": "runtime_config",
}

// Interceptor counts the calls of a connection to the runtime.
func (e *Events) Interceptor() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		start := time.Now()
		err := invoke(ctx, method, req, reply, cc, opts...)
		e.called(path.Base(method), req, time.Since(start), err)
		return err
	}
}

func (e *Events) called(call string, req any, took time.Duration, err error) {
	op, known := operation[call]
	if !known {
		return
	}
	e.operations.WithLabelValues(op).Inc()
	e.operationDuration.WithLabelValues(op).Observe(took.Seconds())
	failed := err != nil && status.Code(err) != codes.Canceled
	if failed {
		e.operationErrors.WithLabelValues(op).Inc()
	}
	r, isRun := req.(*runtimeapi.RunPodSandboxRequest)
	if !isRun {
		return
	}
	e.sandboxDuration.WithLabelValues(r.GetRuntimeHandler()).Observe(took.Seconds())
	e.podsStarted.Inc()
	if users := r.GetConfig().GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions(); users != nil && users.Mode == runtimeapi.NamespaceMode_POD {
		e.userNamespaces.Inc()
	}
	if failed {
		e.sandboxErrors.WithLabelValues(r.GetRuntimeHandler()).Inc()
		e.podsStartErrors.Inc()
	}
}

// Probed tells the outcome of a probe: kind is "Liveness", "Readiness" or
// "Startup", result "successful", "failed" or "unknown".
func (e *Events) Probed(pod *v1.Pod, container, kind, result string, took time.Duration) {
	e.probes.WithLabelValues(kind, result, container, pod.Name, pod.Namespace, string(pod.UID)).Inc()
	if result == "successful" {
		e.probeDuration.WithLabelValues(kind, container, pod.Name, pod.Namespace).Observe(took.Seconds())
	}
}

// Forget drops what is counted of a pod by its name, once it is gone.
func (e *Events) Forget(pod *v1.Pod) {
	e.probes.DeletePartialMatch(prometheus.Labels{"pod_uid": string(pod.UID)})
	e.probeDuration.DeletePartialMatch(prometheus.Labels{"namespace": pod.Namespace, "pod": pod.Name})
}

// Serving counts a request to the kubelet API until done is called.
func (e *Events) Serving(method, path, server string, longRunning bool) (done func()) {
	labels := []string{method, path, server, strconv.FormatBool(longRunning)}
	start := time.Now()
	e.requests.WithLabelValues(labels...).Inc()
	e.requestsNow.WithLabelValues(labels...).Inc()
	return func() {
		e.requestsNow.WithLabelValues(labels...).Dec()
		e.requestDuration.WithLabelValues(labels...).Observe(time.Since(start).Seconds())
	}
}

// WebSocket counts a streaming request that came by WebSocket.
func (e *Events) WebSocket(subresource string) { e.webSockets.WithLabelValues(subresource).Inc() }

// Checked tells the outcome of a health check.
func (e *Events) Checked(name string, healthy bool) {
	now, word := 0.0, "error"
	if healthy {
		now, word = 1, "success"
	}
	e.health.WithLabelValues(name, "healthz").Set(now)
	e.healthTotal.WithLabelValues(name, "healthz", word).Inc()
}
