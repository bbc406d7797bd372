// Package cgroup reads what the shim must know of a container's cgroup: its
// processes and its OOM kills. The runtime makes and removes the cgroup.
package cgroup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const root = "/sys/fs/cgroup"

// Group is the cgroup of one container. The zero Group has no processes and
// no OOM kills: a container that has no cgroup to itself.
type Group struct {
	// Dir lists the container's processes. Empty: unknown.
	Dir string
	// inner is where the init process is below Dir: crun makes a cgroup
	// inside a scope of systemd. Usually empty.
	inner string
	// memory holds the OOM counter: memory.events in version 2,
	// memory.oom_control in version 1.
	memory string
	// parent holds the counter of the cgroup above, which in version 2 counts
	// for all below it, and before is what it said at first.
	parent string
	before int64
}

// Expect is the cgroup that container id is to have, by its bundle's
// config.json. It is asked before the container runs: one that is killed at once
// may be gone, its cgroup with it, before anybody can look, and what the cgroup
// above has counted until then is of others. A cgroup that is not named for the
// container may be shared with others: it is not taken for the container's.
func Expect(id, bundle string) Group {
	path := configured(bundle)
	if !strings.Contains(filepath.Base(path), id) || !filepath.IsAbs(path) {
		return Group{}
	}
	return groupAt(path, isUnified())
}

// Find is where the container's init process really is, and what was expected
// where that cannot be seen any more. Neither a cgroup named for the container
// nor one inside such a one may be shared with others; any other is not taken
// for the container's.
func (g Group) Find(id string, pid int) Group {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return g
	}
	found := parse(string(text), id, isUnified())
	if found.Dir == "" {
		return g
	}
	if found.parent == g.parent {
		found.before = g.before
	}
	return found
}

func isUnified() bool {
	_, err := os.Stat(root + "/cgroup.controllers")
	return err == nil
}

// parse reads /proc/PID/cgroup. On a version 1 or hybrid host the memory
// controller's hierarchy has both the processes and the counter.
func parse(text, id string, unified bool) Group {
	for line := range strings.Lines(text) {
		// The kernel marks a cgroup that was removed under a process that has ended.
		line = strings.TrimSuffix(strings.TrimSuffix(line, "\n"), " (deleted)")
		fields := strings.SplitN(line, ":", 3)
		if len(fields) != 3 {
			continue
		}
		path, inner, ok := split(fields[2], id)
		if !ok {
			continue
		}
		var g Group
		switch controllers := fields[1]; {
		case unified && controllers == "":
			g = groupAt(path, true)
		case !unified && controllers == "memory":
			g = groupAt(path, false)
		default:
			continue
		}
		g.inner = inner
		return g
	}
	return Group{}
}

// split parts a cgroup's path after the element that names the container.
func split(path, id string) (own, inner string, ok bool) {
	at := strings.LastIndex(path, id)
	if at < 0 {
		return "", "", false
	}
	if end := strings.IndexByte(path[at:], '/'); end >= 0 {
		return path[:at+end], path[at+end+1:], true
	}
	return path, "", true
}

func groupAt(path string, unified bool) Group {
	if !unified {
		dir := filepath.Join(root, "memory", path)
		return Group{Dir: dir, memory: filepath.Join(dir, "memory.oom_control")}
	}
	dir := filepath.Join(root, path)
	g := Group{Dir: dir, memory: filepath.Join(dir, "memory.events"), parent: filepath.Join(filepath.Dir(dir), "memory.events")}
	g.before, _ = oomKills(g.parent) // absent at the root, where it is 0 for ever
	return g
}

// configured is the cgroup's path by the bundle, below the mount point.
func configured(bundle string) string {
	text, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return ""
	}
	var config struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	if json.Unmarshal(text, &config) != nil {
		return ""
	}
	return hostPath(config.Linux.CgroupsPath)
}

// hostPath turns SLICE:PREFIX:NAME, which an OCI runtime has from systemd's
// cgroup driver, into a path: a-b.slice is below a.slice (systemd.slice(5)).
func hostPath(path string) string {
	parts := strings.Split(path, ":")
	if len(parts) != 3 || !strings.HasSuffix(parts[0], ".slice") {
		return path
	}
	above, prefix := "/", ""
	for level := range strings.SplitSeq(strings.TrimSuffix(parts[0], ".slice"), "-") {
		if level == "" {
			continue // -.slice is the root
		}
		prefix += level
		above = filepath.Join(above, prefix+".slice")
		prefix += "-"
	}
	return filepath.Join(above, parts[1]+"-"+parts[2]+".scope")
}

// OOMKilled tells whether the kernel has killed a process of the container for
// want of memory; exitCode is how its init ended.
//
// systemd removes a scope's cgroup as soon as the last process has left it,
// and the counter with it. Then the pod's counter has to tell: it counts the
// kills of the pod's other containers too, so it is believed only of an init
// that SIGKILL ended.
func (g Group) OOMKilled(exitCode int) bool {
	kills, err := oomKills(g.memory)
	if err == nil {
		return kills > 0
	}
	if g.parent == "" || exitCode != 128+int(syscall.SIGKILL) {
		return false
	}
	kills, err = oomKills(g.parent)
	return err == nil && kills > g.before
}

// oomKills reads a counter; the files have one format in both versions.
func oomKills(file string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err // no memory controller, or the cgroup has gone
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			return strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	return 0, nil // a kernel without the counter
}

// ignoreGone takes a cgroup that is not there for an empty one. systemd removes
// a scope's as soon as it is empty; a file that was open then cannot be read any
// more (ENODEV).
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// Processes lists the container's processes in the host's pid namespace,
// those in cgroups that it made itself included.
func (g Group) Processes() ([]int, error) {
	if g.Dir == "" {
		return nil, nil
	}
	var pids []int
	err := filepath.WalkDir(g.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		if !entry.IsDir() {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return ignoreGone(err)
		}
		for field := range bytes.FieldsSeq(text) {
			pid, err := strconv.Atoi(string(field))
			if err != nil {
				return fmt.Errorf("parse %s/cgroup.procs: %w", path, err)
			}
			if pid > 0 { // 0: a process outside our pid namespace
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", g.Dir, err)
	}
	return pids, nil
}
