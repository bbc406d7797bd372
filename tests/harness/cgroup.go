package harness

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const cgroupTop = "/sys/fs/cgroup"

// MakeCgroup makes a cgroup in every hierarchy, as an agent does for a pod
// before it asks a runtime for containers in it. The path is from the root.
func MakeCgroup(path string) error {
	tops, err := hierarchies()
	if err != nil {
		return err
	}
	for _, top := range tops {
		// Each level on its own: a cpuset must be given CPUs before it can
		// have children with some.
		for dir := range ancestors(path) {
			if err := os.Mkdir(filepath.Join(top, dir), 0o755); errors.Is(err, os.ErrExist) {
				continue
			} else if err != nil {
				return fmt.Errorf("make cgroup: %w", err)
			}
			if top == cgroupTop {
				continue // an empty cpuset of v2 inherits
			}
			if err := inheritCPUs(filepath.Join(top, dir)); err != nil {
				return err
			}
		}
	}
	return nil
}

// RemoveCgroup removes what MakeCgroup made; nothing may be in it.
func RemoveCgroup(path string) error {
	tops, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, top := range tops {
		if err := unix.Rmdir(filepath.Join(top, path)); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s%s: %w", top, path, err))
		}
	}
	return errors.Join(errs...)
}

// hierarchies are the mounts of cgroup v1, each controller's, or that of v2.
// On a hybrid machine v2 is one of the former.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(cgroupTop + "/cgroup.controllers"); err == nil {
		return []string{cgroupTop}, nil
	}
	entries, err := os.ReadDir(cgroupTop)
	if err != nil {
		return nil, err
	}
	var tops []string
	for _, e := range entries {
		if e.IsDir() { // links name the same hierarchy again
			tops = append(tops, filepath.Join(cgroupTop, e.Name()))
		}
	}
	return tops, nil
}

// ancestors yields /a, /a/b and /a/b/c for /a/b/c.
func ancestors(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := 1; i <= len(path); i++ {
			if (i == len(path) || path[i] == '/') && !yield(path[:i]) {
				return
			}
		}
	}
}

// inheritCPUs gives a new cpuset of cgroup v1, which has no CPUs and no
// memory, what its parent has.
func inheritCPUs(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if errors.Is(err, os.ErrNotExist) {
			continue // another controller
		} else if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), value, 0o644); err != nil {
			return fmt.Errorf("set up cpuset: %w", err)
		}
	}
	return nil
}
