package kubeletconfig

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/cpuset"
)

// The levels of enforceNodeAllocatable (pkg/kubelet/types/constants.go).
const (
	enforcePods               = "pods"
	enforceSystem             = "system-reserved"
	enforceSystemCompressible = "system-reserved-compressible"
	enforceKube               = "kube-reserved"
	enforceKubeCompressible   = "kube-reserved-compressible"
	enforceNone               = "none"
)

// resources are what the node keeps for itself and how that is enforced.
func (k *checker) resources() {
	c := k.c
	levels := []string{enforcePods, enforceSystem, enforceSystemCompressible, enforceKube, enforceKubeCompressible, enforceNone}
	path := at("enforceNodeAllocatable")
	has := func(level string) bool { return slices.Contains(c.EnforceNodeAllocatable, level) }
	for i, level := range c.EnforceNodeAllocatable {
		switch {
		case !slices.Contains(levels, level):
			k.errs = append(k.errs, field.NotSupported(path.Index(i), level, levels))
		case slices.Contains(c.EnforceNodeAllocatable[:i], level):
			k.errs = append(k.errs, field.Duplicate(path.Index(i), level))
		case level != enforceNone && !*c.CgroupsPerQOS:
			k.errs = append(k.errs, field.Invalid(path.Index(i), level, "needs cgroupsPerQOS"))
		}
	}
	k.ok(!has(enforceNone) || len(c.EnforceNodeAllocatable) == 1, "enforceNodeAllocatable", c.EnforceNodeAllocatable, "must have nothing beside none")
	k.ok(!has(enforceSystem) || !has(enforceSystemCompressible), "enforceNodeAllocatable", c.EnforceNodeAllocatable, "must have one of %s and %s only", enforceSystem, enforceSystemCompressible)
	k.ok(!has(enforceKube) || !has(enforceKubeCompressible), "enforceNodeAllocatable", c.EnforceNodeAllocatable, "must have one of %s and %s only", enforceKube, enforceKubeCompressible)
	k.ok(!has(enforceSystem) && !has(enforceSystemCompressible) || c.SystemReservedCgroup != "", "systemReservedCgroup", "", "must be set where enforceNodeAllocatable has %s", enforceSystem)
	k.ok(!has(enforceKube) && !has(enforceKubeCompressible) || c.KubeReservedCgroup != "", "kubeReservedCgroup", "", "must be set where enforceNodeAllocatable has %s", enforceKube)

	k.reserved("systemReserved", c.SystemReserved)
	k.reserved("kubeReserved", c.KubeReserved)
	if c.ReservedSystemCPUs != "" {
		_, err := cpuset.Parse(c.ReservedSystemCPUs)
		k.ok(err == nil, "reservedSystemCPUs", c.ReservedSystemCPUs, "must be CPUs such as 0,2-3")
		k.ok(c.SystemReservedCgroup == "" && c.KubeReservedCgroup == "", "reservedSystemCPUs", c.ReservedSystemCPUs, "must not be set beside systemReservedCgroup or kubeReservedCgroup")
	}
	if c.ContainerLogMaxSize != "" {
		q, err := resource.ParseQuantity(c.ContainerLogMaxSize)
		k.ok(err == nil && q.Sign() != 0, "containerLogMaxSize", c.ContainerLogMaxSize, "must be an amount of bytes such as 10Mi; a negative one switches rotation off")
	}
	for name, percent := range c.QOSReserved {
		k.ok(k.gates.enabled("QOSReserved"), "qosReserved", c.QOSReserved, "requires feature gate QOSReserved")
		n, err := strconv.Atoi(strings.TrimSuffix(percent, "%"))
		k.ok(name == string(v1.ResourceMemory) && strings.HasSuffix(percent, "%") && err == nil && n >= 0 && n <= 100,
			"qosReserved", name+"="+percent, "must be memory with a share such as 50%%")
	}
}

// reserved is parsed by cmd/kubelet/app/server.go, parseResourceList.
func (k *checker) reserved(path string, list map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		key := at(path).Key(name)
		switch v1.ResourceName(name) {
		case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, "pid":
		default:
			k.errs = append(k.errs, field.NotSupported(key, name, []string{"cpu", "memory", "ephemeral-storage", "pid"}))
			continue
		}
		q, err := resource.ParseQuantity(list[name])
		if err != nil || q.Sign() < 0 {
			k.errs = append(k.errs, field.Invalid(key, list[name], "must be an amount that is not negative, such as 100m or 500Mi"))
		}
	}
}

