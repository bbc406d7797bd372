package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

// nodeCounts are told of what happens to the node and to what it has.
type nodeCounts struct {
	evictions, preemptions, rejections, images *prometheus.CounterVec
	evictionStatsAge                           *prometheus.HistogramVec
	devicePlugins                              *prometheus.CounterVec
	deviceAllocation                           *prometheus.HistogramVec
	cpuRequests, cpuErrors                     prometheus.Counter
	memoryRequests, memoryErrors               prometheus.Counter
	topologyRequests, topologyErrors           prometheus.Counter
	topologyDuration                           prometheus.Histogram
	bounded, unbounded                         *prometheus.CounterVec
	memoryMin, memoryLow                       *prometheus.GaugeVec // without labels: there is none before it is set
	cgroups                                    *prometheus.HistogramVec
	podResources                               map[string]*prometheus.CounterVec
	serverRenewErrors, clientRenewErrors       prometheus.Counter
	serverRotation                             prometheus.Histogram
	startup                                    startup
}

func (e *Events) newNode() {
	n := &e.node
	n.evictions = e.counters("evictions", "Cumulative number of pod evictions by eviction signal", "eviction_signal")
	n.evictionStatsAge = e.histograms("eviction_stats_age_seconds", "Time between when stats are collected, and when pod is evicted based on those stats by eviction signal", prometheus.DefBuckets, "eviction_signal")
	n.preemptions = e.counters("preemptions", "Cumulative number of pod preemptions by preemption resource", "preemption_signal")
	n.rejections = e.counters("admission_rejections_total", "Cumulative number pod admission rejections by the Kubelet.", "reason")
	n.images = e.counters("image_garbage_collected_total", "Total number of images garbage collected by the kubelet, whether through disk usage or image age.", "reason")
	n.devicePlugins = e.counters("device_plugin_registration_total", "Cumulative number of device plugin registrations. Broken down by resource name.", "resource_name")
	n.deviceAllocation = e.histograms("device_plugin_alloc_duration_seconds", "Duration in seconds to serve a device plugin Allocation request. Broken down by resource name.", prometheus.DefBuckets, "resource_name")
	n.cpuRequests = e.counter("cpu_manager_pinning_requests_total", "The number of cpu core allocations which required pinning.")
	n.cpuErrors = e.counter("cpu_manager_pinning_errors_total", "The number of cpu core allocations which required pinning failed.")
	n.memoryRequests = e.counter("memory_manager_pinning_requests_total", "The number of memory pages allocations which required pinning.")
	n.memoryErrors = e.counter("memory_manager_pinning_errors_total", "The number of memory pages allocations which required pinning that failed.")
	n.topologyRequests = e.counter("topology_manager_admission_requests_total", "The number of admission requests where resources have to be aligned.")
	n.topologyErrors = e.counter("topology_manager_admission_errors_total", "The number of admission request failures where resources could not be aligned.")
	n.topologyDuration = e.histogram("topology_manager_admission_duration_ms", "Duration in milliseconds to serve a pod admission request.", prometheus.ExponentialBuckets(.05, 2, 15))
	n.bounded = e.counters("container_aligned_compute_resources_count", "Cumulative number of aligned compute resources allocated to containers by alignment type.", "scope", "boundary")
	n.unbounded = e.counters("container_aligned_compute_resources_failure_count", "Cumulative number of failures to allocate aligned compute resources to containers by alignment type.", "scope", "boundary")
	n.memoryMin = e.lateGauge("memory_qos_node_memory_min_bytes", "Total cgroup v2 memory.min in bytes for Guaranteed pods. This memory is hard-reserved and never reclaimed by the kernel.")
	n.memoryLow = e.lateGauge("memory_qos_node_memory_low_bytes", "Total cgroup v2 memory.low in bytes for Burstable pods. This memory is soft-reserved and may be reclaimed under extreme pressure.")
	n.cgroups = e.histograms("cgroup_manager_duration_seconds", "Duration in seconds for cgroup manager operations. Broken down by method.", prometheus.DefBuckets, "operation_type")
	n.podResources = map[string]*prometheus.CounterVec{}
	for name, help := range map[string]string{
		"requests_total": "Cumulative number of requests to the PodResource endpoint. Broken down by server api version.",
		"requests_list":  "Number of requests to the PodResource List endpoint. Broken down by server api version.",
		"requests_get":   "Number of requests to the PodResource Get endpoint. Broken down by server api version.",
		"errors_get":     "Number of requests to the PodResource Get endpoint which returned error. Broken down by server api version.",

		"requests_get_allocatable": "Number of requests to the PodResource GetAllocatableResources endpoint. Broken down by server api version.",
	} {
		n.podResources[name] = e.counters("pod_resources_endpoint_"+name, help, "server_api_version")
	}
	n.serverRenewErrors = e.counter("server_expiration_renew_errors", "Counter of certificate renewal errors.")
	n.clientRenewErrors = e.counter("certificate_manager_client_expiration_renew_errors", "Counter of certificate renewal errors.")
	n.serverRotation = e.histogram("certificate_manager_server_rotation_seconds", "Histogram of the number of seconds the previous certificate lived before being rotated.", rotationBuckets)
	n.startup.began = time.Now()
	n.startup.preKubelet = e.gauge("node_startup_pre_kubelet_duration_seconds", "Duration in seconds of node startup before kubelet starts.")
	n.startup.preRegistration = e.gauge("node_startup_pre_registration_duration_seconds", "Duration in seconds of node startup before registration.")
	n.startup.registration = e.gauge("node_startup_registration_duration_seconds", "Duration in seconds of node startup during registration.")
	n.startup.postRegistration = e.gauge("node_startup_post_registration_duration_seconds", "Duration in seconds of node startup after registration.")
	n.startup.total = e.gauge("node_startup_duration_seconds", "Duration in seconds of node startup in total.")
}

