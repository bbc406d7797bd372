package server

import (
	"context"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/shim"
)

// Shim is a sandbox's shim, as shim.Client has it.
type Shim interface {
	ContainerRunner
	Sessions
	Init(ctx context.Context, spec shim.Init) (pid int, err error)
	EndInit(ctx context.Context) error
	Shutdown(ctx context.Context) error
	Pid() int
	Close() error
}

// ContainerRunner runs the containers of the sandbox.
type ContainerRunner interface {
	Run(ctx context.Context, c shim.Container) (shim.ContainerState, error)
	Kill(ctx context.Context, containerID string, sig unix.Signal, all bool) error
	Delete(ctx context.Context, containerID string) error
	State(ctx context.Context) ([]shim.ContainerState, error)
	Events() <-chan *shim.Event
}

// Sessions are processes and streams beside a container's first process.
type Sessions interface {
	ExecSync(ctx context.Context, p shim.Process) (shim.ExecResult, error)
	Exec(ctx context.Context, p shim.Process, wantStdin bool) (Session, error)
	Attach(ctx context.Context, containerID string, stdin bool) (shim.Stdio, error)
	Resize(ctx context.Context, containerID string, width, height uint16) error
	ReopenLog(ctx context.Context, containerID string) error
}

// shimConfig is what a sandbox's shim is started with.
func (s *Server) shimConfig(sandboxID string, r *handler.Runtime) shim.Sandbox {
	return shim.Sandbox{
		ID:      sandboxID,
		Dir:     s.sandboxes.Dir(sandboxID),
		Binary:  s.cfg.ShimBinary,
		Runtime: r.Shim(),
	}
}

// shmDir is the shared memory of a sandbox's containers.
func (s *Server) shmDir(sandboxID string) string {
	return filepath.Join(s.sandboxes.Dir(sandboxID), "shm")
}
