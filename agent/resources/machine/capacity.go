package machine

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// PIDs is the kubelet's name for process IDs in reservations. It is no resource
// of the node object.
const PIDs = v1.ResourceName("pid")

// Reservation is what of the node pods may not use, and how many pods it runs.
type Reservation struct {
	// System and Kube are systemReserved and kubeReserved. Where reservedSystemCPUs
	// names CPUs, their number is System's cpu (see WithReservedCPUs).
	System, Kube v1.ResourceList
	// Eviction is the hard threshold of memory.available and nodefs.available,
	// as an amount of memory and ephemeral-storage, since allocatable is what pods
	// may use before any of them is evicted.
	Eviction v1.ResourceList
	// MaxPods and PodsPerCore are KubeletConfiguration's; PodsPerCore zero means
	// no limit by cores.
	MaxPods, PodsPerCore int32
}

// WithReservedCPUs lets reservedSystemCPUs stand in for what was reserved of the
// CPUs by amount (kubelet: cmd/kubelet/app/server.go).
func (r Reservation) WithReservedCPUs(count int) Reservation {
	if count == 0 {
		return r
	}
	system, kube := r.System.DeepCopy(), r.Kube.DeepCopy()
	if system == nil {
		system = v1.ResourceList{}
	}
	system[v1.ResourceCPU] = *resource.NewQuantity(int64(count), resource.DecimalSI)
	delete(kube, v1.ResourceCPU)
	r.System, r.Kube = system, kube
	return r
}

// Devices is what device plugins have, by resource name: how many devices there
// are, and how many of them are healthy.
type Devices struct{ Capacity, Allocatable v1.ResourceList }

// Resources are the node's resources for those who ask.
type Resources struct {
	// Capacity and Allocatable are the node object's.
	Capacity, Allocatable v1.ResourceList
	// Enforced is what the cgroup of all pods is limited to where "pods" is in
	// enforceNodeAllocatable: without what is reserved, but with what eviction
	// keeps free, since pods must be able to reach its thresholds.
	Enforced v1.ResourceList
	// Reserved is what is kept from pods altogether; the static policies of CPUs
	// and memory count with it.
	Reserved v1.ResourceList
}

// Capacity computes the node's resources as the kubelet does (nodestatus/setters.go
// MachineInfo, cm/node_container_manager_linux.go). EphemeralStorageBytes is the
// size of the file system with the kubelet's directory; zero leaves the resource
// out, as localStorageCapacityIsolation: false does. A reservation of more than
// there is, is an error.
func Capacity(i *Info, r Reservation, ephemeralStorageBytes int64, devices Devices) (Resources, error) {
	capacity := v1.ResourceList{
		v1.ResourceCPU:    *resource.NewQuantity(int64(len(i.CPUs)), resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(i.MemoryBytes, resource.BinarySI),
	}
	for size, count := range i.HugePages {
		capacity[HugePages(size)] = *resource.NewQuantity(size*count, resource.BinarySI)
	}
	if ephemeralStorageBytes > 0 {
		capacity[v1.ResourceEphemeralStorage] = *resource.NewQuantity(ephemeralStorageBytes, resource.BinarySI)
	}
	internal := capacity.DeepCopy()
	if i.MaxPIDs > 0 {
		internal[PIDs] = *resource.NewQuantity(i.MaxPIDs, resource.DecimalSI)
	}
	reserved, err := total(internal, r)
	if err != nil {
		return Resources{}, err
	}
	pods := int64(r.MaxPods)
	if r.PodsPerCore > 0 {
		pods = min(pods, int64(len(i.CPUs))*int64(r.PodsPerCore))
	}
	capacity[v1.ResourcePods] = *resource.NewQuantity(pods, resource.DecimalSI)
	for name, q := range devices.Capacity {
		capacity[name] = q
	}
	all := Resources{
		Capacity:    capacity,
		Allocatable: minus(capacity, reserved),
		Enforced:    minus(internal, r.System, r.Kube),
		Reserved:    reserved,
	}
	for name, q := range devices.Allocatable {
		all.Allocatable[name] = q
	}
	// Huge pages are no memory that pods could use otherwise.
	memory := all.Allocatable[v1.ResourceMemory]
	for size, count := range i.HugePages {
		memory.Sub(*resource.NewQuantity(size*count, resource.BinarySI))
	}
	if memory.Sign() < 0 {
		memory.Set(0)
	}
	all.Allocatable[v1.ResourceMemory] = memory
	return all, nil
}

// total is all that is reserved of what there is.
func total(capacity v1.ResourceList, r Reservation) (v1.ResourceList, error) {
	reserved := v1.ResourceList{}
	var tooMuch []string
	for name, have := range capacity {
		sum := resource.NewQuantity(0, resource.DecimalSI)
		for _, list := range []v1.ResourceList{r.System, r.Kube, r.Eviction} {
			sum.Add(list[name])
		}
		if sum.IsZero() {
			continue
		}
		reserved[name] = *sum
		if sum.Cmp(have) > 0 {
			tooMuch = append(tooMuch, fmt.Sprintf("Resource %q has a reservation of %v but capacity of %v. Expected capacity >= reservation.", name, sum, &have))
		}
	}
	if len(tooMuch) > 0 {
		slices.Sort(tooMuch)
		return nil, fmt.Errorf("invalid Node Allocatable configuration. %s", strings.Join(tooMuch, " "))
	}
	return reserved, nil
}

func minus(capacity v1.ResourceList, reserved ...v1.ResourceList) v1.ResourceList {
	left := make(v1.ResourceList, len(capacity))
	for name, q := range capacity {
		q = q.DeepCopy()
		for _, list := range reserved {
			q.Sub(list[name])
		}
		if q.Sign() < 0 {
			q.Set(0)
		}
		left[name] = q
	}
	return left
}

// HugePages is the resource name of huge pages of a size in bytes.
func HugePages(size int64) v1.ResourceName {
	return v1.ResourceName(v1.ResourceHugePagesPrefix + resource.NewQuantity(size, resource.BinarySI).String())
}
