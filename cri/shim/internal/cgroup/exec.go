package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Exec is a cgroup of its own for the processes of one exec, below the
// container's: whatever the exec starts, however far it detaches itself, is
// found in it and can be killed with it. On version 1 only the freezer's
// hierarchy has it, which limits and accounts for nothing. The zero Exec has
// no cgroup; killing it kills nothing.
type Exec struct {
	dir      string
	argument string
}

// names keeps the cgroups of concurrent execs apart.
var names atomic.Uint64

const (
	killTries = 50
	killPause = 10 * time.Millisecond
)

// NewExec makes the cgroup. pid is the container's first process.
func (g Group) NewExec(pid int) (Exec, error) {
	if g.Dir == "" {
		return Exec{}, nil
	}
	name := "exec-" + strconv.FormatUint(names.Add(1), 10)
	e := Exec{dir: filepath.Join(g.Dir, g.inner, name), argument: name}
	if !isUnified() {
		dir, err := freezerDir(pid)
		if err != nil || dir == "" {
			return Exec{}, err
		}
		e = Exec{dir: filepath.Join(dir, name), argument: "freezer:" + name}
	}
	if err := os.Mkdir(e.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return Exec{}, fmt.Errorf("make a cgroup for the exec: %w", err)
	}
	return e, nil
}

// freezerDir is the container's cgroup in the freezer's hierarchy; empty where
// the host has none.
func freezerDir(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", fmt.Errorf("find the container's cgroup: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && f[1] == "freezer" && f[2] != "/" {
			return filepath.Join(root, "freezer", f[2]), nil
		}
	}
	return "", nil
}

// Dir is the cgroup's directory; empty for the container's own.
func (e Exec) Dir() string { return e.dir }

// Argument is the runtime's --cgroup; empty for the container's own.
func (e Exec) Argument() string { return e.argument }

// Kill ends every process in the cgroup, those included that are being forked
// meanwhile.
func (e Exec) Kill() {
	if e.dir == "" {
		return
	}
	if os.WriteFile(filepath.Join(e.dir, "cgroup.kill"), []byte("1"), 0) == nil {
		return
	}
	for range killTries {
		// Version 1: what is frozen forks no more, and dies when it is thawed.
		e.freezer("FROZEN")
		pids, err := Group{Dir: e.dir}.Processes()
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // ended meanwhile
		}
		e.freezer("THAWED")
		if err != nil || len(pids) == 0 {
			return
		}
		time.Sleep(killPause)
	}
}

// freezer asks for a state of version 1's freezer, which a process that is just
// being started may keep it from reaching: Kill tries again.
func (e Exec) freezer(state string) {
	_ = os.WriteFile(filepath.Join(e.dir, "freezer.state"), []byte(state), 0) // absent in version 2 and where there is no freezer
}

// Remove removes the cgroup. One that still has processes (the exec has left
// some in the background) stays; it goes with the container's.
func (e Exec) Remove() {
	if e.dir != "" {
		_ = os.Remove(e.dir)
	}
}
