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
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Sandbox says which shim to start, and where it lives.
type Sandbox struct {
	ID      string
	Dir     string // directory of the sandbox's runtime state; holds shim.sock, shim.json, shim.log
	Binary  string // path of berth-shim
	Runtime Runtime
}

// Runtime is the OCI runtime the shim drives by command line.
type Runtime struct {
	Binary        string        // path of runc, crun, ...
	Root          string        // the runtime's --root
	SystemdCgroup bool          // pass --systemd-cgroup
	Timeout       time.Duration // bound on one runtime command; a hung runtime is killed and reported
}

// Container is what Run starts.
type Container struct {
	ID        string
	Bundle    string // directory with config.json; the shim keeps its per-container files here (init.pid, exit.json)
	LogPath   string // CRI-format log file; empty: output is discarded
	Terminal  bool
	Stdin     bool // keep stdin open until CloseStdin, or until the first attach ends with StdinOnce
	StdinOnce bool
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
}

// ExecResult is the outcome of ExecSync.
type ExecResult struct {
	Stdout, Stderr []byte // each bounded by the CRI's 16 MiB
	ExitCode       int
	TimedOut       bool
}

// Stdio are the caller's ends of an interactive exec or attach. With a
// terminal only Terminal is set; the caller closes what it was given.
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

// The client, to be implemented in client.go:
//
//	func Start(ctx context.Context, s Sandbox) (*Client, error)   // spawn, connect; shim.json = {pid, startTime, bootID}
//	func Connect(ctx context.Context, dir string) (*Client, error) // after a daemon restart; os.ErrNotExist or ErrGone when there is none
//	(*Client) Run(ctx, Container) (ContainerState, error)           // runtime run --detach; an error carries the runtime's own message
//	(*Client) Init(ctx, nsDir string) (pid int, err error)          // minimal init in a new pid namespace, for shared-PID pods; its ns pinned by the caller
//	(*Client) Kill(ctx, containerID string, sig unix.Signal, all bool) error  // ErrNotFound once it exited
//	(*Client) Delete(ctx, containerID string) error                 // runtime delete --force, forget; idempotent
//	(*Client) State(ctx) ([]ContainerState, error)
//	(*Client) ExecSync(ctx, Process) (ExecResult, error)
//	(*Client) Exec(ctx, Process, wantStdin bool) (*Exec, error)     // Exec has Stdio, Resize(w,h), Wait(ctx) (exitCode, error), Kill
//	(*Client) Attach(ctx, containerID string) (Stdio, error)
//	(*Client) Resize(ctx, containerID string, width, height uint16) error
//	(*Client) ReopenLog(ctx, containerID string) error
//	(*Client) Events() <-chan Event                                  // closed after EventGone; replays exits the daemon has not seen acknowledged is NOT needed: State gives them
//	(*Client) Shutdown(ctx) error                                    // ends the shim; refused while a container runs
//	(*Client) Pid() int
//	(*Client) Close() error                                          // drop the connection; the shim lives on
