package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
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
	namespaces, err := c.namespaces()
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

// processes are the cluster's that have not ended. Zombies have: whoever started
// them has to reap them.
func (c *Cluster) processes() ([]int, error) {
	scopes, err := c.scopes()
	if err != nil {
		return nil, err
	}
	alive := map[int]bool{}
	for _, s := range scopes {
		found, err := leak.Processes(s)
		if err != nil {
			return nil, err
		}
		for _, pid := range found {
			if !zombie(pid) {
				alive[pid] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(alive)), nil
}

func zombie(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || strings.Contains(string(status), "\nState:\tZ")
}

func (c *Cluster) killAll() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids, err := c.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	}
}

// mounts are the cluster's mount points, the last mounted first.
func (c *Cluster) mounts() ([]string, error) {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, c.Dir+"/") && !strings.HasPrefix(m.Mountpoint, c.RunDir+"/"), false
	})
	var points []string
	for _, m := range slices.Backward(infos) {
		points = append(points, m.Mountpoint)
	}
	return points, err
}

func (c *Cluster) unmountAll() error {
	points, err := c.mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range points {
		// What was propagated may be gone with another mount before.
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// namespaces are the paths of the hosts' network namespaces.
func (c *Cluster) namespaces() ([]string, error) { return filepath.Glob("/run/netns/" + c.name + "-*") }

func (c *Cluster) removeNamespaces() error {
	namespaces, err := c.namespaces()
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
	pids, err := c.processes()
	errs := []error{err}
	var left []string
	for _, pid := range pids {
		left = append(left, fmt.Sprintf("process %d", pid))
	}
	for _, list := range []func() ([]string, error){c.mounts, c.namespaces, c.cgroupRoots, c.directories} {
		found, err := list()
		left, errs = append(left, found...), append(errs, err)
	}
	return left, errors.Join(errs...)
}

// directories are those of the cluster that are there.
func (c *Cluster) directories() ([]string, error) {
	var there []string
	for _, dir := range []string{c.Dir, c.RunDir} {
		if _, err := os.Lstat(dir); err == nil {
			there = append(there, dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return there, nil
}
