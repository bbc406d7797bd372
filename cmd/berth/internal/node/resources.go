package node

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent"
	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/resources"
	"github.com/berth-io/berth/agent/resources/cpus"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/memory"
	"github.com/berth-io/berth/agent/resources/numa"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// reservation is what of the machine pods may not use, and the size of the file
// system that they share. Without a kubelet's configuration nothing is reserved.
func reservation(info *machine.Info, k *kubeletconfig.Config, kubeletDir string) (r machine.Reservation, disk int64, err error) {
	if disk, err = diskBytes(kubeletDir); err != nil {
		return r, 0, err
	}
	if k == nil {
		return machine.Reservation{MaxPods: maxPods}, disk, nil
	}
	r = machine.Reservation{MaxPods: k.MaxPods, PodsPerCore: k.PodsPerCore}
	if r.System, err = quantities("systemReserved", k.SystemReserved); err != nil {
		return r, 0, err
	}
	if r.Kube, err = quantities("kubeReserved", k.KubeReserved); err != nil {
		return r, 0, err
	}
	if !k.IgnoreEvictionThreshold {
		if r.Eviction, err = keptFree(k.EvictionHard, info.MemoryBytes, disk); err != nil {
			return r, 0, err
		}
	}
	reserved, err := reservedCPUs(k)
	if err != nil {
		return r, 0, err
	}
	if k.LocalStorageCapacityIsolation != nil && !*k.LocalStorageCapacityIsolation {
		disk = 0
	}
	return r.WithReservedCPUs(reserved.Size()), disk, nil
}

func reservedCPUs(k *kubeletconfig.Config) (cpuset.CPUSet, error) {
	set, err := cpuset.Parse(k.ReservedSystemCPUs)
	if err != nil {
		return set, fmt.Errorf("reservedSystemCPUs: %w", err)
	}
	return set, nil
}

// reservedCgroups are those of enforceNodeAllocatable that others made.
func reservedCgroups(k *kubeletconfig.Config, r machine.Reservation) map[string]agent.Reserved {
	out := map[string]agent.Reserved{}
	if k == nil {
		return out
	}
	for _, level := range []struct {
		name, cgroup string
		list         v1.ResourceList
	}{{"kube-reserved", k.KubeReservedCgroup, r.Kube}, {"system-reserved", k.SystemReservedCgroup, r.System}} {
		whole := slices.Contains(k.EnforceNodeAllocatable, level.name)
		if whole || slices.Contains(k.EnforceNodeAllocatable, level.name+"-compressible") {
			out[level.cgroup] = agent.Reserved{Resources: level.list, CompressibleOnly: !whole}
		}
	}
	return out
}

// ownResources is what containers can have to themselves.
func ownResources(k *kubeletconfig.Config, info *machine.Info, r machine.Reservation, disk int64, all machine.Resources) (agent.Resources, error) {
	if k == nil {
		return agent.Resources{}, nil
	}
	reserved, err := reservedCPUs(k)
	if err != nil {
		return agent.Resources{}, err
	}
	byNode := map[int]v1.ResourceList{}
	for _, m := range k.ReservedMemory {
		byNode[int(m.NumaNode)] = m.Limits
	}
	return agent.Resources{
		Allocator: resources.Config{
			Machine: info,
			CPUs: cpus.Config{
				Policy: k.CPUManagerPolicy, Options: k.CPUManagerPolicyOptions, ReservedMilli: all.Reserved.Cpu().MilliValue(), ReservedCPUs: reserved,
				AlphaOptions: k.Enabled("CPUManagerPolicyAlphaOptions"), NoBetaOptions: !k.Enabled("CPUManagerPolicyBetaOptions"),
			},
			Memory:   memory.Config{Policy: k.MemoryManagerPolicy, Reserved: byNode, Total: all.Reserved},
			Topology: numa.Config{Policy: k.TopologyManagerPolicy, Scope: k.TopologyManagerScope, Options: k.TopologyManagerPolicyOptions},
		},
		Capacity: func(d machine.Devices) (machine.Resources, error) { return machine.Capacity(info, r, disk, d) },
	}, nil
}

func quantities(field string, texts map[string]string) (v1.ResourceList, error) {
	list := v1.ResourceList{}
	for name, text := range texts {
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("%s.%s: %q is not a quantity: %w", field, name, text, err)
		}
		list[v1.ResourceName(name)] = q
	}
	return list, nil
}

// keptFree is what hard eviction thresholds keep free of memory and disk.
func keptFree(hard map[string]string, memory, disk int64) (v1.ResourceList, error) {
	list := v1.ResourceList{}
	for _, s := range []struct {
		signal   string
		resource v1.ResourceName
		of       int64
	}{{"memory.available", v1.ResourceMemory, memory}, {"nodefs.available", v1.ResourceEphemeralStorage, disk}} {
		text, ok := hard[s.signal]
		if !ok {
			continue
		}
		if share, isShare := strings.CutSuffix(text, "%"); isShare {
			percent, err := strconv.ParseFloat(share, 64)
			if err != nil {
				return nil, fmt.Errorf("evictionHard.%s: %q is not a share: %w", s.signal, text, err)
			}
			list[s.resource] = *resource.NewQuantity(int64(float64(s.of)*percent/100), resource.BinarySI)
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("evictionHard.%s: %q is not a quantity: %w", s.signal, text, err)
		}
		list[s.resource] = q
	}
	return list, nil
}

// diskBytes is the size of the file system that has a directory, or will.
func diskBytes(dir string) (int64, error) {
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if err == nil {
			return int64(s.Blocks) * s.Bsize, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return 0, fmt.Errorf("size of the file system at %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}

// cgroupConfig is the tree of the pods' cgroups.
func cgroupConfig(c config.Config, k *kubeletconfig.Config, info *machine.Info, r machine.Resources) qos.Config {
	t := qos.Config{
		Root: c.CgroupRoot, Driver: qos.Driver(c.CgroupDriver),
		CPUs: len(info.CPUs), MemoryBytes: info.MemoryBytes, SwapBytes: info.SwapBytes,
	}
	if k == nil {
		return t
	}
	if slices.Contains(k.EnforceNodeAllocatable, "pods") {
		t.Allocatable = r.Enforced
	}
	t.NoClasses = !*k.CgroupsPerQOS
	t.PodPIDs = *k.PodPidsLimit
	t.Enforcement = qos.Enforcement{
		NoCPUQuota: !*k.CPUCFSQuota, CPUPeriod: k.CPUCFSQuotaPeriod.Duration,
		SingleProcessOOMKill: k.SingleProcessOOMKill != nil && *k.SingleProcessOOMKill,
		Swap:                 qos.SwapBehavior(k.MemorySwap.SwapBehavior),
	}
	if k.Enabled("MemoryQoS") {
		t.Enforcement.MemoryQoS = &qos.MemoryQoS{
			ThrottlingFactor: *k.MemoryThrottlingFactor, Tiered: k.MemoryReservationPolicy == kubeletv1beta1.TieredReservationMemoryReservationPolicy,
			AllocatableBytes: r.Allocatable.Memory().Value(),
		}
	}
	return t
}
