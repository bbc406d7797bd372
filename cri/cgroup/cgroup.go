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

	"golang.org/x/sys/unix"

	"github.com/moby/sys/mountinfo"
)

// Tree is the cgroup hierarchy of the host: one file system in unified mode,
// one per controller group, and perhaps a unified one beside them, otherwise.
type Tree struct {
	Unified bool
	roots   []string
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
	t := &Tree{}
	for _, m := range mounts {
		t.roots = append(t.roots, m.Mountpoint)
		t.Unified = t.Unified || m.Mountpoint == "/sys/fs/cgroup" && m.FSType == "cgroup2"
	}
	return t, nil
}

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
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return false, fmt.Errorf("create the cgroup %s: %w", path, err)
		}
	}
	return created, nil
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

// Remove removes the cgroup and those below it. Processes still in it are an
// error, and so is nothing else: it is idempotent.
func (t *Tree) Remove(path string) error {
	return t.each(path, func(dir string) error {
		if err := ignoreGone(unix.Rmdir(dir)); err != nil {
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
