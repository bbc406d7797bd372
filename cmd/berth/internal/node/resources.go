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
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/kubeletconfig"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/cmd/berth/internal/config"
)

// nodeResources are what the machine has for pods. Without a kubelet's
// configuration nothing is reserved.
func nodeResources(info *machine.Info, k *kubeletconfig.Config, kubeletDir string) (machine.Resources, error) {
	disk, err := diskBytes(kubeletDir)
	if err != nil {
		return machine.Resources{}, err
	}
	if k == nil {
		return machine.Capacity(info, machine.Reservation{MaxPods: maxPods}, disk, machine.Devices{})
	}
	r := machine.Reservation{MaxPods: k.MaxPods, PodsPerCore: k.PodsPerCore}
	if r.System, err = quantities("systemReserved", k.SystemReserved); err != nil {
		return machine.Resources{}, err
	}
	if r.Kube, err = quantities("kubeReserved", k.KubeReserved); err != nil {
		return machine.Resources{}, err
	}
	if !k.IgnoreEvictionThreshold {
		if r.Eviction, err = keptFree(k.EvictionHard, info.MemoryBytes, disk); err != nil {
			return machine.Resources{}, err
		}
	}
	if k.ReservedSystemCPUs != "" {
		cpus, err := cpuset.Parse(k.ReservedSystemCPUs)
		if err != nil {
			return machine.Resources{}, fmt.Errorf("reservedSystemCPUs: %w", err)
		}
		r = r.WithReservedCPUs(cpus.Size())
	}
	if k.LocalStorageCapacityIsolation != nil && !*k.LocalStorageCapacityIsolation {
		disk = 0
	}
	return machine.Capacity(info, r, disk, machine.Devices{})
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
	return t
}
