package metrics

import (
	"context"
	"math"
	"path"
	"strconv"
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

// Events is what is told when it happens. Whoever does it may use the exported
// fields; labels are in the comments. All are safe for concurrent use.
type Events struct {
	// Pods, seconds.
	PodStart       prometheus.Histogram     // from when the agent first saw the pod to running
	PodStartSLI    *prometheus.HistogramVec // without images and init containers; no labels
	PodStartTotal  *prometheus.HistogramVec // from the pod's creation; no labels
	PodWorker      *prometheus.HistogramVec // operation_type: create, update, sync
	PodWorkerStart prometheus.Histogram     // from seeing a pod to its worker
	PodStatusSync  prometheus.Histogram     // from a status' change to the API server's having it
	Relist         prometheus.Histogram     // of everything that runs
	RelistInterval prometheus.Histogram
	LastSeen       prometheus.Gauge // when what runs was last heard of, seconds since the epoch

	// Containers.
	ContainersStarted      *prometheus.CounterVec // container_type: container, init_container, ephemeral_container
	ContainersTerminated   *prometheus.CounterVec // container_type, exit_code, reason
	ContainersStartErrors  *prometheus.CounterVec // container_type, code
	ContainersPerPod       prometheus.Histogram
	UserNamespaceErrors    prometheus.Counter       // pods with a user namespace of which something did not start
	ImagePull              *prometheus.HistogramVec // image_size_in_bytes
	EphemeralContainers    prometheus.Gauge         // ephemeral containers of the node's pods
	ResizesRequested       *prometheus.CounterVec   // resource, requirement, operation
	ResizeDuration         *prometheus.HistogramVec // success; milliseconds
	Evictions              *prometheus.CounterVec   // eviction_signal
	EvictionStatsAge       *prometheus.HistogramVec // eviction_signal
	Preemptions            *prometheus.CounterVec   // preemption_signal
	AdmissionRejections    *prometheus.CounterVec   // reason
	ImagesCollected        *prometheus.CounterVec   // reason: age, space
	DevicePlugins          *prometheus.CounterVec   // resource_name
	DeviceAllocation       *prometheus.HistogramVec // resource_name
	CPUPinningRequests     prometheus.Counter
	CPUPinningErrors       prometheus.Counter
	TopologyRequests       prometheus.Counter
	TopologyErrors         prometheus.Counter
	CertificateRenewErrors prometheus.Counter // of the serving certificate

	// Probes of containers; see Probed.
	Probes        *prometheus.CounterVec   // probe_type, result, container, pod, namespace, pod_uid
	ProbeDuration *prometheus.HistogramVec // probe_type, container, pod, namespace

	operations, operationErrors, sandboxErrors *prometheus.CounterVec
	operationDuration, sandboxDuration         *prometheus.HistogramVec
	podsStarted, podsStartErrors               prometheus.Counter
	userNamespaces                             prometheus.Counter
	requests                                   *prometheus.CounterVec
	requestDuration                            *prometheus.HistogramVec
	requestsNow                                *prometheus.GaugeVec
	webSockets                                 *prometheus.CounterVec
	health                                     *prometheus.GaugeVec
	healthTotal                                *prometheus.CounterVec
	all                                        []prometheus.Collector
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
	e.pods()
	e.resources()
	e.runtime()
	e.server()
	e.Probes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Subsystem: "prober", Name: "probe_total", Help: "Cumulative number of a liveness, readiness or startup probe for a container by result.",
	}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"})
	e.ProbeDuration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Subsystem: "prober", Name: "probe_duration_seconds", Help: "Duration in seconds for a probe response.",
	}, []string{"probe_type", "container", "pod", "namespace"})
	return e
}

