package qos

import (
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

// pidsResource is the kubelet's name for process IDs in its own resource lists.
const pidsResource = v1.ResourceName("pid")

// Settings are what a cgroup of the pod level or above is set to. Zero leaves a
// setting as it is; -1 takes a limit away.
type Settings struct {
	CPUShares   uint64
	CPUQuota    int64 // microseconds each CPUPeriod
	CPUPeriod   int64 // microseconds
	MemoryBytes int64
	PIDs        int64
	// HugePages limits each of the node's page sizes, in bytes by the size's name
	// (2MB); a size that is missing in a map that is not nil is limited to zero.
	HugePages map[string]uint64
	// Unified has values of cgroup v2 files by name.
	Unified map[string]string
}

// PodSettings are the settings of the pod's own cgroup, without its limit of
// processes (kubelet: cm/helpers_linux.go, ResourceConfigForPod). It is pure: for
// a resize, call it with the pod as it is to become. CPU quota and memory limit
// hold for the pod only when every container has one, or the pod level names it,
// since one container without a limit may use what the node has. A pod with
// exclusive CPUs is not throttled.
func PodSettings(pod *v1.Pod, exclusiveCPUs bool, node NodeInfo) Settings {
	requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
	s := Settings{CPUShares: minShares, HugePages: hugePagesBySize(requests)}
	class := Class(pod)
	if class == v1.PodQOSBestEffort {
		return s
	}
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
	s.CPUShares = milliToShares(requests.Cpu().MilliValue())
	if cpuLimited {
		s.CPUPeriod = node.period()
		s.CPUQuota = milliToQuota(limits.Cpu().MilliValue(), s.CPUPeriod)
		if node.NoCPUQuota || exclusiveCPUs {
			s.CPUQuota = -1
		}
	}
	if memoryLimited {
		s.MemoryBytes = limits.Memory().Value()
	}
	if request := requests.Memory().Value(); request > 0 && node.protectsRequests() {
		file := memoryLow
		if class == v1.PodQOSGuaranteed {
			file = memoryMin
		}
		s.Unified = map[string]string{file: strconv.FormatInt(request, 10)}
	}
	return s
}

func (n NodeInfo) protectsRequests() bool {
	return n.CgroupV2 && n.MemoryQoS != nil && n.MemoryQoS.Tiered
}

// allocatableSettings are what a cgroup is set to that may use what the list
// says: kubepods with the node's allocatable resources, and a reserved cgroup
// with what is reserved for it (kubelet: cm/node_container_manager_linux.go,
// getCgroupConfigInternal).
func allocatableSettings(list v1.ResourceList) Settings {
	s := compressibleSettings(list)
	s.MemoryBytes = list.Memory().Value()
	if pids, found := list[pidsResource]; found {
		s.PIDs = pids.Value()
	}
	s.HugePages = hugePagesBySize(list)
	return s
}

func compressibleSettings(list v1.ResourceList) Settings {
	var s Settings
	if cpu, found := list[v1.ResourceCPU]; found {
		s.CPUShares = milliToShares(cpu.MilliValue())
	}
	return s
}

// classes are the settings of the levels that follow from their pods.
type classes struct {
	kubepods, burstable Settings
	// guaranteedBytes and burstableBytes are what is protected of pods' memory.
	guaranteedBytes, burstableBytes int64
}

// classSettings weighs the burstable level by what its pods request and, with
// MemoryQoS, protects what pods request of the memory (kubelet:
// cm/qos_container_manager_linux.go, setCPUCgroupConfig and setMemoryQoS).
func classSettings(pods []*v1.Pod, node NodeInfo) classes {
	var cpu int64
	memory := map[v1.PodQOSClass]int64{}
	for _, pod := range pods {
		class := Class(pod)
		if class == v1.PodQOSBestEffort {
			continue
		}
		requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
		memory[class] += requests.Memory().Value()
		if class == v1.PodQOSBurstable {
			cpu += requests.Cpu().MilliValue()
		}
	}
	c := classes{burstable: Settings{CPUShares: milliToShares(cpu)}}
	if !node.CgroupV2 || node.MemoryQoS == nil {
		return c
	}
	if node.MemoryQoS.Tiered {
		c.guaranteedBytes, c.burstableBytes = memory[v1.PodQOSGuaranteed], memory[v1.PodQOSBurstable]
	}
	c.kubepods.Unified = map[string]string{memoryMin: strconv.FormatInt(c.guaranteedBytes+c.burstableBytes, 10)}
	c.burstable.Unified = map[string]string{memoryLow: strconv.FormatInt(c.burstableBytes, 10)}
	return c
}
