package harness

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-io/berth/tests/leak"
)

// Process is one process of the node.
type Process struct {
	Pid     int
	Start   string // clock ticks since boot, as in /proc/PID/stat: with Pid, the same process
	Program string // base name of its executable
	Args    string
}

// Processes lists the node's processes: daemon, shims and containers.
func (n *Node) Processes() []Process {
	n.t.Helper()
	out, err := ProcessesIn(n.scope())
	if err != nil {
		n.t.Fatalf("list processes: %v", err)
	}
	return out
}

// ProcessesIn lists the processes of a scope.
func ProcessesIn(scope leak.Scope) ([]Process, error) {
	pids, err := leak.Processes(scope)
	if err != nil {
		return nil, err
	}
	var out []Process
	for _, pid := range pids {
		if p, err := ReadProcess(pid); err == nil { // otherwise it has just ended
			out = append(out, p)
		}
	}
	return out, nil
}

// Containers lists those of Processes that run in the pods.
func (n *Node) Containers() []Process {
	n.t.Helper()
	var out []Process
	for _, p := range n.Processes() {
		switch p.Program {
		case "berth", "berth-shim", "runc", "nsenter":
		default:
			out = append(out, p)
		}
	}
	return out
}

// ReadProcess looks at one process of any node.
func ReadProcess(pid int) (Process, error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Process{}, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("%s/stat: %d fields", dir, len(fields))
	}
	exe, err := os.Readlink(dir + "/exe")
	if err != nil {
		return Process{}, err
	}
	args, err := os.ReadFile(dir + "/cmdline")
	if err != nil {
		return Process{}, err
	}
	return Process{
		Pid:     pid,
		Start:   fields[19],
		Program: filepath.Base(strings.TrimSuffix(exe, " (deleted)")),
		Args:    strings.ReplaceAll(string(args), "\x00", " "),
	}, nil
}

// OpenFiles counts the daemon's open file descriptors.
func (n *Node) OpenFiles() int {
	n.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.Pid()))
	if err != nil {
		n.t.Fatalf("open files of the daemon: %v", err)
	}
	return len(fds)
}
