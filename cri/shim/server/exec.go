package server

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/cgroup"
	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/wire"
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
	pid       int
	group     cgroup.Exec
	timedOut  bool // guarded by server.mu
}

// exec starts a process and answers with the daemon's ends of its stdio. Its
// exit follows as an event on the same connection.
func (s *server) exec(key execKey, b wire.Exec) (reply, error) {
	c, err := s.lookup(b.ContainerID)
	if err != nil {
		return reply{}, err
	}
	if c.snapshot().Exited {
		return reply{}, notFound(b.ContainerID)
	}
	pipes, err := newExecPipes(b)
	if err != nil {
		return reply{}, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
	}
	var term *console
	child := oci.Stdio{Stdin: uintptr(pipes.child[0]), Stdout: uintptr(pipes.child[1]), Stderr: uintptr(pipes.child[2])}
	if b.Terminal {
		name := fmt.Sprintf("console-%d.sock", key.id)
		if term, err = newConsole(filepath.Join(s.runtime.Dir, name)); err != nil {
			pipes.closeAll()
			return reply{}, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
		}
		defer term.close()
		child.Console = name
	}
	group, err := c.group.NewExec(c.snapshot().Pid)
	if err != nil {
		pipes.closeAll()
		return reply{}, fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
	}
	started, err := s.runtime.Exec(b.ContainerID, b.Process, child, group.Argument())
	pipes.closeChild()
	if err == nil && b.Terminal {
		var master int
		if master, err = term.receive(); err == nil {
			pipes.ours = []int{master}
		} else {
			group.Kill()
		}
	}
	if err != nil {
		pipes.closeAll()
		group.Remove()
		return reply{}, err
	}
	e := &execution{container: c, pid: started.Pid, group: group}
	s.mu.Lock()
	s.execs[key] = e
	s.mu.Unlock()
	follow := func() {
		go func() {
			if b.Timeout > 0 {
				timer := time.AfterFunc(b.Timeout, func() { s.timeOut(e) })
				defer timer.Stop()
			}
			s.execEnded(key, e, (<-started.Exit).Code())
		}()
	}
	return reply{files: pipes.ours, then: follow}, nil
}

// timeOut ends an exec whose time is over, and everything it started.
func (s *server) timeOut(e *execution) {
	s.mu.Lock()
	e.timedOut = true
	s.mu.Unlock()
	s.killExec(e)
}

func (s *server) killExec(e *execution) {
	_ = s.reaper.Signal(e.pid, unix.SIGKILL) // it may have ended by itself
	e.group.Kill()
}

func (s *server) execEnded(key execKey, e *execution, code int) {
	s.mu.Lock()
	timedOut := e.timedOut
	delete(s.execs, key)
	s.mu.Unlock()
	e.group.Remove()
	body, err := json.Marshal(wire.ExecExit{Exec: key.id, ExitCode: code, TimedOut: timedOut})
	if err == nil {
		err = key.conn.Write(wire.Message{Method: wire.EventExecExit, Body: body})
	}
	if err != nil {
		logf("exit of an exec in container %s: %v", e.container.spec.ID, err)
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

func newExecPipes(b wire.Exec) (*execPipes, error) {
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
		var pipe [2]int
		if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
			p.closeAll()
			return nil, fmt.Errorf("make pipe: %w", err)
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
