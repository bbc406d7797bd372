package shim

import (
	"os"
	"path/filepath"
	"strings"
)

// cgroupRoot is where cgroups are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// expectMigration has the kernel begin at once what the OCI runtime would wait
// for some milliseconds later. Whoever moves a process into a cgroup takes a
// lock of the whole host (cgroup_threadgroup_rwsem) that is free only after an
// RCU grace period, 8 ms at 250 Hz, unless it was taken just before. Here the
// daemon moves itself to where it is, which changes nothing but starts the
// grace period; it is over when the runtime, which has two Go programs and its
// own checks to start first, comes to write cgroup.procs.
//
// Nothing depends on it: where it fails, the runtime waits as ever. exec says
// that the runtime is to exec: in version 2 that starts the process inside its
// cgroup (CLONE_INTO_CGROUP), and nothing is moved.
func (c *Client) expectMigration(exec bool) {
	if !c.migrating.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer c.migrating.Store(false)
		text, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return
		}
		procs, unified := ownProcs(string(text))
		if procs == "" || unified && exec {
			return
		}
		_ = os.WriteFile(procs, []byte("0"), 0)
	}()
}

// ownProcs is the cgroup.procs of a cgroup that text, /proc/self/cgroup, names:
// in the memory controller's hierarchy of version 1 or, where version 2 is all
// there is, in that.
func ownProcs(text string) (path string, unified bool) {
	var lines int
	for line := range strings.Lines(text) {
		lines++
		hierarchy, cgroup, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":/")
		if !ok {
			continue
		}
		_, controllers, _ := strings.Cut(hierarchy, ":")
		switch controllers {
		case "memory":
			return filepath.Join(cgroupRoot, "memory", cgroup, "cgroup.procs"), false
		case "":
			path = filepath.Join(cgroupRoot, cgroup, "cgroup.procs")
		}
	}
	if lines != 1 {
		return "", false
	}
	return path, path != ""
}
