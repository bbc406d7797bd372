package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// StopContainer sends the stop signal, and SIGKILL once the grace is over. The
// shortest grace of several callers counts.
func (s *Server) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	c, err := s.containers.Find(req.GetContainerId())
	if errors.Is(err, store.ErrNotFound) {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, findError("container", req.GetContainerId(), err)
	}
	if err := s.stop(ctx, c.ID, time.Duration(req.GetTimeout())*time.Second); err != nil {
		return nil, fmt.Errorf("stop container %s: %w", c.ID, err)
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// stop returns when the container has exited, or never ran.
func (s *Server) stop(ctx context.Context, id string, grace time.Duration) error {
	t := s.task(id)
	c, ok := s.containers.Get(id)
	if ok && c.State == store.ContainerStarting {
		// What a start leaves can only be told when it is over.
		if err := t.op.acquire(ctx); err != nil {
			return err
		}
		t.op.release()
		c, ok = s.containers.Get(id)
	}
	if !ok || c.State != store.ContainerRunning {
		return nil
	}
	client := s.pod(c.SandboxID).client()
	if client == nil {
		// Its shim was lost, and its end is not recorded yet, or could not be.
		return s.loseContainer(ctx, c)
	}
	if grace > 0 {
		exited, err := s.askToStop(ctx, client, t, c, grace)
		if exited || err != nil {
			return err
		}
	}
	// In a pid namespace of its own, all processes end with the first.
	if err := client.Kill(ctx, id, unix.SIGKILL, !ownPID(c)); err != nil && !errors.Is(err, shim.ErrNotFound) {
		return fmt.Errorf("kill it: %w", err)
	}
	failpoint.Hit("cri/container-killed")
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	select {
	case <-t.exited:
		return nil
	case <-timer.C:
		return fmt.Errorf("process %d does not end, %s after SIGKILL", c.Pid, killTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// askToStop sends the stop signal, once for all callers, and waits.
func (s *Server) askToStop(ctx context.Context, client Shim, t *task, c store.Container, grace time.Duration) (exited bool, err error) {
	if t.signal() {
		sig, err := signalNumber(c.StopSignal)
		if err != nil {
			return false, err
		}
		if err := client.Kill(ctx, c.ID, sig, false); err != nil && !errors.Is(err, shim.ErrNotFound) {
			return false, fmt.Errorf("send it %s: %w", c.StopSignal, err)
		}
		failpoint.Hit("cri/container-signaled")
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-t.exited:
		return true, nil
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
