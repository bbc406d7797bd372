package qos

import (
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
)

// Bounds of the kernel's CPU controller, and the kubelet's period.
const (
	minShares     = 2
	maxShares     = 262144
	sharesPerCPU  = 1024
	defaultPeriod = 100_000 // microseconds
	minQuota      = 1_000   // microseconds
	maxWeight     = 10_000
	milliPerCPU   = 1_000
	hugePagesName = "hugepages-"
)

// hugePagesBySize are the huge pages in a list of resources, in bytes by the
// page size's name in the runtime's notation, for example 2MB.
func hugePagesBySize(list v1.ResourceList) map[string]uint64 {
	bySize := map[string]uint64{}
	addHugePages(bySize, list)
	return bySize
}

func addHugePages(bySize map[string]uint64, list v1.ResourceList) {
	for name, quantity := range list {
		size, isHuge := strings.CutPrefix(string(name), hugePagesName)
		if !isHuge {
			continue
		}
		if bytes, err := apiresource.ParseQuantity(size); err == nil {
			bySize[pageSizeName(bytes.Value())] = uint64(max(quantity.Value(), 0))
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

func milliToShares(milli int64) uint64 {
	return uint64(min(max(milli*sharesPerCPU/milliPerCPU, minShares), maxShares))
}

// milliToQuota is zero, no quota, for zero. The period is in microseconds.
func milliToQuota(milli, period int64) int64 {
	if milli == 0 {
		return 0
	}
	return max(milli*period/milliPerCPU, minQuota)
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
