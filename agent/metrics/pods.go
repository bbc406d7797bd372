package metrics

import (
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// The values of the label container_type.
const (
	appContainer       = "container"
	initContainer      = "init_container"
	ephemeralContainer = "ephemeral_container"
)

// podCounts are told of what becomes of pods.
type podCounts struct {
	start, workerStart, statusSync, containersPerPod prometheus.Histogram
	startSLI, startTotal, worker, resizeDuration     *prometheus.HistogramVec
	firstNetworkSLI                                  prometheus.Gauge
	started, startErrors, terminated                 *prometheus.CounterVec
	resizes, infeasible, accepted                    *prometheus.CounterVec
	imagePull                                        *prometheus.HistogramVec
	volumes, volumesMounted, volumesFailed           prometheus.Counter
	httpFallbacks, sleepsCut                         prometheus.Counter
}

func (e *Events) newPods() {
	e.pods.start = e.histogram("pod_start_duration_seconds", "Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run", podStartBuckets)
	e.pods.startSLI = e.histograms("pod_start_sli_duration_seconds", "Duration in seconds to start a pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", podStartBuckets)
	e.pods.startTotal = e.histograms("pod_start_total_duration_seconds", "Duration in seconds to start a pod since creation, including time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch", podStartBuckets)
	e.pods.firstNetworkSLI = e.gauge("first_network_pod_start_sli_duration_seconds", "Duration in seconds to start the first network pod, excluding time to pull images and run init containers, measured from pod creation timestamp to when all its containers are reported as started and observed via watch")
	e.pods.worker = e.histograms("pod_worker_duration_seconds", "Duration in seconds to sync a single pod. Broken down by operation type: create, update, or sync", prometheus.DefBuckets, "operation_type")
	e.pods.workerStart = e.histogram("pod_worker_start_duration_seconds", "Duration in seconds from kubelet seeing a pod to starting a worker.", prometheus.DefBuckets)
	e.pods.statusSync = e.histogram("pod_status_sync_duration_seconds", "Duration in seconds to sync a pod status update. Measures time from detection of a change to pod status until the API is successfully updated for that pod, even if multiple intevening changes to pod status occur.", []float64{0.010, 0.050, 0.100, 0.500, 1, 5, 10, 20, 30, 45, 60})
	e.pods.containersPerPod = e.histogram("containers_per_pod_count", "The number of containers per pod.", prometheus.ExponentialBuckets(1, 2, 5))
	e.pods.started = e.counters("started_containers_total", "Cumulative number of containers started", "container_type")
	e.pods.startErrors = e.counters("started_containers_errors_total", "Cumulative number of errors when starting containers", "container_type", "code")
	e.pods.terminated = e.counters("terminated_containers_total", "Cumulative number of container terminations.", "container_type", "exit_code", "reason")
	e.pods.imagePull = e.histograms("image_pull_duration_seconds", "Duration in seconds to pull an image.", []float64{1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600}, "image_size_in_bytes")
	e.pods.volumes = e.counter("image_volume_requested_total", "Number of requested image volumes.")
	e.pods.volumesMounted = e.counter("image_volume_mounted_succeed_total", "Number of successful image volume mounts.")
	e.pods.volumesFailed = e.counter("image_volume_mounted_errors_total", "Number of failed image volume mounts.")
	e.pods.resizes = e.counters("container_requested_resizes_total", "Number of requested resizes, counted at the container level. Different resources on the same container are counted separately. The 'requirement' label refers to 'memory' or 'limits'; the 'operation' label can be one of 'add', 'remove', 'increase' or 'decrease'.", "resource", "requirement", "operation")
	e.pods.resizeDuration = e.histograms("pod_resize_duration_milliseconds", "Duration in milliseconds to actuate a pod resize", []float64{10, 50, 100, 500, 1000, 2000, 5000, 10000, 20000, 30000, 60000, 120000, 300000, 600000}, "success")
	e.pods.infeasible = e.counters("pod_infeasible_resizes_total", "Number of infeasible resizes for pods.", "reason_detail")
	e.pods.accepted = e.counters("pod_deferred_accepted_resizes_total", "Cumulative number of resizes that were accepted after being deferred.", "retry_trigger")
	e.pods.httpFallbacks = e.counter("lifecycle_handler_http_fallbacks_total", "The number of times lifecycle handlers successfully fell back to http from https.")
	e.pods.sleepsCut = e.counter("sleep_action_terminated_early_total", "The number of times lifecycle sleep handler got terminated before it finishes")
}

// PodBegun counts a pod that has got its worker, of which its source told at seen.
func (e *Events) PodBegun(pod *v1.Pod, seen time.Time) {
	e.pods.workerStart.Observe(time.Since(seen).Seconds())
	e.pods.containersPerPod.Observe(float64(len(pod.Spec.Containers)))
}

// PodChanged counts what a pod's new status says that the one before did not.
// Seen is when the pod's source told of it first; zero: before this agent.
func (e *Events) PodChanged(before, after *v1.Pod, seen time.Time) {
	if before.Status.Phase == v1.PodPending && after.Status.Phase == v1.PodRunning && !seen.IsZero() {
		e.pods.start.Observe(time.Since(seen).Seconds())
	}
}

// ContainerEnded counts a container that has ended: kind is "container",
// "init_container" or "ephemeral_container".
func (e *Events) ContainerEnded(kind string, how *v1.ContainerStateTerminated) {
	e.pods.terminated.WithLabelValues(kind, strconv.Itoa(int(how.ExitCode)), how.Reason).Inc()
}

// PodNotStarted counts a pod of which something could not be started.
func (e *Events) PodNotStarted(pod *v1.Pod) {
	if users := pod.Spec.HostUsers; users != nil && !*users {
		e.userNamespaceErrors.Inc()
	}
}

// PodSynced counts what a worker did in a row: operation is "create", "update",
// "sync" or "terminated".
func (e *Events) PodSynced(operation string, took time.Duration) {
	e.pods.worker.WithLabelValues(operation).Observe(took.Seconds())
}

// ContainerStarted counts an attempt to start a container of a pod, by name.
// Code is the reason why it could not be started; empty: it was.
func (e *Events) ContainerStarted(pod *v1.Pod, container, code string) {
	kind := appContainer
	switch {
	case slices.ContainsFunc(pod.Spec.InitContainers, func(c v1.Container) bool { return c.Name == container }):
		kind = initContainer
	case slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c v1.EphemeralContainer) bool { return c.Name == container }):
		kind = ephemeralContainer
	}
	e.pods.started.WithLabelValues(kind).Inc()
	if code != "" {
		e.pods.startErrors.WithLabelValues(kind, code).Inc()
	}
}

