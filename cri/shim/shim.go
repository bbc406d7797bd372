// Package shim is the daemon's side of the per-pod shim: it starts one
// berth-shim process per sandbox, finds it again after a daemon restart, and
// speaks to it over a unix socket.
//
// The shim itself (cri/shim/internal/..., cmd/berth-shim) is the subreaper and
// parent of the sandbox's containers: it runs the OCI runtime, owns stdio, log
// files, exit codes, exec sessions and OOM events, and outlives the daemon.
package shim

import (
	"os"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/shim/enter"
)

// Sandbox says which shim to start, and where it lives.
type Sandbox struct {
	ID      string
	Dir     string // directory of the sandbox's runtime state; holds shim.sock, shim.log and what one command needs
	Binary  string // path of berth-shim
	Runtime Runtime
}

// Runtime is the OCI runtime the shim drives by command line.
type Runtime struct {
	Binary        string        // path of runc, crun, ...
	Root          string        // the runtime's --root
	SystemdCgroup bool          // pass --systemd-cgroup
	Args          []string      // more global flags, such as --debug
	Timeout       time.Duration // bound on one runtime command; a hung runtime is killed and reported
}

// Container is what Run starts.
type Container struct {
	ID      string
	Bundle  string // directory with config.json; the shim keeps its per-container files here (init.pid, exit.json)
	LogPath string // CRI-format log file; empty: output is discarded
	// Checkpoint is the directory of criu's images that the container is
	// restored from; empty: it starts from its beginning.
	Checkpoint string
	Terminal   bool
	Stdin      bool // keep stdin open, or with StdinOnce until the first attach ends
	StdinOnce  bool
	// UID and GID own the pipes of the container's streams and of its execs,
	// as numbers of the host: in a user namespace nobody may give away what
	// belongs to the host's root, and /dev/stdout could not be opened.
	UID, GID int
}

// Init is the first process of a sandbox's shared pid namespace, or of its
// user namespace.
type Init struct {
	CgroupDirs []string // to join
	// UIDs and GIDs, when there are any, give it a user namespace, in which it
	// is root.
	UIDs, GIDs []syscall.SysProcIDMap
	// SetUp says what to set up in its namespaces. It is for a process with a
	// user namespace: the namespaces of another are nobody's.
	SetUp *ns.Spec
}

// ContainerState is the shim's knowledge of one container. It is also what the
// shim writes to BUNDLE/exit.json when the container ends, before it tells
// anyone, so that an exit code survives the shim.
type ContainerState struct {
	ID         string
	Pid        int // init process in the host's pid namespace; 0 before the start
	StartedAt  time.Time
	Exited     bool
	ExitedAt   time.Time
	ExitCode   int // 128+signal for a process ended by a signal
	OOMKilled  bool
	LogDropped int64 // log lines lost to a full disk or a bad log path
}

// Process is what Exec and ExecSync start in a container.
type Process struct {
	ContainerID string
	Spec        specs.Process
	// Timeout ends every process the exec started; zero means none.
	Timeout time.Duration
	// Enter, if there is one, says how to start it without the OCI runtime. Sealed
	// is what does that then, enter.Seal's; it stays the caller's.
	Enter  *enter.Spec
	Sealed *os.File
}

// ExecResult is the outcome of ExecSync.
type ExecResult struct {
	Stdout, Stderr []byte // each bounded by the CRI's 16 MiB
	ExitCode       int
	TimedOut       bool
}

// Stdio are the caller's ends of an exec or attach, which the caller closes. An
// exec with a terminal has only Terminal. Attached to a container with one,
// Stdin is its input and Stdout a copy of its output: others may read it too.
type Stdio struct {
	Stdin, Stdout, Stderr *os.File
	Terminal              *os.File // pty master
}

// Event is sent by the shim without being asked.
type Event struct {
	Kind  EventKind
	State ContainerState // valid for Exit and OOM
}

// EventKind tells what happened.
type EventKind string

const (
	EventExit EventKind = "exit"
	EventOOM  EventKind = "oom"
	// EventGone is made by the client when the shim closed the connection:
	// it has ended, by Shutdown or otherwise. It is the last event.
	EventGone EventKind = "gone"
)
