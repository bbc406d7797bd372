package wire

import (
	"encoding/json"
	"syscall"
	"time"
)

// Method names a request, or says what an event is about.
type Method string

// Requests go from the daemon to the shim; each is answered by one message
// with the same ID.
const (
	MethodInfo      Method = "info"
	MethodRun       Method = "run"
	MethodInit      Method = "init"
	MethodEndInit   Method = "end-init"
	MethodKill      Method = "kill"
	MethodDelete    Method = "delete"
	MethodState     Method = "state"
	MethodExec      Method = "exec"
	MethodExecKill  Method = "exec-kill"
	MethodAttach    Method = "attach"
	MethodResize    Method = "resize"
	MethodReopenLog Method = "reopen-log"
	MethodShutdown  Method = "shutdown"
)

// Events go from the shim to the daemon, unasked; their ID is zero.
const (
	EventExit     Method = "event-exit"      // body: ContainerState
	EventOOM      Method = "event-oom"       // body: ContainerState
	EventExecExit Method = "event-exec-exit" // body: ExecExit
)

// Message is one frame. File descriptors travel beside it.
type Message struct {
	ID     uint64          `json:"id,omitempty"`
	Method Method          `json:"method,omitempty"` // empty in an answer
	Error  *Error          `json:"error,omitempty"`  // set in an answer that is a refusal
	Files  int             `json:"files,omitempty"`  // how many descriptors came along
	Body   json.RawMessage `json:"body,omitempty"`
}

// Error is a refusal as it crosses the socket.
type Error struct {
	Code Code   `json:"code,omitempty"`
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// Code is what a caller may act upon; all else is in the text.
type Code string

// Codes of refusals.
const (
	CodeNotFound Code = "not-found" // no such container or exec, or it has exited
	CodeRunning  Code = "running"   // refused while a container runs
)

// LockFile is the file in a sandbox's directory that the shim and every command
// it runs hold a lock on for as long as they live.
const LockFile = "shim.lock"

// Container is the body of MethodRun.
type Container struct {
	ID      string `json:"id"`
	Bundle  string `json:"bundle"`
	LogPath string `json:"logPath,omitempty"`
	// Checkpoint is the directory of criu's images to restore from.
	Checkpoint string `json:"checkpoint,omitempty"`
	Terminal   bool   `json:"terminal,omitempty"`
	Stdin      bool   `json:"stdin,omitempty"`
	StdinOnce  bool   `json:"stdinOnce,omitempty"`
	// UID and GID of the owner of the pipes.
	UID int `json:"uid,omitempty"`
	GID int `json:"gid,omitempty"`
}

// ContainerState answers MethodRun, is listed by MethodState, and is the
// content of exit.json.
type ContainerState struct {
	ID         string    `json:"id"`
	Pid        int       `json:"pid,omitempty"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	Exited     bool      `json:"exited,omitempty"`
	ExitedAt   time.Time `json:"exitedAt,omitzero"`
	ExitCode   int       `json:"exitCode"`
	OOMKilled  bool      `json:"oomKilled,omitempty"`
	LogDropped int64     `json:"logDropped,omitempty"`
}

// Info answers MethodInfo.
type Info struct {
	Pid int `json:"pid"`
}

// Init is the body of MethodInit; Info answers it.
type Init struct {
	CgroupDirs []string `json:"cgroupDirs,omitempty"`
	// With ID mappings the process is root in a user namespace of its own.
	UIDs []syscall.SysProcIDMap `json:"uids,omitempty"`
	GIDs []syscall.SysProcIDMap `json:"gids,omitempty"`
	// SetUp is an ns.Spec, handed to the process as it is.
	SetUp json.RawMessage `json:"setUp,omitempty"`
}

// Target is the body of the requests that need no more than a container.
type Target struct {
	ID string `json:"id"`
}

// Kill is the body of MethodKill.
type Kill struct {
	ID     string `json:"id"`
	Signal int    `json:"signal"`
	All    bool   `json:"all,omitempty"`
}

// Exec is the body of MethodExec. The exec is known by the request's ID from
// then on. Its answer carries the daemon's ends of the stdio: the pty master,
// or stdin (if asked for), stdout and stderr.
type Exec struct {
	ContainerID string          `json:"containerID"`
	Process     json.RawMessage `json:"process"` // OCI process, handed to the runtime as it is
	// Enter is an enter.Spec of the same process, handed on as it is. With it comes
	// a descriptor of the program that takes it. A shim that does not know of it,
	// or fails with it, has the runtime start Process.
	Enter    json.RawMessage `json:"enter,omitempty"`
	Terminal bool            `json:"terminal,omitempty"`
	Stdin    bool            `json:"stdin,omitempty"`
	Timeout  time.Duration   `json:"timeout,omitempty"`
}

// ExecExit is the body of EventExecExit. It follows the answer to MethodExec
// on the same connection.
type ExecExit struct {
	Exec     uint64 `json:"exec"`
	ExitCode int    `json:"exitCode"`
	TimedOut bool   `json:"timedOut,omitempty"`
}

// ExecKill is the body of MethodExecKill.
type ExecKill struct {
	Exec uint64 `json:"exec"`
}

// Attach is the body of MethodAttach. Attached answers it, with the files it
// names.
type Attach struct {
	ID    string `json:"id"`
	Stdin bool   `json:"stdin,omitempty"`
}

// Attached says which files came with the answer, in this order.
type Attached struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// Resize is the body of MethodResize.
type Resize struct {
	ID     string `json:"id"`
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}