// StatusWritten counts a status that the API server has, took after it was made.
func (e *Events) StatusWritten(took time.Duration) {
	e.pods.statusSync.Observe(took.Truncate(time.Millisecond).Seconds())
}

// PodStarted counts a pod of which the API server has, for the first time, that
// all its containers run; pulled is how long its images were pulled
// (pkg/kubelet/util/pod_startup_latency_tracker.go).
func (e *Events) PodStarted(pod *v1.Pod, pulled time.Duration) {
	total := time.Since(pod.CreationTimestamp.Time)
	e.pods.startTotal.WithLabelValues().Observe(total.Seconds())
	if stateful(pod) {
		return
	}
	sli := total - pulled - initializing(pod)
	e.pods.startSLI.WithLabelValues().Observe(sli.Seconds())
	if !pod.Spec.HostNetwork {
		e.firstNetworkPod.Do(func() { e.pods.firstNetworkSLI.Set(sli.Seconds()) })
	}
}

// initializing is how long init containers ran that have ended.
func initializing(pod *v1.Pod) (sum time.Duration) {
	for i := range pod.Status.InitContainerStatuses {
		if end := pod.Status.InitContainerStatuses[i].State.Terminated; end != nil {
			sum += max(0, end.FinishedAt.Sub(end.StartedAt.Time))
		}
	}
	return sum
}

// stateful pods are no part of the service level: what their volumes need is not
// the node's to say.
func stateful(pod *v1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool {
		return v.Secret == nil && v.ConfigMap == nil && v.DownwardAPI == nil && v.EmptyDir == nil && v.Projected == nil
	})
}