// Evicted counts a pod that was ended for a signal of eviction.
func (e *Events) Evicted(signal string) { e.node.evictions.WithLabelValues(signal).Inc() }

// EvictionMeasured counts how old the numbers are by which a pod is evicted.
func (e *Events) EvictionMeasured(signal string, age time.Duration) {
	e.node.evictionStatsAge.WithLabelValues(signal).Observe(age.Seconds())
}

// Preempted counts a pod that ends to make room for a critical one, which wants
// that resource.
func (e *Events) Preempted(resource string) { e.node.preemptions.WithLabelValues(resource).Inc() }

// Rejected counts a pod that was not admitted.
func (e *Events) Rejected(reason string) { e.node.rejections.WithLabelValues(reason).Inc() }

// ImageCollected counts an image that nobody used: reason is "age" or "space".
func (e *Events) ImageCollected(reason string) { e.node.images.WithLabelValues(reason).Inc() }

// DevicePluginRegistered counts a device plugin that asks to be one.
func (e *Events) DevicePluginRegistered(resource string) {
	e.node.devicePlugins.WithLabelValues(resource).Inc()
}

// DevicesAllocated counts a device plugin's answer.
func (e *Events) DevicesAllocated(resource string, took time.Duration) {
	e.node.deviceAllocation.WithLabelValues(resource).Observe(took.Seconds())
}

// Aligned counts a pod for which resources were looked for on the same NUMA
// nodes; failed: there are none.
func (e *Events) Aligned(took time.Duration, failed bool) {
	e.node.topologyRequests.Inc()
	e.node.topologyDuration.Observe(float64(took.Milliseconds()))
	if failed {
		e.node.topologyErrors.Inc()
	}
}

// MemoryProtected tells how much memory of guaranteed and of burstable pods is
// protected, in bytes.
func (e *Events) MemoryProtected(guaranteed, burstable int64) {
	e.node.memoryMin.WithLabelValues().Set(float64(guaranteed))
	e.node.memoryLow.WithLabelValues().Set(float64(burstable))
}

