package qos

import (
	"math"
	"os"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Files of cgroup v2 that have no field of their own in the CRI.
const (
	memoryMin      = "memory.min"
	memoryLow      = "memory.low"
	memoryHigh     = "memory.high"
	memorySwapMax  = "memory.swap.max"
	memoryOOMGroup = "memory.oom.group"
)

// SwapBehavior is KubeletConfiguration.memorySwap.swapBehavior. Empty is
// NoSwap.
type SwapBehavior string

// The kubelet's swap behaviors.
const (
	NoSwap      SwapBehavior = "NoSwap"
	LimitedSwap SwapBehavior = "LimitedSwap"
)

// Enforcement says how requests and limits become cgroup settings. The zero
// value is the kubelet's default.
type Enforcement struct {
	// NoCPUQuota is cpuCFSQuota: false; CPU limits are then not enforced.
	NoCPUQuota bool
	// CPUPeriod is cpuCFSQuotaPeriod; zero is 100 ms.
	CPUPeriod time.Duration
	// Swap holds on cgroup v2 only; v1 hosts behave as NoSwap.
	Swap SwapBehavior
	// SingleProcessOOMKill leaves memory.oom.group off, so that the kernel kills
	// one process of a container and not all.
	SingleProcessOOMKill bool
	// MemoryQoS, where not nil, is the feature gate of that name. It has no
	// effect on cgroup v1.
	MemoryQoS *MemoryQoS
}

// MemoryQoS is what the kubelet's feature of that name depends on.
type MemoryQoS struct {
	// ThrottlingFactor is memoryThrottlingFactor: where between request and limit
	// memory.high lies, 0 to 1.
	ThrottlingFactor float64
	// Tiered is memoryReservationPolicy: TieredReservation. Requests are then
	// protected: with memory.min those of guaranteed pods, with memory.low those
	// of burstable ones.
	Tiered bool
	// AllocatableBytes is the node's allocatable memory, which stands in for the
	// limit of a container without one.
	AllocatableBytes int64
}

func (e Enforcement) period() int64 {
	if e.CPUPeriod == 0 {
		return defaultPeriod
	}
	return e.CPUPeriod.Microseconds()
}

// NodeInfo is what container resources depend on besides the pod.
type NodeInfo struct {
	Enforcement
	MemoryBytes int64 // of the node
	SwapBytes   int64 // of the node, shared out with LimitedSwap
	// HugePageSizes are the page sizes that the kernel offers and its hugetlb
	// controller limits, in the runtime's notation, for example 2MB.
	HugePageSizes []string
	CgroupV2      bool
	// SwapLimits says that the memory controller limits swap.
	SwapLimits bool
}

// ContainerResources are the settings of the container's own cgroup, which the
// runtime makes (kubelet: kuberuntime/kuberuntime_container_linux.go,
// generateLinuxContainerResources). It is pure: the same call with a resized pod
// gives what the container has to be updated to. Exclusive CPUs and memory nodes
// are not its concern; agent/resources adds them.
func ContainerResources(pod *v1.Pod, container *v1.Container, node NodeInfo) *runtimeapi.LinuxContainerResources {
	cpuLimit := effectiveLimit(pod, container, v1.ResourceCPU)
	memoryLimit := effectiveLimit(pod, container, v1.ResourceMemory)
	shares := milliToShares(cpuLimit.MilliValue())
	if request, found := container.Resources.Requests[v1.ResourceCPU]; found {
		shares = milliToShares(request.MilliValue())
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          int64(shares),
		MemoryLimitInBytes: memoryLimit.Value(),
		OomScoreAdj:        OOMScoreAdj(pod, container, node.MemoryBytes),
		HugepageLimits:     hugePageLimits(pod, container, node.HugePageSizes),
	}
	if !node.NoCPUQuota {
		r.CpuPeriod = node.period()
		r.CpuQuota = milliToQuota(cpuLimit.MilliValue(), r.CpuPeriod)
	}
	if node.CgroupV2 {
		r.Unified = containerUnified(pod, container, node)
	} else if node.SwapLimits {
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	}
	return r
}

// containerUnified are the container's settings on cgroup v2 by file name; nil
// where there are none.
func containerUnified(pod *v1.Pod, container *v1.Container, node NodeInfo) map[string]string {
	unified := map[string]string{}
	if !node.SingleProcessOOMKill {
		unified[memoryOOMGroup] = "1"
	}
	if node.SwapLimits {
		unified[memorySwapMax] = strconv.FormatInt(swapLimit(pod, container, node), 10)
	}
	if node.MemoryQoS != nil {
		addMemoryQoS(unified, pod, container, *node.MemoryQoS)
	}
	if len(unified) == 0 {
		return nil
	}
	return unified
}

// swapLimit is the container's share of the node's swap, in bytes: with
// LimitedSwap a burstable container that requests less memory than it may use
// gets the part of the swap that it requests of the memory.
func swapLimit(pod *v1.Pod, container *v1.Container, node NodeInfo) int64 {
	request := container.Resources.Requests.Memory()
	if !node.Swaps(pod, container) || node.MemoryBytes <= 0 || request.Value() > node.MemoryBytes {
		return 0
	}
	return int64(float64(request.Value()) / float64(node.MemoryBytes) * float64(node.SwapBytes))
}

// Swaps tells whether a container may swap (kubelet:
// kuberuntime/kuberuntime_container_linux.go, GetContainerSwapBehavior).
func (n NodeInfo) Swaps(pod *v1.Pod, container *v1.Container) bool {
	request, limit := container.Resources.Requests.Memory(), container.Resources.Limits.Memory()
	return n.Swap == LimitedSwap && n.CgroupV2 && n.SwapLimits && !isCritical(pod) &&
		Class(pod) == v1.PodQOSBurstable && request.Cmp(*limit) != 0
}

func addMemoryQoS(unified map[string]string, pod *v1.Pod, container *v1.Container, config MemoryQoS) {
	request, limit := container.Resources.Requests.Memory().Value(), container.Resources.Limits.Memory().Value()
	switch {
	case request == 0 || !config.Tiered:
		// Written out, so that what was protected before no longer is.
		unified[memoryMin], unified[memoryLow] = "0", "0"
	case Class(pod) == v1.PodQOSGuaranteed:
		unified[memoryMin] = strconv.FormatInt(request, 10)
	default:
		unified[memoryLow] = strconv.FormatInt(request, 10)
	}
	if request == limit {
		return
	}
	upper := limit
	if upper == 0 {
		upper = config.AllocatableBytes
	}
	if upper == 0 {
		return
	}
	page := float64(os.Getpagesize())
	high := int64(math.Floor((float64(request)+(float64(upper)-float64(request))*config.ThrottlingFactor)/page) * page)
	if high > request {
		unified[memoryHigh] = strconv.FormatInt(high, 10)
	}
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

// SandboxResources are what the CRI is told of the pod as a whole when its
// sandbox is made: what its containers ask for together, and the overhead of the
// runtime class (kubelet: kuberuntime/kuberuntime_sandbox_linux.go,
// applySandboxResources).
func SandboxResources(pod *v1.Pod, node NodeInfo) (resources, overhead *runtimeapi.LinuxContainerResources) {
	options := resource.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := resource.PodRequests(pod, options), resource.PodLimits(pod, options)
	shares := limits.Cpu().MilliValue()
	if request, found := requests[v1.ResourceCPU]; found {
		shares = request.MilliValue()
	}
	resources = sandboxPart(shares, limits.Cpu().MilliValue(), limits.Memory().Value(), node)
	if pod.Spec.Overhead == nil {
		return resources, &runtimeapi.LinuxContainerResources{}
	}
	cpu := pod.Spec.Overhead.Cpu().MilliValue()
	return resources, sandboxPart(cpu, cpu, pod.Spec.Overhead.Memory().Value(), node)
}

func sandboxPart(requestMilli, limitMilli, memory int64, node NodeInfo) *runtimeapi.LinuxContainerResources {
	r := &runtimeapi.LinuxContainerResources{CpuShares: int64(milliToShares(requestMilli)), MemoryLimitInBytes: memory}
	if !node.NoCPUQuota {
		r.CpuPeriod = node.period()
		r.CpuQuota = milliToQuota(limitMilli, r.CpuPeriod)
	}
	if node.CgroupV2 && !node.SingleProcessOOMKill {
		r.Unified = map[string]string{memoryOOMGroup: "1"}
	}
	return r
}