// ImagePulled counts a pull of an image of that size.
func (e *Events) ImagePulled(took time.Duration, bytes uint64) {
	e.pods.imagePull.WithLabelValues(sizeLabel(bytes)).Observe(took.Seconds())
}

// sizeLabel is the kubelet's GetImageSizeBucket: each label holds from more than
// its bound on.
func sizeLabel(bytes uint64) string {
	label := "N/A"
	for _, size := range []struct {
		mib   uint64
		label string
	}{
		{0, "0-10MB"}, {10, "10MB-100MB"}, {100, "100MB-500MB"}, {500, "500MB-1GB"}, {1 << 10, "1GB-5GB"}, {5 << 10, "5GB-10GB"}, {10 << 10, "10GB-20GB"},
		{20 << 10, "20GB-30GB"}, {30 << 10, "30GB-40GB"}, {40 << 10, "40GB-60GB"}, {60 << 10, "60GB-100GB"}, {100 << 10, "GT100GB"},
	} {
		if bytes > size.mib<<20 {
			label = size.label
		}
	}
	return label
}

// ImageVolumes counts the images that a container has as volumes, once it was
// tried to create it.
func (e *Events) ImageVolumes(n int, mounted bool) {
	e.pods.volumes.Add(float64(n))
	if mounted {
		e.pods.volumesMounted.Add(float64(n))
	} else {
		e.pods.volumesFailed.Add(float64(n))
	}
}

// ResizeRequested counts what a pod's source wants of its containers that it did
// not want before (pkg/kubelet/kubelet.go, recordContainerResizeOperations).
func (e *Events) ResizeRequested(before, after *v1.Pod) {
	for _, lists := range [][2][]v1.Container{{before.Spec.InitContainers, after.Spec.InitContainers}, {before.Spec.Containers, after.Spec.Containers}} {
		for i := range lists[0] {
			old := &lists[0][i]
			at := slices.IndexFunc(lists[1], func(c v1.Container) bool { return c.Name == old.Name })
			if at < 0 {
				continue
			}
			next := &lists[1][at]
			for _, of := range []struct {
				resource, requirement string
				before, after         *resource.Quantity
			}{
				{"memory", "requests", old.Resources.Requests.Memory(), next.Resources.Requests.Memory()},
				{"memory", "limits", old.Resources.Limits.Memory(), next.Resources.Limits.Memory()},
				{"cpu", "requests", old.Resources.Requests.Cpu(), next.Resources.Requests.Cpu()},
				{"cpu", "limits", old.Resources.Limits.Cpu(), next.Resources.Limits.Cpu()},
			} {
				if operation := change(of.before, of.after); operation != "" {
					e.pods.resizes.WithLabelValues(of.resource, of.requirement, operation).Inc()
				}
			}
		}
	}
}

func change(before, after *resource.Quantity) string {
	switch {
	case before.Equal(*after):
		return ""
	case before.IsZero():
		return "add"
	case after.IsZero():
		return "remove"
	case after.Cmp(*before) > 0:
		return "increase"
	}
	return "decrease"
}

// PodResized counts what was done to give a pod's containers what they were
// allocated.
func (e *Events) PodResized(took time.Duration, success bool) {
	e.pods.resizeDuration.WithLabelValues(strconv.FormatBool(success)).Observe(float64(took.Milliseconds()))
}

// ResizeInfeasible counts a resize that cannot be.
func (e *Events) ResizeInfeasible(reason string) { e.pods.infeasible.WithLabelValues(reason).Inc() }

// ResizeAccepted counts a resize that waited, and what made the node look again.
func (e *Events) ResizeAccepted(trigger string) { e.pods.accepted.WithLabelValues(trigger).Inc() }

// HTTPFallback counts a lifecycle handler for HTTPS that was answered with HTTP.
func (e *Events) HTTPFallback() { e.pods.httpFallbacks.Inc() }

// SleepCut counts a sleep that its container did not live to see the end of.
func (e *Events) SleepCut() { e.pods.sleepsCut.Inc() }
