package server

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/cgroup"
	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/reap"
	"github.com/berth-io/berth/cri/shim/internal/wire"
	"github.com/berth-io/berth/internal/failpoint"
)

// execKey names an exec: the request that asked for it.
type execKey struct {
	conn *wire.Conn
	id   uint64
}

// execution is a process beside a container's first one, with all processes
// that it started: they share a cgroup below the container's.
type execution struct {
	container *container

	// Guarded by server.mu; the group does not change once the runtime is called.
	group    cgroup.Exec
	pid      int  // 0: the runtime is still starting it
	killed   bool // before or after it started
	timedOut bool
}

// exec starts a process and answers with the daemon's ends of its stdio. Its
// exit follows as an event on the same connection.
func (s *server) exec(key execKey, b wire.Exec, files []*os.File) (reply, error) {
	c, err := s.lookup(b.ContainerID)
	if err != nil {
		return reply{}, err
	}
	if c.snapshot().Exited {
		return reply{}, notFound(b.ContainerID)
	}
	// It is known from before anything is made: whoever gives up on it, or goes
	// away, ends it even so. Making a cgroup alone may take a while.
	e := &execution{container: c}
	s.mu.Lock()
	here := s.conns[key.conn]
	if here {
		s.execs[key] = e
	}
	s.mu.Unlock()
	if !here {
		return reply{}, fmt.Errorf("exec in container %s: the daemon has gone", b.ContainerID)
	}
	group, err := c.group.NewExec(c.snapshot().Pid)
	s.mu.Lock()
	e.group = group
	if err != nil {
		delete(s.execs, key)
	}
	s.mu.Unlock()
	if err != nil {
		return reply{}, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
	}
	pipes, exit, err := s.startExec(key, e, b, files)
	if err != nil {
		group.Kill() // a runtime that was killed may have got this far
		group.Remove()
		s.mu.Lock()
		delete(s.execs, key)
		s.mu.Unlock()
		return reply{}, err
	}
	follow := func() {
		go func() {
			if b.Timeout > 0 {
				timer := time.AfterFunc(b.Timeout, func() { s.timeOut(e) })
				defer timer.Stop()
			}
			s.execEnded(key, e, (<-exit).Code())
		}()
	}
	return reply{files: pipes.ours, then: follow}, nil
}

// startExec starts the process, by itself or by the runtime. On error no
// descriptor is left.
func (s *server) startExec(key execKey, e *execution, b wire.Exec, files []*os.File) (_ *execPipes, _ <-chan reap.Exit, err error) {
	pipes, err := newExecPipes(b, e.container.spec)
	if err != nil {
		return nil, nil, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
	}
	defer func() {
		pipes.closeChild()
		if err != nil {
			pipes.closeAll()
		}
	}()
	child := oci.Stdio{Stdin: uintptr(pipes.child[0]), Stdout: uintptr(pipes.child[1]), Stderr: uintptr(pipes.child[2])}
	var term *console
	if b.Terminal {
		child.Console = fmt.Sprintf("console-%d.sock", key.id)
		if term, err = newConsole(filepath.Join(s.runtime.Dir, child.Console)); err != nil {
			return nil, nil, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
		}
		defer term.close()
	}
	started, entered := s.enter(e, b, child, files)
	if !entered {
		if started, err = s.runtime.Exec(b.ContainerID, b.Process, child, e.group.Argument()); err != nil {
			return nil, nil, err
		}
	}
	failpoint.Hit("shim/exec-started")
	s.mu.Lock()
	e.pid = started.Pid
	killed := e.killed
	s.mu.Unlock()
	if killed {
		s.killExec(e)
	}
	if b.Terminal {
		master, err := term.receive()
		if err != nil {
			s.killExec(e)
			return nil, nil, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
		}
		pipes.ours = []int{master}
	}
	return pipes, started.Exit, nil
}

// timeOut ends an exec whose time is over, and everything it started.
func (s *server) timeOut(e *execution) {
	s.mu.Lock()
	e.timedOut = true
	s.mu.Unlock()
	s.killExec(e)
}

func (s *server) killExec(e *execution) {
	s.mu.Lock()
	e.killed = true
	pid, group := e.pid, e.group
	s.mu.Unlock()
	_ = s.reaper.Signal(pid, unix.SIGKILL) // it may have ended by itself, or not have started
	group.Kill()
}

func (s *server) execEnded(key execKey, e *execution, code int) {
	s.mu.Lock()
	timedOut, killed := e.timedOut, e.killed
	delete(s.execs, key)
	s.mu.Unlock()
	if killed {
		e.group.Kill() // until it is empty, so that it can be removed
	}
	e.group.Remove()
	body, err := json.Marshal(wire.ExecExit{Exec: key.id, ExitCode: code, TimedOut: timedOut})
	if err == nil {
		err = key.conn.Write(wire.Message{Method: wire.EventExecExit, Body: body})
	}
	if err != nil {
		logf("exit of an exec in container %s: %v", e.container.spec.ID, err)
		_ = key.conn.Close() // its reader notices and cleans up
	}
	s.rest.Reset(quiet)
}

func (s *server) execKill(key execKey) error {
	s.mu.Lock()
	e := s.execs[key]
	s.mu.Unlock()
	if e == nil {
		return &wire.Error{Code: wire.CodeNotFound, Text: "the exec has ended"}
	}
	s.killExec(e)
	return nil
}

// dropExecs ends the execs of a daemon that has gone: nobody can read their
// output or their exit codes any more.
func (s *server) dropExecs(c *wire.Conn) {
	s.mu.Lock()
	var orphans []*execution
	for key, e := range s.execs {
		if key.conn == c {
			orphans = append(orphans, e)
		}
	}
	s.mu.Unlock()
	for _, e := range orphans {
		s.killExec(e)
	}
}

// execPipes are the two sides of an exec's streams.
type execPipes struct {
	child [3]int
	ours  []int // stdin if asked for, stdout, stderr; with a terminal, its master
}

func newExecPipes(b wire.Exec, of wire.Container) (*execPipes, error) {
	p := &execPipes{}
	var err error
	if p.child, err = nullStdio(); err != nil {
		return nil, err
	}
	if b.Terminal {
		return p, nil
	}
	for i := range p.child {
		if i == 0 && !b.Stdin {
			continue
		}
		pipe, err := makePipe(of)
		if err != nil {
			p.closeAll()
			return nil, err
		}
		child, ours := pipe[1], pipe[0]
		if i == 0 {
			child, ours = pipe[0], pipe[1]
		}
		_ = unix.Close(p.child[i])
		p.child[i] = child
		p.ours = append(p.ours, ours)
	}
	return p, nil
}

func (p *execPipes) closeChild() {
	for i, fd := range p.child {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		p.child[i] = -1
	}
}

func (p *execPipes) closeAll() {
	p.closeChild()
	for _, fd := range p.ours {
		_ = unix.Close(fd)
	}
	p.ours = nil
}
