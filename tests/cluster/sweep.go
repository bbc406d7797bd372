package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/tests/leak"
)

// Down removes everything that a cluster of this name has on the machine, in
// whatever state it is, also when there is none:
//
//   - processes that have its tag in their environment, its directories in
//     their command line, or run in its namespaces or cgroups
//   - mounts below /var/tmp/bc-NAME and /run/bc-NAME
//   - network namespaces /run/netns/bc-NAME-HOST
//   - cgroups /bc-NAME-NODE
//   - the directories themselves
func Down(name string) error {
	c, err := newCluster(Config{Name: name})
	if err != nil {
		return err
	}
	return errors.Join(c.killAll(), c.unmountAll(), c.removeNamespaces(), c.removeCgroups(), os.RemoveAll(c.Dir), os.RemoveAll(c.RunDir))
}

// scopes say what belongs to the cluster. There is one for each namespace and
// for each cgroup, by what is there: its configuration may be gone.
func (c *Cluster) scopes() ([]leak.Scope, error) {
	namespaces, err := filepath.Glob("/run/netns/" + c.name + "-*")
	if err != nil {
		return nil, err
	}
	roots, err := c.cgroupRoots()
	if err != nil {
		return nil, err
	}
	scopes := []leak.Scope{{Dirs: []string{c.Dir, c.RunDir}, Tag: tagName + "=" + c.Config.Name}}
	for _, ns := range namespaces {
		scopes = append(scopes, leak.Scope{NetNS: ns})
	}
	for _, root := range roots {
		scopes = append(scopes, leak.Scope{CgroupRoot: "/" + filepath.Base(root)})
	}
	return scopes, nil
}

func (c *Cluster) killAll() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		scopes, err := c.scopes()
		if err != nil {
			return err
		}
		pids := map[int]bool{}
		for _, s := range scopes {
			found, err := leak.Processes(s)
			if err != nil {
				return err
			}
			for _, pid := range found {
				pids[pid] = !zombie(pid) // whoever started it has to reap it
			}
		}
		left := 0
		for pid, alive := range pids {
			if alive {
				left++
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
	}
}

func zombie(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || strings.Contains(string(status), "\nState:\tZ")
}

func (c *Cluster) unmountAll() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, line := range slices.Backward(strings.Split(string(data), "\n")) {
		f := strings.Fields(line)
		if len(f) < 5 || !(strings.HasPrefix(f[4], c.Dir+"/") || strings.HasPrefix(f[4], c.RunDir+"/")) {
			continue
		}
		// What is propagated may be gone with another mount before.
		if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
		}
	}
	return errors.Join(errs...)
}

func (c *Cluster) removeNamespaces() error {
	namespaces, err := filepath.Glob("/run/netns/" + c.name + "-*")
	if err != nil {
		return err
	}
	var errs []error
	for _, ns := range namespaces {
		errs = append(errs, ip("netns del "+filepath.Base(ns)))
	}
	return errors.Join(errs...)
}

// cgroupRoots are the nodes' cgroups, in every hierarchy.
func (c *Cluster) cgroupRoots() ([]string, error) {
	v1, err := filepath.Glob("/sys/fs/cgroup/*/" + c.name + "-*")
	if err != nil {
		return nil, err
	}
	v2, err := filepath.Glob("/sys/fs/cgroup/" + c.name + "-*")
	return append(v1, v2...), err
}

func (c *Cluster) removeCgroups() error {
	roots, err := c.cgroupRoots()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what is not there needs no removal
		})
		errs = append(errs, err)
		for _, dir := range slices.Backward(dirs) {
			if err := removeCgroup(dir); err != nil {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeCgroup waits a moment for the kernel to let go of ended processes.
func removeCgroup(dir string) error {
	for range 100 {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return unix.EBUSY
}

// Left lists what a cluster of this name has on the machine, as Down knows it.
func Left(name string) ([]string, error) {
	c, err := newCluster(Config{Name: name})
	if err != nil {
		return nil, err
	}
	var left []string
	scopes, err := c.scopes()
	if err != nil {
		return nil, err
	}
	for _, s := range scopes {
		pids, err := leak.Processes(s)
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			if !zombie(pid) {
				left = append(left, fmt.Sprintf("process %d", pid))
			}
		}
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, c.Dir+"/") || strings.Contains(line, c.RunDir+"/") {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	for _, pattern := range []string{c.Dir, c.RunDir, "/run/netns/" + c.name + "-*", "/sys/fs/cgroup/" + c.name + "-*", "/sys/fs/cgroup/*/" + c.name + "-*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		left = append(left, found...)
	}
	return left, nil
}
