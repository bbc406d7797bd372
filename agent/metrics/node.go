package metrics

import (
	"context"
	"log/slog"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	runningPods       = desc("kubelet_running_pods", "Number of pods that have a running pod sandbox")
	runningContainers = desc("kubelet_running_containers", "Number of containers currently running", "container_state")
	desiredPods       = desc("kubelet_desired_pods", "The number of pods the kubelet is being instructed to run. static is true if the pod is not from the apiserver.", "static")
	activePods        = desc("kubelet_active_pods", "The number of pods the kubelet considers active and which are being considered when admitting new pods. static is true if the pod is not from the apiserver.", "static")
	mirrorPods        = desc("kubelet_mirror_pods", "The number of mirror pods the kubelet will try to create (one per admitted static pod)")
	ephemerals        = desc("kubelet_managed_ephemeral_containers", "Current number of ephemeral containers in pods managed by this kubelet.")
	pendingResizes    = desc("kubelet_pod_pending_resizes", "Number of pending resizes for pods.", "reason")
	resizesNow        = desc("kubelet_pod_in_progress_resizes", "Number of in-progress resizes for pods.")
	sharedCPUs        = desc("kubelet_cpu_manager_shared_pool_size_millicores", "The size of the shared CPU pool for non-guaranteed QoS pods, in millicores.")
	exclusiveCPUs     = desc("kubelet_cpu_manager_exclusive_cpu_allocation_count", "The total number of CPUs exclusively allocated to containers running on this node")
	nodeCPUs          = desc("kubelet_cpu_manager_allocation_per_numa", "Number of CPUs allocated per NUMA node", "numa_node")
	logBytes          = desc("kubelet_container_log_filesystem_used_bytes", "Bytes used by the container's logs on the filesystem.", "uid", "namespace", "pod", "container")
)

// volumeNumbers are the metrics of claims.
var volumeNumbers = []struct {
	desc *prometheus.Desc
	of   func(statsapi.VolumeStats) *uint64
}{
	{claim("capacity_bytes", "Capacity in bytes of the volume"), func(v statsapi.VolumeStats) *uint64 { return v.CapacityBytes }},
	{claim("available_bytes", "Number of available bytes in the volume"), func(v statsapi.VolumeStats) *uint64 { return v.AvailableBytes }},
	{claim("used_bytes", "Number of used bytes in the volume"), func(v statsapi.VolumeStats) *uint64 { return v.UsedBytes }},
	{claim("inodes", "Maximum number of inodes in the volume"), func(v statsapi.VolumeStats) *uint64 { return v.Inodes }},
	{claim("inodes_free", "Number of free inodes in the volume"), func(v statsapi.VolumeStats) *uint64 { return v.InodesFree }},
	{claim("inodes_used", "Number of used inodes in the volume"), func(v statsapi.VolumeStats) *uint64 { return v.InodesUsed }},
}

var volumeHealth = claim("health_status_abnormal", "Abnormal volume health status. The count is either 1 or 0. 1 indicates the volume is unhealthy, 0 indicates volume is healthy")

func claim(name, help string) *prometheus.Desc {
	return desc("kubelet_volume_stats_"+name, help, "namespace", "persistentvolumeclaim")
}

// node counts pods, containers and volumes at a scrape.
type node struct {
	runtime Runtime
	stats   Stats
	pods    Pods
	cpus    func() (shared, exclusive int)
	// cpusByNode may be nil as well.
	cpusByNode func() map[int]int
	log        *slog.Logger
}

// Describe names all metrics.
func (n *node) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{runningPods, runningContainers, desiredPods, activePods, mirrorPods, ephemerals, pendingResizes, resizesNow, sharedCPUs, exclusiveCPUs, nodeCPUs, logBytes, volumeHealth} {
		ch <- d
	}
	for _, v := range volumeNumbers {
		ch <- v.desc
	}
}

