package metrics

import "github.com/prometheus/client_golang/prometheus"

// workerCounts are told of pods that come in unusual ways.
type workerCounts struct {
	restarted *prometheus.CounterVec
	orphans   prometheus.Counter
}

func (e *Events) newWorkers() {
	e.workers.restarted = e.counters("restarted_pods_total", "Number of pods that have been restarted because they were deleted and recreated with the same UID while the kubelet was watching them (common for static pods, extremely uncommon for API pods)", "static")
	e.workers.orphans = e.counter("orphaned_runtime_pods_total", "Number of pods that have been detected in the container runtime without being already known to the pod worker. This typically indicates the kubelet was restarted while a pod was force deleted in the API or in the local configuration, which is unusual.")
	for _, static := range []string{"true", ""} {
		e.workers.restarted.WithLabelValues(static)
	}
}

// PodRestarted counts a pod that starts anew with its old UID.
func (e *Events) PodRestarted(static bool) {
	label := ""
	if static {
		label = "true"
	}
	e.workers.restarted.WithLabelValues(label).Inc()
}

// OrphanFound counts a pod that only the runtime knew of.
func (e *Events) OrphanFound() { e.workers.orphans.Inc() }

// Working is what a pod's worker is at, in the kubelet's words
// (pkg/kubelet/kubelet_pods.go, HandlePodCleanups).
type Working struct {
	Lifecycle string // sync, terminating, terminated
	// Config is desired; orphan, for a pod that no source wants any more; or
	// runtime_only, for one that none has said anything of.
	Config string
	Static string // true, empty, or unknown for runtime_only
}

var workingPods = desc("kubelet_working_pods",
	"Number of pods the kubelet is actually running, broken down by lifecycle phase, whether the pod is desired, orphaned, or runtime only (also orphaned), and whether the pod is static. "+
		"An orphaned pod has been removed from local configuration or force deleted in the API and consumes resources that are not otherwise visible.",
	"lifecycle", "config", "static")

// workers counts workers at a scrape.
type workers func() map[Working]int

func (workers) Describe(ch chan<- *prometheus.Desc) { ch <- workingPods }

// Collect shows the combinations of which there is none, too.
func (w workers) Collect(ch chan<- prometheus.Metric) {
	counted := w()
	for _, of := range [][2]string{{"desired", "true"}, {"desired", ""}, {"orphan", "true"}, {"orphan", ""}, {"runtime_only", "unknown"}} {
		for _, lifecycle := range []string{"sync", "terminating", "terminated"} {
			ch <- gauge(workingPods, float64(counted[Working{Lifecycle: lifecycle, Config: of[0], Static: of[1]}]), lifecycle, of[0], of[1])
		}
	}
}
