package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/cgroup"
	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/reap"
	"github.com/berth-io/berth/cri/shim/internal/wire"
	"github.com/berth-io/berth/internal/failpoint"
)

const (
	// drainPatience bounds how long an exit is held back for output that is
	// still in the container's pipes.
	drainPatience = 2 * time.Second
	// deleteWait bounds how long a deleted container may take to be reaped.
	deleteWait = 10 * time.Second
)

// container is one container from its start to its deletion.
type container struct {
	spec  wire.Container
	io    *stdio
	group cgroup.Group
	done  chan struct{} // closed when the exit was recorded

	mu    sync.Mutex
	state wire.ContainerState
}

func (c *container) snapshot() wire.ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.state
	st.LogDropped = c.io.dropped()
	return st
}

func notFound(id string) error {
	return &wire.Error{Code: wire.CodeNotFound, Text: "container " + id + " does not run"}
}

// lookup returns a container that has started.
func (s *server) lookup(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil || c.snapshot().Pid == 0 {
		return nil, notFound(id)
	}
	return c, nil
}

func (s *server) state() []wire.ContainerState {
	s.mu.Lock()
	list := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		list = append(list, c)
	}
	s.mu.Unlock()
	states := make([]wire.ContainerState, 0, len(list))
	for _, c := range list {
		states = append(states, c.snapshot())
	}
	slices.SortFunc(states, func(a, b wire.ContainerState) int { return strings.Compare(a.ID, b.ID) })
	return states
}

// run makes and starts a container.
func (s *server) run(spec wire.Container) (wire.ContainerState, error) {
	c := &container{spec: spec, done: make(chan struct{}), state: wire.ContainerState{ID: spec.ID}}
	var err error
	if c.io, err = newStdio(spec, &s.buffers); err != nil {
		return wire.ContainerState{}, fmt.Errorf("stdio of container %s: %w", spec.ID, err)
	}
	s.mu.Lock()
	_, exists := s.containers[spec.ID]
	if !exists {
		s.containers[spec.ID] = c
	}
	s.mu.Unlock()
	if exists {
		c.io.close()
		return wire.ContainerState{}, fmt.Errorf("container %s was started already", spec.ID)
	}
	expected := cgroup.Expect(spec.ID, spec.Bundle)
	started, err := s.start(c)
	if err != nil {
		s.forget(c)
		return wire.ContainerState{}, err
	}
	failpoint.Hit("shim/container-started")
	now := time.Now()
	c.group = expected.Find(spec.ID, started.Pid)
	c.mu.Lock()
	c.state.Pid, c.state.StartedAt = started.Pid, now
	c.mu.Unlock()
	go s.await(c, started.Exit)
	return c.snapshot(), nil
}

func (s *server) start(c *container) (oci.Started, error) {
	child, err := c.io.child(c.spec.Bundle)
	if err != nil {
		return oci.Started{}, fmt.Errorf("stdio of container %s: %w", c.spec.ID, err)
	}
	run := s.runtime.Run
	if c.spec.Checkpoint != "" {
		run = func(id, bundle string, stdio oci.Stdio) (oci.Started, error) {
			return s.runtime.Restore(id, bundle, c.spec.Checkpoint, stdio)
		}
	}
	started, err := run(c.spec.ID, c.spec.Bundle, child)
	if err == nil {
		err = c.io.started()
		if err != nil {
			err = fmt.Errorf("terminal of container %s: %w", c.spec.ID, err)
		}
	}
	c.io.closeChild()
	if err != nil {
		// A runtime that failed half-way, or was killed, may have left a
		// container behind.
		return oci.Started{}, errors.Join(err, s.runtime.Delete(c.spec.ID, true))
	}
	return started, nil
}

// forget drops a container that is gone.
func (s *server) forget(c *container) {
	s.mu.Lock()
	delete(s.containers, c.spec.ID)
	s.mu.Unlock()
	c.io.close()
}

