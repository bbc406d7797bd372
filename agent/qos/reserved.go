package qos

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// Reserve sets a cgroup that others made to what is reserved for it:
// kubeReservedCgroup with kubeReserved, systemReservedCgroup with
// systemReserved (kubelet: cm/node_container_manager_linux.go,
// enforceExistingCgroup). The name is in the driver's notation: a path with
// cgroupfs, a slice with systemd. compressibleOnly leaves it at the weight of the
// CPUs. A cgroup that does not exist is an error; it is never made.
func (t *Tree) Reserve(name string, reserved v1.ResourceList, compressibleOnly bool) error {
	n, err := parseExisting(t.config.Driver, name)
	if err != nil {
		return err
	}
	s := compressibleSettings(reserved)
	if !compressibleOnly {
		s = allocatableSettings(reserved)
		if t.info.CgroupV2 && t.info.MemoryQoS != nil && s.MemoryBytes > 0 {
			s.Unified = map[string]string{memoryMin: fmt.Sprint(s.MemoryBytes)}
		}
	}
	if missing := t.missing(n); len(missing) > 0 {
		return fmt.Errorf("cgroup %q has some missing paths: %s", name, strings.Join(missing, ", "))
	}
	return t.set(n, s)
}

// missing are the directories that the cgroup should have and has not, of the
// controllers that are set.
func (t *Tree) missing(n node) []string {
	mounts := []string{t.host.mounts[""]}
	if !t.host.unified {
		mounts = nil
		for _, controller := range []string{"cpu", "memory", "pids", "hugetlb"} {
			if mount := t.host.mounts[controller]; mount != "" {
				mounts = append(mounts, mount)
			}
		}
	}
	var missing []string
	for _, mount := range mounts {
		dir := filepath.Join(mount, n.path(t.config.Driver))
		if _, err := os.Stat(dir); err != nil {
			missing = append(missing, dir)
		}
	}
	return missing
}

// parseExisting reads a cgroup's name as the kubelet does: with systemd the last
// element of a path counts, and its dashes separate the levels.
func parseExisting(driver Driver, name string) (node, error) {
	levels := strings.Split(strings.Trim(name, "/"), "/")
	if driver == Systemd {
		levels = strings.Split(strings.TrimSuffix(path.Base(name), sliceSuffix), "-")
	}
	var n node
	for _, level := range levels {
		if level == "" || level == "." || level == ".." || strings.ContainsAny(level, "\x00\n") {
			return nil, fmt.Errorf("cgroup %q: not a cgroup's name", name)
		}
		n = n.child(level)
	}
	return n, nil
}