// evictionSignals are those of pkg/kubelet/eviction/helpers.go on Linux.
var evictionSignals = []string{
	"memory.available", "allocatableMemory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree",
	"containerfs.available", "containerfs.inodesFree", "pid.available",
}

// eviction is what pkg/kubelet/eviction, ParseThresholdConfig, refuses.
func (k *checker) eviction() {
	c := k.c
	k.thresholds("evictionHard", c.EvictionHard)
	k.thresholds("evictionSoft", c.EvictionSoft)
	k.thresholds("evictionMinimumReclaim", c.EvictionMinimumReclaim)
	for _, signal := range slices.Sorted(maps.Keys(c.EvictionSoftGracePeriod)) {
		text := c.EvictionSoftGracePeriod[signal]
		d, err := time.ParseDuration(text)
		if k.signal("evictionSoftGracePeriod", signal) && (err != nil || d < 0) {
			k.errs = append(k.errs, field.Invalid(at("evictionSoftGracePeriod").Key(signal), text, "must be a duration such as 1m30s"))
		}
	}
	for _, signal := range slices.Sorted(maps.Keys(c.EvictionSoft)) {
		if _, said := c.EvictionSoftGracePeriod[signal]; !said {
			k.errs = append(k.errs, field.Required(at("evictionSoftGracePeriod").Key(signal), "evictionSoft has this signal"))
		}
	}
	k.ok(c.EvictionPressureTransitionPeriod.Duration >= 0, "evictionPressureTransitionPeriod", c.EvictionPressureTransitionPeriod.Duration.String(), "must not be negative")
}

func (k *checker) signal(path, signal string) bool {
	if slices.Contains(evictionSignals, signal) {
		return true
	}
	k.errs = append(k.errs, field.NotSupported(at(path).Key(signal), signal, evictionSignals))
	return false
}

// thresholds of evictionHard and evictionSoft must be above zero; what is
// reclaimed at least may be nothing, yet not 0%.
func (k *checker) thresholds(path string, list map[string]string) {
	reclaim := path == "evictionMinimumReclaim"
	for _, signal := range slices.Sorted(maps.Keys(list)) {
		text := list[signal]
		if !k.signal(path, signal) {
			continue
		}
		var good bool
		if share, percent := strings.CutSuffix(text, "%"); percent {
			n, err := strconv.ParseFloat(share, 32)
			good = err == nil && n >= 0 && n <= 100 && (n > 0 || !reclaim)
		} else {
			q, err := resource.ParseQuantity(text)
			good = err == nil && q.Sign() >= 0 && (q.Sign() > 0 || reclaim)
		}
		if !good {
			k.errs = append(k.errs, field.Invalid(at(path).Key(signal), text, "must be an amount such as 100Mi or a share such as 10%"))
		}
	}
}

// memory is the memory manager's (validation_reserved_memory.go) and memory QoS.
func (k *checker) memory() {
	c := k.c
	k.ok(*c.MemoryThrottlingFactor > 0 && *c.MemoryThrottlingFactor <= 1, "memoryThrottlingFactor", *c.MemoryThrottlingFactor, "must be greater than 0 and at most 1")
	k.ok(c.MemorySwap.SwapBehavior == "" || k.gates.enabled("NodeSwap"), "memorySwap.swapBehavior", c.MemorySwap.SwapBehavior, "requires feature gate NodeSwap")
	type slot struct {
		node int32
		name v1.ResourceName
	}
	seen := map[slot]bool{}
	for i, r := range c.ReservedMemory {
		path := at("reservedMemory").Index(i)
		if r.NumaNode < 0 {
			k.errs = append(k.errs, field.Invalid(path.Child("numaNode"), r.NumaNode, "must not be negative"))
		}
		for _, name := range slices.Sorted(maps.Keys(r.Limits)) {
			q, limit := r.Limits[name], path.Child("limits").Key(string(name))
			s := slot{r.NumaNode, name}
			switch {
			case !isMemory(name):
				k.errs = append(k.errs, field.NotSupported(limit, name, []v1.ResourceName{v1.ResourceMemory, "hugepages-<size>"}))
			case q.IsZero():
				k.errs = append(k.errs, field.Invalid(limit, q.String(), "must not be zero"))
			case seen[s]:
				k.errs = append(k.errs, field.Duplicate(limit, name))
			}
			seen[s] = true
		}
	}
}