// Bounded counts a container or a pod, which is the scope, that was to have all
// of something within a boundary, and whether it has.
func (e *Events) Bounded(scope, boundary string, has bool) {
	counted := e.node.bounded
	if !has {
		counted = e.node.unbounded
	}
	counted.WithLabelValues(scope, boundary).Inc()
}

// CPUsPinned counts a container that is to have CPUs to itself.
func (e *Events) CPUsPinned(err error) { pinned(e.node.cpuRequests, e.node.cpuErrors, err) }

// MemoryPinned counts a container that is to have memory of NUMA nodes to itself.
func (e *Events) MemoryPinned(err error) { pinned(e.node.memoryRequests, e.node.memoryErrors, err) }

func pinned(requests, errors prometheus.Counter, err error) {
	requests.Inc()
	if err != nil {
		errors.Inc()
	}
}

// CgroupChanged counts what was done to a pod's cgroup: "create", "update" or
// "destroy".
func (e *Events) CgroupChanged(operation string, took time.Duration) {
	e.node.cgroups.WithLabelValues(operation).Observe(took.Seconds())
}

// PodResourcesAsked counts a call of the PodResources API, version 1.
func (e *Events) PodResourcesAsked(method string, err error) {
	const version = "v1"
	e.node.podResources["requests_total"].WithLabelValues(version).Inc()
	switch method {
	case "List":
		e.node.podResources["requests_list"].WithLabelValues(version).Inc()
	case "GetAllocatableResources":
		e.node.podResources["requests_get_allocatable"].WithLabelValues(version).Inc()
	case "Get":
		e.node.podResources["requests_get"].WithLabelValues(version).Inc()
		if err != nil {
			e.node.podResources["errors_get"].WithLabelValues(version).Inc()
		}
	}
}

const day = 24 * 60 * 60

// rotationBuckets are from a minute to four years, of 360 days.
var rotationBuckets = []float64{60, 3600, 4 * 3600, day, 7 * day, 30 * day, 90 * day, 180 * day, 360 * day, 4 * 360 * day}

// ServerRenewals and ClientRenewals count renewals of certificates that failed,
// ServerRotations how long serving certificates lived, in seconds.
func (e *Events) ServerRenewals() prometheus.Counter    { return e.node.serverRenewErrors }
func (e *Events) ClientRenewals() prometheus.Counter    { return e.node.clientRenewErrors }
func (e *Events) ServerRotations() prometheus.Histogram { return e.node.serverRotation }

// startup are the times at which a new node became one
// (pkg/kubelet/util/node_startup_latency_tracker.go).
type startup struct {
	preKubelet, preRegistration, registration, postRegistration, total prometheus.Gauge

	mu                           sync.Mutex
	began, attempted, registered time.Time
	ready                        bool
}

// NodeRegistering tells that the node is about to be made known to the API server.
func (e *Events) NodeRegistering() {
	s := &e.node.startup
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attempted.IsZero() {
		s.attempted = time.Now()
	}
}

// NodeRegistered tells that the API server has made the node's object. One that
// was there before is no new node.
func (e *Events) NodeRegistered() {
	s := &e.node.startup
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.registered.IsZero() {
		return
	}
	s.registered = time.Now()
	s.preKubelet.Set(s.began.Sub(s.boot()).Seconds())
	s.preRegistration.Set(s.attempted.Sub(s.began).Seconds())
	s.registration.Set(s.registered.Sub(s.attempted).Seconds())
}

// NodeReady tells that the API server has that the node is ready.
func (e *Events) NodeReady() {
	s := &e.node.startup
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready || s.registered.IsZero() {
		return
	}
	s.ready = true
	now := time.Now()
	s.postRegistration.Set(now.Sub(s.registered).Seconds())
	s.total.Set(now.Sub(s.boot()).Seconds())
}

// boot is when the host came up.
func (s *startup) boot() time.Time {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return s.began // it cannot fail with a good pointer
	}
	return time.Now().Add(-time.Duration(info.Uptime) * time.Second)
}
