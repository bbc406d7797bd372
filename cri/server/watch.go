package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// What a container that ended without a witness is reported with; the codes
// are those that users of other runtimes look for.
const (
	unknownExitCode = 255
	reasonUnknown   = "Unknown"
	reasonCompleted = "Completed"
	reasonError     = "Error"
	reasonOOMKilled = "OOMKilled"
)

// watch follows a shim's events until its connection ends.
func (s *Server) watch(sandboxID string, client Shim) {
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		for e := range client.Events() {
			switch e.Kind {
			case shim.EventExit:
				// On its own: a start that is under way holds it up.
				s.goBackground(func(ctx context.Context) { s.containerExited(ctx, e.State) })
			case shim.EventOOM:
				s.log.Warn("out of memory", "container", e.State.ID, "sandbox", sandboxID)
			case shim.EventGone:
				s.shimGone(sandboxID, client)
			}
		}
	}()
}

func (s *Server) containerExited(ctx context.Context, state shim.ContainerState) {
	t := s.task(state.ID)
	if err := t.op.acquire(ctx); err != nil {
		s.log.Error("exit of a container not recorded, a restart will", "container", state.ID, "error", err)
		return
	}
	defer t.op.release()
	if err := s.recordExit(ctx, state.ID, exitStatus(state)); err != nil {
		s.log.Error("exit of a container", "container", state.ID, "error", err)
	}
}

// exitStatus is what the shim saw, in the CRI's words.
func exitStatus(state shim.ContainerState) store.Status {
	st := store.Status{
		StartedAt: state.StartedAt, FinishedAt: state.ExitedAt,
		ExitCode: state.ExitCode, Reason: reasonError,
	}
	switch {
	case state.OOMKilled:
		st.Reason = reasonOOMKilled
	case state.ExitCode == 0:
		st.Reason = reasonCompleted
	}
	if state.LogDropped > 0 {
		st.Message = fmt.Sprintf("%d log lines were lost: the log could not be written", state.LogDropped)
	}
	return st
}

