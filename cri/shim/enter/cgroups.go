package enter

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroups are open files of the cgroups that the child is to be in.
type cgroups struct {
	// tasks are of version 1. A process that is one thread and writes "0" to
	// them moves itself, for which the kernel takes no lock of the whole host:
	// unlike a write to cgroup.procs, it waits for no RCU grace period.
	tasks []int
	// dir is of version 2, in which the child is made; -1: where its parent is.
	dir int
}

func (c cgroups) close() {
	for _, fd := range c.tasks {
		_ = unix.Close(fd)
	}
	if c.dir >= 0 {
		_ = unix.Close(c.dir)
	}
}

// errFrozen is a container that is paused: what entered would hang.
var errFrozen = errors.New("the container is paused")

// cgroupsOf opens the cgroups of process pid. own, if it is not empty, is a
// cgroup below the container's that takes its place: of version 2 or, on a host
// with version 1, of the freezer.
func cgroupsOf(pid int, own string) (_ cgroups, err error) {
	of, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return cgroups{dir: -1}, fmt.Errorf("find the container's cgroups: %w", err)
	}
	mine, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return cgroups{dir: -1}, fmt.Errorf("find the shim's cgroups: %w", err)
	}
	_, err = os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers"))
	found := locate(string(of), string(mine), own, err == nil)
	if own != "" {
		if err := thawed(filepath.Dir(own)); err != nil {
			return cgroups{dir: -1}, err
		}
	}
	return found.open()
}

// places are the directories of cgroups.
type places struct {
	version1 []string
	version2 string
}

// locate reads two /proc/PID/cgroup: a hierarchy in which both processes are in
// the same cgroup needs nothing. unified says that version 2 is all there is.
func locate(of, mine, own string, unified bool) places {
	at := map[string]string{}
	for hierarchy, path := range hierarchies(mine) {
		at[hierarchy] = path
	}
	var p places
	for hierarchy, path := range hierarchies(of) {
		switch {
		case hierarchy == "" && unified && own != "":
			p.version2 = own
		case hierarchy == "freezer" && !unified && own != "":
			p.version1 = append(p.version1, own)
		case at[hierarchy] == path:
		case hierarchy == "" && unified:
			p.version2 = filepath.Join(cgroupRoot, path)
		case hierarchy == "":
			p.version2 = filepath.Join(cgroupRoot, "unified", path)
		default:
			p.version1 = append(p.version1, filepath.Join(cgroupRoot, strings.TrimPrefix(hierarchy, "name="), path))
		}
	}
	return p
}

// hierarchies are controllers and paths, a line each; version 2 has no
// controllers.
func hierarchies(text string) func(yield func(hierarchy, path string) bool) {
	return func(yield func(hierarchy, path string) bool) {
		for line := range strings.Lines(text) {
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
			if len(fields) == 3 && !yield(fields[1], fields[2]) {
				return
			}
		}
	}
}

func (p places) open() (_ cgroups, err error) {
	c := cgroups{dir: -1}
	defer func() {
		if err != nil {
			c.close()
			c = cgroups{dir: -1}
		}
	}()
	for _, dir := range p.version1 {
		fd, err := unix.Open(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return c, fmt.Errorf("open the container's cgroup %s: %w", dir, err)
		}
		c.tasks = append(c.tasks, fd)
	}
	if p.version2 != "" {
		fd, err := unix.Open(p.version2, unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return c, fmt.Errorf("open the container's cgroup %s: %w", p.version2, err)
		}
		c.dir = fd
	}
	return c, nil
}

// thawed refuses a cgroup that is frozen, or about to be.
func thawed(dir string) error {
	for _, f := range []struct{ name, frozen string }{{"freezer.state", "FR"}, {"cgroup.freeze", "1"}} {
		state, err := os.ReadFile(filepath.Join(dir, f.name))
		switch {
		case errors.Is(err, fs.ErrNotExist): // the other version's file
		case err != nil:
			return fmt.Errorf("see whether the container is paused: %w", err)
		case bytes.HasPrefix(state, []byte(f.frozen)):
			return errFrozen
		}
	}
	return nil
}