// await records a container's end: first on disk, then to the daemon.
func (s *server) await(c *container, exited <-chan reap.Exit) {
	exit := <-exited
	oom := c.group.OOMKilled(exit.Code())
	c.io.drain(drainPatience)
	c.mu.Lock()
	c.state.Exited, c.state.ExitedAt = true, exit.At
	c.state.ExitCode, c.state.OOMKilled = exit.Code(), oom
	c.mu.Unlock()
	st := c.snapshot()
	if err := writeExit(c.spec.Bundle, st); err != nil {
		logf("container %s: %v (its exit code is lost if this shim ends)", st.ID, err)
	}
	failpoint.Hit("shim/exit-recorded")
	close(c.done)
	if oom {
		s.broadcast(wire.EventOOM, st)
	}
	s.broadcast(wire.EventExit, st)
	s.rest.Reset(quiet)
}

// ExitFile is the file in a bundle that holds the container's last state.
const ExitFile = "exit.json"

// writeExit replaces the file in one step. It lives as long as the boot, so
// that nothing has to reach the disk.
func writeExit(bundle string, st wire.ContainerState) error {
	text, err := json.Marshal(st)
	if err != nil {
		return err
	}
	path := filepath.Join(bundle, ExitFile)
	if err := os.WriteFile(path+".tmp", text, 0o600); err != nil {
		return fmt.Errorf("record the exit: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("record the exit: %w", err)
	}
	return nil
}

// kill signals a container's first process, or all of its processes. No fork.
func (s *server) kill(b wire.Kill) error {
	c, err := s.lookup(b.ID)
	if err != nil {
		return err
	}
	sig, first := syscall.Signal(b.Signal), c.snapshot().Pid
	err = s.reaper.Signal(first, sig)
	if err != nil && err != syscall.ESRCH {
		return fmt.Errorf("signal container %s: %w", b.ID, err)
	}
	gone := err == syscall.ESRCH
	if !b.All {
		if gone {
			return notFound(b.ID)
		}
		return nil
	}
	pids, err := c.group.Processes()
	if err != nil {
		return fmt.Errorf("signal container %s: %w", b.ID, err)
	}
	for _, pid := range pids {
		if pid == first { // a second SIGTERM is an order to hurry to many
			continue
		}
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d of container %s: %w", pid, b.ID, err)
		}
	}
	if gone && len(pids) == 0 {
		return notFound(b.ID)
	}
	return nil
}

// delete ends a container, if it still runs, and removes all that is kept of
// it, here and by the runtime. A container that is not there is deleted.
func (s *server) delete(id string) error {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c == nil || c.snapshot().Pid == 0 {
		return s.runtime.Delete(id, true)
	}
	if err := s.endAll(c); err != nil {
		return err
	}
	err := s.runtime.Delete(id, false)
	if err != nil { // whatever it is that the runtime still sees
		err = s.runtime.Delete(id, true)
	}
	if err != nil {
		return err
	}
	failpoint.Hit("shim/container-deleted")
	s.forget(c)
	return nil
}

// endAll kills every process of a container and waits for their end. One that
// has a pid namespace of its own has none left once its first process is gone.
func (s *server) endAll(c *container) error {
	deadline := time.Now().Add(deleteWait)
	if err := s.reaper.Signal(c.snapshot().Pid, unix.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("kill container %s: %w", c.spec.ID, err)
	}
	select {
	case <-c.done:
	case <-time.After(time.Until(deadline)):
		return fmt.Errorf("kill container %s: its first process did not end within %v", c.spec.ID, deleteWait)
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		pids, err := c.group.Processes()
		if err != nil {
			return fmt.Errorf("kill container %s: %w", c.spec.ID, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill container %s: processes %v did not end within %v", c.spec.ID, pids, deleteWait)
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill process %d of container %s: %w", pid, c.spec.ID, err)
			}
		}
		time.Sleep(pause)
	}
}

func (s *server) reopenLog(id string) error {
	c, err := s.lookup(id)
	if err != nil {
		return err
	}
	return c.io.reopenLog()
}

func (s *server) resize(b wire.Resize) error {
	c, err := s.lookup(b.ID)
	if err != nil {
		return err
	}
	return c.io.resize(b.Width, b.Height)
}

func (s *server) attach(b wire.Attach) (reply, error) {
	c, err := s.lookup(b.ID)
	if err != nil {
		return reply{}, err
	}
	if c.snapshot().Exited {
		return reply{}, notFound(b.ID)
	}
	which, files, err := c.io.attach(b.Stdin)
	if err != nil {
		return reply{}, fmt.Errorf("attach to container %s: %w", b.ID, err)
	}
	return reply{body: which, files: files}, nil
}