// recordExit writes an exit down, tells of it, and has what the container held
// let go. The caller holds the container's lock.
func (s *Server) recordExit(ctx context.Context, id string, st store.Status) error {
	c, err := s.containers.Update(id, func(c *store.Container) error {
		if !c.Exit(st) {
			return errUnchanged
		}
		return nil
	})
	if errors.Is(err, errUnchanged) || errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	failpoint.Hit("cri/exit-recorded")
	s.task(id).end()
	s.log.Info("container exited", "container", id, "sandbox", c.SandboxID, "exitCode", c.ExitCode, "reason", c.Reason)
	s.publish(c.SandboxID, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	s.tellEnd(ctx, c)
	s.releaseLater(id)
	return nil
}

// releaseLater releases a container that has ended. Nobody waits for it: a
// runtime that hangs over one container must not keep the daemon from its
// others. Where it fails, the container's removal tries again.
func (s *Server) releaseLater(id string) {
	t := s.task(id)
	s.goBackground(func(ctx context.Context) {
		err := t.op.acquire(ctx)
		if err == nil {
			err = s.release(ctx, id)
			t.op.release()
		}
		if err != nil {
			s.log.Error("what an ended container held is not given back, its removal will", "container", id, "error", err)
		}
	})
}

// tellEnd tells plugins of a container's end. What they want of others then is
// done once the caller has let its lock go: two ends could wait for each other.
func (s *Server) tellEnd(ctx context.Context, c store.Container) {
	sb, _ := s.sandboxes.Get(c.SandboxID)
	if then := s.plugins.ContainerStopped(ctx, sb, c); then != nil {
		s.goBackground(then)
	}
}

// shimGone: a shim that ends by itself takes its sandbox with it. Its
// containers are ended too: nobody keeps their logs and exit codes any more.
func (s *Server) shimGone(sandboxID string, client Shim) {
	p := s.pod(sandboxID)
	if s.isClosing() || p.client() != client {
		return // we left, not the shim
	}
	sb, ok := s.sandboxes.Get(sandboxID)
	if !ok || !sb.Ready() {
		return // it was asked to
	}
	s.log.Error("shim ended by itself", "sandbox", sandboxID, "pod", podName(sb), "pid", client.Pid())
	s.goBackground(func(ctx context.Context) { s.loseSandbox(ctx, sandboxID) })
}

// loseSandbox makes a sandbox without a shim not ready and ends its
// containers.
func (s *Server) loseSandbox(ctx context.Context, sandboxID string) {
	p := s.pod(sandboxID)
	if c := p.client(); c != nil {
		p.setShim(nil)
		_ = c.Close() // nothing is lost with the connection
	}
	_, err := s.sandboxes.Update(sandboxID, func(sb *store.Sandbox) error {
		sb.Lost = true
		return sb.Move(store.SandboxStopping)
	})
	if err != nil {
		s.log.Error("lost sandbox", "sandbox", sandboxID, "error", err)
	}
	// All at once: each may wait for the same command of the OCI runtime.
	var ending sync.WaitGroup
	for _, c := range s.containersOf(sandboxID) {
		ending.Go(func() {
			if err := s.loseContainer(ctx, c); err != nil {
				s.log.Error("container of a lost sandbox", "container", c.ID, "sandbox", sandboxID, "error", err)
			}
		})
	}
	ending.Wait()
	s.publish(sandboxID, sandboxID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// loseContainer ends a container that has no shim. What the shim wrote before
// its end is believed; otherwise the exit is unknown.
func (s *Server) loseContainer(ctx context.Context, c store.Container) error {
	t := s.task(c.ID)
	if err := t.op.acquire(ctx); err != nil {
		return err
	}
	defer t.op.release()
	c, ok := s.containers.Get(c.ID)
	if !ok || c.State != store.ContainerRunning && c.State != store.ContainerStarting {
		return nil
	}
	st, written := s.writtenExit(c.ID)
	if !written {
		if err := s.killOrphan(ctx, c); err != nil {
			return err
		}
		st = store.Status{
			StartedAt: c.StartedAt, FinishedAt: time.Now(), ExitCode: unknownExitCode, Reason: reasonUnknown,
			Message: "its shim ended without reporting how the container did",
		}
		if st.StartedAt.IsZero() {
			st.StartedAt = st.FinishedAt // the runtime may know it
		}
	}
	return s.recordExit(ctx, c.ID, st)
}

// writtenExit reads what the shim left in the bundle.
func (s *Server) writtenExit(id string) (store.Status, bool) {
	data, err := os.ReadFile(filepath.Join(s.containers.Dir(id), "exit.json"))
	if err != nil {
		return store.Status{}, false
	}
	var state shim.ContainerState
	if err := json.Unmarshal(data, &state); err != nil || !state.Exited {
		return store.Status{}, false
	}
	return exitStatus(state), true
}

// killOrphan kills what outlived its shim: everything in the container's
// cgroup, and its first process in case the cgroup is shared or gone. The shim
// may have been killed in the middle of a start: what that still made is killed
// with the rest.
func (s *Server) killOrphan(ctx context.Context, c store.Container) error {
	ctx, cancel := context.WithTimeout(ctx, shimTimeout)
	defer cancel()
	if err := s.shims.AwaitOrphans(ctx, s.sandboxes.Dir(c.SandboxID)); err != nil {
		return err
	}
	if err := s.cfg.Cgroups.Kill(c.Cgroup); err != nil {
		return err
	}
	if c.Pid <= 0 || !s.isOurs(c) {
		return nil
	}
	if err := unix.Kill(c.Pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", c.Pid, err)
	}
	return nil
}

// isOurs guards against a process ID that was given to somebody else: the
// container's process is in a cgroup with the container's ID in its name.
func (s *Server) isOurs(c store.Container) bool {
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.Pid))
	return err == nil && containsID(cgroups, c.ID)
}