func (e *Events) pods() {
	e.PodStart = e.histogram("pod_start_duration_seconds", "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run", podStartBuckets)
	e.PodStartSLI = e.histograms("pod_start_sli_duration_seconds", "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", podStartBuckets)
	e.PodStartTotal = e.histograms("pod_start_total_duration_seconds", "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", podStartBuckets)
	e.PodWorker = e.histograms("pod_worker_duration_seconds", "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync", prometheus.DefBuckets, "operation_type")
	e.PodWorkerStart = e.histogram("pod_worker_start_duration_seconds", "Duration in seconds from kubelet seeing a pod to starting a worker.", prometheus.DefBuckets)
	e.PodStatusSync = e.histogram("pod_status_sync_duration_seconds", "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.", []float64{0.010, 0.050, 0.100, 0.500, 1, 5, 10, 20, 30, 45, 60})
	e.Relist = e.histogram("pleg_relist_duration_seconds", "Duration in seconds for relisting pods in PLEG.", prometheus.DefBuckets)
	e.RelistInterval = e.histogram("pleg_relist_interval_seconds", "Interval in seconds between relisting in PLEG.", prometheus.DefBuckets)
	e.LastSeen = e.gauge("pleg_last_seen_seconds", "Timestamp in seconds when PLEG was last seen active.")
	e.ContainersPerPod = e.histogram("containers_per_pod_count", "The number of containers per pod.", prometheus.ExponentialBuckets(1, 2, 5))
	e.ContainersStarted = e.counters("started_containers_total", "Cumulative number of containers started", "container_type")
	e.ContainersTerminated = e.counters("terminated_containers_total", "Cumulative number of container terminations.", "container_type", "exit_code", "reason")
	e.ContainersStartErrors = e.counters("started_containers_errors_total", "Cumulative number of errors when starting containers", "container_type", "code")
	e.ImagePull = e.histograms("image_pull_duration_seconds", "Duration in seconds to pull an image.", []float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}, "image_size_in_bytes")
	e.EphemeralContainers = e.gauge("managed_ephemeral_containers", "Current number of ephemeral containers in pods managed by this kubelet.")
	e.ResizesRequested = e.counters("container_requested_resizes_total", "Number of requested resizes, counted at the container level. Different resources on the same container are counted separately. The 'requirement' label refers to 'memory' or 'limits'; the 'operation' label can be one of 'add', 'remove', 'increase' or 'decrease'.", "resource", "requirement", "operation")
	e.ResizeDuration = e.histograms("pod_resize_duration_milliseconds", "Duration in milliseconds to actuate a pod resize", []float64{10, 50, 100, 500, 1000, 2000, 5000, 10000, 20000, 30000, 60000, 120000, 300000, 600000}, "success")
}

func (e *Events) resources() {
	e.Evictions = e.counters("evictions", "Cumulative number of pod evictions by eviction signal", "eviction_signal")
	e.EvictionStatsAge = e.histograms("eviction_stats_age_seconds", "Time between when stats are collected, and when pod is evicted based on those stats by eviction signal", prometheus.DefBuckets, "eviction_signal")
	e.Preemptions = e.counters("preemptions", "Cumulative number of pod preemptions by preemption resource", "preemption_signal")
	e.AdmissionRejections = e.counters("admission_rejections_total", "Cumulative number pod admission rejections by the Kubelet.", "reason")
	e.ImagesCollected = e.counters("image_garbage_collected_total", "Total number of images garbage collected by the kubelet, whether through disk usage or image age.", "reason")
	e.DevicePlugins = e.counters("device_plugin_registration_total", "Cumulative number of device plugin registrations. Broken down by resource name.", "resource_name")
	e.DeviceAllocation = e.histograms("device_plugin_alloc_duration_seconds", "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.", prometheus.DefBuckets, "resource_name")
	e.CPUPinningRequests = e.counter("cpu_manager_pinning_requests_total", "The number of cpu core allocations which required pinning.")
	e.CPUPinningErrors = e.counter("cpu_manager_pinning_errors_total", "The number of cpu core allocations which required pinning failed.")
	e.TopologyRequests = e.counter("topology_manager_admission_requests_total", "The number of admission requests where resources have to be aligned.")
	e.TopologyErrors = e.counter("topology_manager_admission_errors_total", "The number of admission request failures where resources could not be aligned.")
	e.CertificateRenewErrors = e.counter("server_expiration_renew_errors", "Counter of certificate renewal errors.")
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
	e.UserNamespaceErrors = e.counter("started_user_namespaced_pods_errors_total", "Cumulative number of errors when starting pods with user namespaces. This metric will only be collected on Linux.")
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
	e.Probes.WithLabelValues(kind, result, container, pod.Name, pod.Namespace, string(pod.UID)).Inc()
	if result == "successful" {
		e.ProbeDuration.WithLabelValues(kind, container, pod.Name, pod.Namespace).Observe(took.Seconds())
	}
}

// Forget drops what is counted of a pod by its name, once it is gone.
func (e *Events) Forget(pod *v1.Pod) {
	e.Probes.DeletePartialMatch(prometheus.Labels{"pod_uid": string(pod.UID)})
	e.ProbeDuration.DeletePartialMatch(prometheus.Labels{"namespace": pod.Namespace, "pod": pod.Name})
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