// Collect leaves out what cannot be had: a scrape of the rest is worth more.
func (n *node) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	n.wanted(ch)
	n.conditions(ch)
	n.running(ctx, ch)
	shared, exclusive := 0, 0
	if n.cpus != nil {
		shared, exclusive = n.cpus()
	}
	ch <- gauge(sharedCPUs, float64(1000*shared))
	ch <- gauge(exclusiveCPUs, float64(exclusive))
	if n.cpusByNode != nil {
		for node, taken := range n.cpusByNode() {
			ch <- gauge(nodeCPUs, float64(taken), strconv.Itoa(node))
		}
	}
	summary, err := n.stats.Summary(ctx)
	if err != nil {
		n.log.Warn("volumes and logs are not in the metrics", "err", err)
		return
	}
	seen := map[statsapi.PVCReference]bool{}
	for _, pod := range summary.Pods {
		for _, c := range pod.Containers {
			if c.Logs != nil && c.Logs.UsedBytes != nil {
				ch <- gauge(logBytes, float64(*c.Logs.UsedBytes), pod.PodRef.UID, pod.PodRef.Namespace, pod.PodRef.Name, c.Name)
			}
		}
		for _, v := range pod.VolumeStats {
			if v.PVCRef == nil || seen[*v.PVCRef] {
				continue
			}
			seen[*v.PVCRef] = true
			volume(ch, v)
		}
	}
}

func volume(ch chan<- prometheus.Metric, v statsapi.VolumeStats) {
	for _, number := range volumeNumbers {
		if n := number.of(v); n != nil {
			ch <- gauge(number.desc, float64(*n), v.PVCRef.Namespace, v.PVCRef.Name)
		}
	}
	if v.VolumeHealthStats != nil {
		abnormal := 0.0
		if v.VolumeHealthStats.Abnormal {
			abnormal = 1
		}
		ch <- gauge(volumeHealth, abnormal, v.PVCRef.Namespace, v.PVCRef.Name)
	}
}

// wanted counts what sources say. The annotation is the kubelet's
// kubetypes.ConfigSourceAnnotationKey.
func (n *node) wanted(ch chan<- prometheus.Metric) {
	desired, active := map[bool]int{}, map[bool]int{}
	mirrors := 0
	for _, pod := range n.pods.Pods() {
		source := pod.Annotations["kubernetes.io/config.source"]
		static := source != "" && source != "api"
		desired[static]++
		if pod.Status.Phase != v1.PodSucceeded && pod.Status.Phase != v1.PodFailed {
			active[static]++
		}
		if static {
			mirrors++
		}
	}
	for _, static := range []bool{false, true} {
		ch <- gauge(desiredPods, float64(desired[static]), label(static))
		ch <- gauge(activePods, float64(active[static]), label(static))
	}
	ch <- gauge(mirrorPods, float64(mirrors))
}

// conditions counts what pods say of themselves.
func (n *node) conditions(ch chan<- prometheus.Metric) {
	pending, inProgress, ephemeral := map[string]int{}, 0, 0
	for _, pod := range n.pods.Pods() {
		ephemeral += len(pod.Spec.EphemeralContainers)
		for i := range pod.Status.Conditions {
			switch c := &pod.Status.Conditions[i]; c.Type {
			case v1.PodResizePending:
				pending[strings.ToLower(c.Reason)]++
			case v1.PodResizeInProgress:
				inProgress++
			}
		}
	}
	for reason, count := range pending {
		ch <- gauge(pendingResizes, float64(count), reason)
	}
	ch <- gauge(resizesNow, float64(inProgress))
	ch <- gauge(ephemerals, float64(ephemeral))
}

// label writes a truth as the kubelet does: empty is false.
func label(b bool) string {
	if b {
		return "true"
	}
	return ""
}

// running counts what the runtime has.
func (n *node) running(ctx context.Context, ch chan<- prometheus.Metric) {
	sandboxes, err := n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.log.Warn("running pods are not in the metrics", "err", err)
		return
	}
	pods := map[string]bool{}
	for _, s := range sandboxes.GetItems() {
		if s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY {
			pods[s.GetMetadata().GetUid()] = true
		}
	}
	ch <- gauge(runningPods, float64(len(pods)))
	containers, err := n.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		n.log.Warn("running containers are not in the metrics", "err", err)
		return
	}
	states := map[string]int{}
	for _, c := range containers.GetContainers() {
		states[state[c.GetState()]]++
	}
	for name, count := range states {
		ch <- gauge(runningContainers, float64(count), name)
	}
}

// state is the kubelet's word (kubecontainer.State) for the CRI's.
var state = map[runtimeapi.ContainerState]string{
	runtimeapi.ContainerState_CONTAINER_CREATED: "created", runtimeapi.ContainerState_CONTAINER_RUNNING: "running",
	runtimeapi.ContainerState_CONTAINER_EXITED: "exited", runtimeapi.ContainerState_CONTAINER_UNKNOWN: "unknown",
}

func gauge(d *prometheus.Desc, n float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
}
