package qos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/cgroups"
)

const cgroupMount = "/sys/fs/cgroup"

// hierarchies are where this host's cgroups are mounted, looked up once: a
// mount table is long on a node full of pods.
type hierarchies struct {
	unified bool
	// mounts has a mount point for each v1 controller, named hierarchy
	// (name=systemd) and, under the name "", the controller-less v2 hierarchy of
	// a hybrid host. On a v2 host it has "" only.
	mounts map[string]string
}

// v1Names are the hierarchies that a v1 runtime puts containers into.
var v1Names = [...]string{
	"cpuset", "devices", "memory", "cpu", "cpuacct", "pids", "blkio", "hugetlb",
	"net_cls", "net_prio", "perf_event", "freezer", "rdma", "misc", "name=systemd",
}

func findHierarchies() (hierarchies, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return hierarchies{unified: true, mounts: map[string]string{"": cgroupMount}}, nil
	}
	h := hierarchies{mounts: map[string]string{}}
	for _, name := range v1Names {
		mount, err := cgroups.FindCgroupMountpoint(cgroupMount, name)
		if cgroups.IsNotFound(err) {
			continue
		}
		if err != nil {
			return hierarchies{}, fmt.Errorf("find the mount point of cgroup controller %s: %w", name, err)
		}
		h.mounts[name] = mount
	}
	if cgroups.IsCgroup2HybridMode() {
		h.mounts[""] = filepath.Join(cgroupMount, "unified")
	}
	for _, needed := range []string{"cpu", "memory"} {
		if h.mounts[needed] == "" {
			return hierarchies{}, fmt.Errorf("cgroup controller %s is mounted nowhere below %s: mount cgroup2 there, or the v1 controllers", needed, cgroupMount)
		}
	}
	return h, nil
}

// dirs are a path's directories, one in each hierarchy, by the hierarchy's
// name. The map is the caller's.
func (h hierarchies) dirs(path string) map[string]string {
	dirs := make(map[string]string, len(h.mounts))
	for name, mount := range h.mounts {
		dirs[name] = filepath.Join(mount, path)
	}
	return dirs
}

// places are a path's directories without duplicates (v1 controllers may be
// mounted together), in a stable order.
func (h hierarchies) places(path string) []string {
	var places []string
	for _, mount := range h.mounts {
		places = append(places, filepath.Join(mount, path))
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// limitsSwap looks where the kubelet looks. The root cgroup has no
// memory.swap.max, so v2 is asked in the daemon's own cgroup.
func (h hierarchies) limitsSwap() (bool, error) {
	file := filepath.Join(h.mounts["memory"], "memory.memsw.limit_in_bytes")
	if h.unified {
		own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
		if err != nil {
			return false, fmt.Errorf("find the daemon's own cgroup: %w", err)
		}
		file = filepath.Join(cgroupMount, own[""], "memory.swap.max")
	}
	_, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("see whether cgroups limit swap: %w", err)
	}
	return true, nil
}

// hugePageSizes are the sizes that cgroups of this host can limit.
func (h hierarchies) hugePageSizes() ([]string, error) {
	if h.unified {
		controllers, err := cgroups.GetAllSubsystems()
		if err != nil {
			return nil, fmt.Errorf("list cgroup controllers: %w", err)
		}
		if !slices.Contains(controllers, "hugetlb") {
			return nil, nil
		}
	} else if h.mounts["hugetlb"] == "" {
		return nil, nil
	}
	return slices.Clone(cgroups.HugePageSizes()), nil
}
