package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of a pod's cgroup. Zero leaves a setting as it is.
type Limits struct {
	CPUShares uint64 // 2 to 262144, as version 1 has them
	CPUQuota  int64  // microseconds in each period; -1: none
	CPUPeriod uint64 // microseconds
	Memory    int64  // bytes; -1: none
}

// PodLimits is what all containers of a pod may use together, with what the
// pod costs beside them. Where the containers have no limit, the pod has none.
func PodLimits(resources, overhead *runtimeapi.LinuxContainerResources) Limits {
	l := Limits{}
	if shares := resources.GetCpuShares() + overhead.GetCpuShares(); shares > 0 {
		l.CPUShares = uint64(shares)
	}
	if period, quota := resources.GetCpuPeriod(), resources.GetCpuQuota(); quota != 0 && period > 0 {
		l.CPUPeriod, l.CPUQuota = uint64(period), quota
		if extra := overhead.GetCpuQuota(); quota > 0 && extra > 0 && overhead.GetCpuPeriod() > 0 {
			l.CPUQuota += extra * period / overhead.GetCpuPeriod()
		}
	}
	if memory := resources.GetMemoryLimitInBytes(); memory != 0 {
		l.Memory = memory
		if memory > 0 {
			l.Memory += max(overhead.GetMemoryLimitInBytes(), 0)
		}
	}
	return l
}

// LimitHugePages writes the limit of one page size, 2MB or the like, of a
// cgroup that its runtime has made.
func (t *Tree) LimitHugePages(path, size string, bytes uint64) error {
	if err := check(path); err != nil {
		return err
	}
	file := filepath.Join("/sys/fs/cgroup/hugetlb", path, "hugetlb."+size+".limit_in_bytes")
	if t.Unified {
		file = filepath.Join(t.roots[0], path, "hugetlb."+size+".max")
	}
	if err := os.WriteFile(file, strconv.AppendUint(nil, bytes, 10), 0); err != nil {
		return fmt.Errorf("limit the huge pages of %s: %w", size, err)
	}
	return nil
}

// Limit writes the limits of a cgroup that Ensure has made.
func (t *Tree) Limit(path string, l Limits) error {
	if err := check(path); err != nil {
		return err
	}
	if l == (Limits{}) {
		return nil
	}
	r := &cgroups.Resources{
		CpuQuota: l.CPUQuota, CpuPeriod: l.CPUPeriod, Memory: l.Memory,
		SkipDevices: true, SkipFreezeOnSet: true,
	}
	var m cgroups.Manager
	var err error
	if t.Unified {
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(l.CPUShares)
		m, err = fs2.NewManager(&cgroups.Cgroup{Path: path, Resources: r}, filepath.Join(t.roots[0], path))
		if err == nil {
			err = m.Apply(-1) // turns the controllers on, down from the root
		}
	} else {
		r.CpuShares = l.CPUShares
		dirs := map[string]string{}
		for _, controller := range []string{"cpu", "memory"} {
			mount, findErr := cgroups.FindCgroupMountpoint("/sys/fs/cgroup", controller)
			if findErr != nil {
				return fmt.Errorf("find the cgroup controller %s: %w", controller, findErr)
			}
			dirs[controller] = filepath.Join(mount, path)
		}
		m, err = fs.NewManager(&cgroups.Cgroup{Path: path, Resources: r}, dirs)
	}
	if err == nil {
		err = m.Set(r)
	}
	if err != nil {
		return fmt.Errorf("limit the cgroup %s: %w", path, err)
	}
	return nil
}
