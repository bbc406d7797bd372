// Package cgroup owns what the runtime does to cgroups itself: making the
// parent of a pod that nobody made one for, and removing what the OCI runtime
// left. Limits, and the cgroups of containers, are the OCI runtime's.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/moby/sys/mountinfo"
)

// Tree is the cgroup hierarchy of the host: one file system in unified mode,
// one per controller group, and perhaps a unified one beside them, otherwise.
type Tree struct {
	Unified bool
	roots   []string
	mounts  map[string]string
}

// Open finds the mounted cgroup file systems.
func Open() (*Tree, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		isCgroup := m.FSType == "cgroup" || m.FSType == "cgroup2"
		return !isCgroup || !strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup"), false
	})
	if err != nil {
		return nil, fmt.Errorf("find the cgroup file systems: %w", err)
	}
	if len(mounts) == 0 {
		return nil, errors.New("no cgroup file system is mounted below /sys/fs/cgroup")
	}
	t := &Tree{mounts: map[string]string{}}
	for _, m := range mounts {
		t.roots = append(t.roots, m.Mountpoint)
		t.Unified = t.Unified || m.Mountpoint == "/sys/fs/cgroup" && m.FSType == "cgroup2"
		if m.FSType == "cgroup2" {
			t.mounts[""] = m.Mountpoint
			continue
		}
		// The options of a hierarchy name its controllers.
		for _, option := range strings.Split(m.VFSOptions, ",") {
			t.mounts[option] = m.Mountpoint
		}
	}
	return t, nil
}

// Mount is where the version 1 hierarchy of a controller is mounted; that of
// version 2 is "". It is empty where there is none.
func (t *Tree) Mount(controller string) string { return t.mounts[controller] }

// Ensure makes the cgroup in every hierarchy. It tells whether none had it.
func (t *Tree) Ensure(path string) (created bool, err error) {
	if err := check(path); err != nil {
		return false, err
	}
	created = true
	for _, root := range t.roots {
		dir := filepath.Join(root, path)
		if _, err := os.Stat(dir); err == nil {
			created = false
			continue
		}
		if err := makeAll(root, path); err != nil {
			return false, fmt.Errorf("create the cgroup %s: %w", path, err)
		}
	}
	return created, nil
}

// Dirs are the directories of a cgroup, one per hierarchy.
func (t *Tree) Dirs(path string) []string {
	var dirs []string
	for _, root := range t.roots {
		dirs = append(dirs, filepath.Join(root, path))
	}
	return dirs
}

// makeAll makes a cgroup and its parents. A cpuset of version 1 takes no
// process before it has CPUs and memory nodes: a new one gets its parent's.
func makeAll(root, path string) error {
	dir := root
	for _, name := range strings.Split(strings.Trim(filepath.Clean("/"+path), "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if filepath.Base(root) != "cpuset" {
			continue
		}
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if err := inherit(filepath.Join(parent, file), filepath.Join(dir, file)); err != nil {
				return err
			}
		}
	}
	return nil
}

func inherit(from, to string) error {
	has, err := os.ReadFile(to)
	if err != nil || len(bytes.TrimSpace(has)) > 0 {
		return err
	}
	value, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, value, 0)
}

// Kill sends SIGKILL to every process in the cgroup and below it.
func (t *Tree) Kill(path string) error {
	return t.each(path, func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err == nil {
			return nil // version 2, since Linux 5.14: nothing can fork away
		}
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for _, field := range bytes.Fields(procs) {
			pid, err := strconv.Atoi(string(field))
			if err != nil || pid <= 0 {
				continue // 0 is a process of another pid namespace
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, path, err)
			}
		}
		return nil
	})
}

// removeTimeout is how long Remove waits for processes that are on their way
// out: the kernel takes one from its cgroup after its parent has seen the end.
const removeTimeout = time.Second

// Remove removes the cgroup and those below it. Processes still in it are an
// error, and so is nothing else: it is idempotent.
func (t *Tree) Remove(path string) error {
	deadline := time.Now().Add(removeTimeout)
	return t.each(path, func(dir string) error {
		err := unix.Rmdir(dir)
		for errors.Is(err, unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
			err = unix.Rmdir(dir)
		}
		if err := ignoreGone(err); err != nil {
			return fmt.Errorf("remove the cgroup %s: %w", dir, err)
		}
		return nil
	})
}

// each visits the cgroup in every hierarchy, children before their parents.
func (t *Tree) each(path string, visit func(dir string) error) error {
	if err := check(path); err != nil {
		return err
	}
	var errs []error
	for _, root := range t.roots {
		errs = append(errs, walk(filepath.Join(root, path), visit))
	}
	return errors.Join(errs...)
}

func walk(dir string, visit func(dir string) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return ignoreGone(err)
	}
	var errs []error
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, walk(filepath.Join(dir, e.Name()), visit))
		}
	}
	return errors.Join(append(errs, visit(dir))...)
}

// check keeps an empty or odd path from naming the root of a hierarchy.
func check(path string) error {
	if clean := filepath.Clean("/" + path); clean == "/" || strings.Contains(path, "..") {
		return fmt.Errorf("cgroup path %q does not name a cgroup below the root", path)
	}
	return nil
}

// ignoreGone: reading a cgroup that goes away gives ENODEV.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// RemoveEmpty removes the cgroup wherever it has no processes and no children,
// and says where it has.
func (t *Tree) RemoveEmpty(path string) error {
	if err := check(path); err != nil {
		return err
	}
	var errs []error
	for _, root := range t.roots {
		errs = append(errs, ignoreGone(unix.Rmdir(filepath.Join(root, path))))
	}
	return errors.Join(errs...)
}
