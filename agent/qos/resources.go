package qos

import (
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bounds of the kernel's CPU controller, and the kubelet's period.
const (
	minShares     = 2
	maxShares     = 262144
	sharesPerCPU  = 1024
	quotaPeriod   = 100_000 // microseconds
	minQuota      = 1_000   // microseconds
	maxWeight     = 10_000
	milliPerCPU   = 1_000
	hugePagesName = "hugepages-"
)

// NodeInfo is what container resources depend on besides the pod.
type NodeInfo struct {
	MemoryBytes int64 // of the node
	// HugePageSizes are the page sizes that the kernel offers and its hugetlb
	// controller limits, in the runtime's notation, for example 2MB.
	HugePageSizes []string
	CgroupV2      bool
	// SwapLimits says that the memory controller limits swap.
	SwapLimits bool
}

// ContainerResources are the settings of the container's own cgroup, which the
// runtime makes. They are the kubelet's defaults: CFS quota on, no swap, and on
// cgroup v2 a container killed as a whole when it runs out of memory.
func ContainerResources(pod *v1.Pod, container *v1.Container, node NodeInfo) *runtimeapi.LinuxContainerResources {
	cpuLimit := effectiveLimit(pod, container, v1.ResourceCPU)
	memoryLimit := effectiveLimit(pod, container, v1.ResourceMemory)
	shares := milliToShares(cpuLimit.MilliValue())
	if request, found := container.Resources.Requests[v1.ResourceCPU]; found {
		shares = milliToShares(request.MilliValue())
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          int64(shares),
		CpuPeriod:          quotaPeriod,
		CpuQuota:           milliToQuota(cpuLimit.MilliValue()),
		MemoryLimitInBytes: memoryLimit.Value(),
		OomScoreAdj:        OOMScoreAdj(pod, container, node.MemoryBytes),
		HugepageLimits:     hugePageLimits(pod, container, node.HugePageSizes),
	}
	if node.CgroupV2 {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	if node.SwapLimits {
		if node.CgroupV2 {
			r.Unified["memory.swap.max"] = "0"
		} else {
			r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
		}
	}
	return r
}

// effectiveLimit is the container's limit or, where it has none, the pod's.
func effectiveLimit(pod *v1.Pod, container *v1.Container, name v1.ResourceName) apiresource.Quantity {
	if q := container.Resources.Limits[name]; !q.IsZero() || !resource.IsPodLevelResourcesSet(pod) {
		return q
	}
	return pod.Spec.Resources.Limits[name]
}

// hugePageLimits names every page size: one that is not asked for is limited
// to zero, since huge pages are never overcommitted.
func hugePageLimits(pod *v1.Pod, container *v1.Container, sizes []string) []*runtimeapi.HugepageLimit {
	asked := map[string]uint64{}
	if resource.IsPodLevelResourcesSet(pod) {
		addHugePages(asked, pod.Spec.Resources.Limits)
	}
	addHugePages(asked, container.Resources.Limits)
	var limits []*runtimeapi.HugepageLimit
	for _, size := range sizes {
		limits = append(limits, &runtimeapi.HugepageLimit{PageSize: size, Limit: asked[size]})
	}
	return limits
}

func addHugePages(bySize map[string]uint64, list v1.ResourceList) {
	for name, quantity := range list {
		size, isHuge := strings.CutPrefix(string(name), hugePagesName)
		if !isHuge {
			continue
		}
		if bytes, err := apiresource.ParseQuantity(size); err == nil {
			bySize[pageSizeName(bytes.Value())] = uint64(quantity.Value())
		}
	}
}

// pageSizeName is how cgroup file names write a page size: 2MB, 1GB.
func pageSizeName(bytes int64) string {
	units := []string{"B", "KB", "MB", "GB", "TB", "PB"}
	for len(units) > 1 && bytes > 0 && bytes%1024 == 0 {
		bytes /= 1024
		units = units[1:]
	}
	return strconv.FormatInt(bytes, 10) + units[0]
}

// settings are what the tree writes into a cgroup of the pod or QoS level.
// Zero means not set.
type settings struct {
	shares uint64
	quota  int64 // microseconds each quotaPeriod
	memory int64 // bytes
}

// podSettings follows the kubelet: CPU quota and memory limit hold for the pod
// only when every container has one (or the pod level names it), since one
// container without a limit may use what the node has.
func podSettings(pod *v1.Pod) settings {
	if Class(pod) == v1.PodQOSBestEffort {
		return settings{shares: minShares}
	}
	requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
	cpuLimited, memoryLimited := true, true
	limits := resource.PodLimits(pod, resource.PodResourcesOptions{
		ContainerFn: func(own v1.ResourceList, _ resource.ContainerType) {
			cpuLimited = cpuLimited && !own.Cpu().IsZero()
			memoryLimited = memoryLimited && !own.Memory().IsZero()
		},
	})
	if resource.IsPodLevelResourcesSet(pod) {
		cpuLimited = cpuLimited || !pod.Spec.Resources.Limits.Cpu().IsZero()
		memoryLimited = memoryLimited || !pod.Spec.Resources.Limits.Memory().IsZero()
	}
	s := settings{shares: milliToShares(requests.Cpu().MilliValue())}
	if cpuLimited {
		s.quota = milliToQuota(limits.Cpu().MilliValue())
	}
	if memoryLimited {
		s.memory = limits.Memory().Value()
	}
	return s
}

// burstableShares is the weight of the burstable level: what its pods ask for.
func burstableShares(pods []*v1.Pod) uint64 {
	var milli int64
	for _, pod := range pods {
		if Class(pod) == v1.PodQOSBurstable {
			requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
			milli += requests.Cpu().MilliValue()
		}
	}
	return milliToShares(milli)
}

func milliToShares(milli int64) uint64 {
	return uint64(min(max(milli*sharesPerCPU/milliPerCPU, minShares), maxShares))
}

// milliToQuota is zero, no quota, for zero.
func milliToQuota(milli int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*quotaPeriod/milliPerCPU, minQuota)
}

// sharesToWeight maps cpu.shares to cpu.weight linearly, as the kubelet does
// for its own levels of the tree (KEP-2254). The runtime's conversion for
// containers has another shape, but it only weighs a pod's containers against
// each other; siblings must all be converted alike.
func sharesToWeight(shares uint64) uint64 {
	if shares == 0 {
		return 0
	}
	shares = min(max(shares, minShares), maxShares)
	return 1 + (shares-minShares)*(maxWeight-1)/(maxShares-minShares)
}
