package usage

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
)

const cgroupMount = "/sys/fs/cgroup"

// Hierarchy is where this host's memory controller is mounted.
type Hierarchy struct {
	Unified bool // cgroup v2
	Mount   string
}

// FindHierarchy looks for the memory controller.
func FindHierarchy() (Hierarchy, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return Hierarchy{Unified: true, Mount: cgroupMount}, nil
	}
	mount, err := cgroups.FindCgroupMountpoint(cgroupMount, "memory")
	if err != nil {
		return Hierarchy{}, fmt.Errorf("find the mount point of the memory controller: %w", err)
	}
	return Hierarchy{Mount: mount}, nil
}

// noLimit: v1 writes the highest number of pages where there is no limit.
const noLimit = 1 << 62

// memory reads a cgroup by its path below the mount point. What does not
// exist uses nothing.
func (h Hierarchy) memory(path string) (Memory, error) {
	names := [3]string{"memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file"}
	if h.Unified {
		names = [3]string{"memory.current", "memory.max", "inactive_file"}
	}
	dir := filepath.Join(h.Mount, path)
	var m Memory
	var err error
	if m.Usage, err = number(filepath.Join(dir, names[0])); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return Memory{}, nil
		}
		return Memory{}, err
	}
	if m.Capacity, err = number(filepath.Join(dir, names[1])); err != nil {
		return Memory{}, err
	}
	if m.Capacity >= noLimit {
		m.Capacity = 0
	}
	idle, err := field(filepath.Join(dir, "memory.stat"), names[2])
	if err != nil {
		return Memory{}, err
	}
	m.WorkingSet = m.Usage - min(idle, m.Usage)
	return m, nil
}

// node is the whole host's memory. The root of v2 does not say what is used:
// what is not free is.
func (h Hierarchy) node(meminfo string) (Memory, error) {
	total, err := field(meminfo, "MemTotal:")
	if err != nil {
		return Memory{}, err
	}
	m := Memory{Capacity: total << 10}
	idleName := "total_inactive_file"
	if h.Unified {
		free, err := field(meminfo, "MemFree:")
		if err != nil {
			return Memory{}, err
		}
		m.Usage, idleName = m.Capacity-min(free<<10, m.Capacity), "inactive_file"
	} else if m.Usage, err = number(filepath.Join(h.Mount, "memory.usage_in_bytes")); err != nil {
		return Memory{}, err
	}
	idle, err := field(filepath.Join(h.Mount, "memory.stat"), idleName)
	if err != nil {
		return Memory{}, err
	}
	m.WorkingSet = m.Usage - min(idle, m.Usage)
	return m, nil
}

// number reads a file of one number; max is noLimit.
func number(file string) (uint64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	s := string(bytes.TrimSpace(text))
	if s == "max" {
		return noLimit, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", file, err)
	}
	return n, nil
}

// field reads the number behind a name that begins a line.
func field(file, name string) (uint64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) >= 2 && words[0] == name {
			n, err := strconv.ParseUint(words[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s of %s: %w", name, file, err)
			}
			return n, nil
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
