package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// startErrorCode is the exit code of a container that could not be started;
// that and the reason are what users of other runtimes look for.
const (
	startErrorCode   = 128
	startErrorReason = "StartError"
)

// errUnchanged ends an update that has nothing to write.
var errUnchanged = errors.New("nothing to change")

// StartContainer starts a created container: one run of the OCI runtime, by
// the shim.
func (s *Server) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.containers.Find(req.GetContainerId())
	if err != nil {
		return nil, findError("container", req.GetContainerId(), err)
	}
	_, err = s.join(ctx, "start "+c.ID, func(ctx context.Context) (string, error) {
		return "", s.startContainer(ctx, c.ID)
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (s *Server) startContainer(ctx context.Context, id string) error {
	t := s.task(id)
	if err := t.op.acquire(ctx); err != nil {
		return err
	}
	defer t.op.release()
	c, ok := s.containers.Get(id)
	if !ok {
		return findError("container", id, store.ErrNotFound)
	}
	if c.State == store.ContainerRunning {
		return nil // the answer to an earlier request was lost
	}
	if c.State != store.ContainerCreated {
		return status.Errorf(codes.FailedPrecondition, "container %s is %s: only a created one can be started", id, c.State)
	}
	sb, ok := s.sandboxes.Get(c.SandboxID)
	client := s.pod(c.SandboxID).client()
	if !ok || !sb.Ready() || client == nil {
		return status.Errorf(codes.FailedPrecondition, "sandbox %s is not ready", c.SandboxID)
	}
	tl := newTimeline()
	c, err := s.containers.Update(id, func(c *store.Container) error { return c.Move(store.ContainerStarting) })
	if err != nil {
		return err
	}
	failpoint.Hit("cri/container-starting")
	if err := s.plugins.StartContainer(ctx, sb, c); err != nil {
		return s.startFailed(ctx, c, err)
	}
	uid, gid := hostRoot(sb)
	state, err := client.Run(ctx, shim.Container{
		Checkpoint: c.Checkpoint,
		ID:         c.ID, Bundle: s.containers.Dir(c.ID), LogPath: c.LogPath, UID: uid, GID: gid,
		Terminal: c.Config.GetTty(), Stdin: c.Config.GetStdin(), StdinOnce: c.Config.GetStdinOnce(),
	})
	if err != nil {
		return s.startFailed(ctx, c, err)
	}
	failpoint.Hit("cri/container-started")
	took := time.Since(tl.began)
	c, err = s.containers.Update(id, func(c *store.Container) error {
		c.Pid, c.StartedAt = state.Pid, state.StartedAt
		// Steps count from the creation; the time between is the caller's.
		c.Timeline = append(c.Timeline[:len(c.Timeline):len(c.Timeline)],
			store.Step{Name: "start", Offset: tl.began.Sub(c.CreatedAt), Duration: took})
		return c.Move(store.ContainerRunning)
	})
	if err != nil {
		return err
	}
	s.log.Info("container started", "container", c.ID, "name", c.Config.GetMetadata().GetName(),
		"sandbox", sb.ID, "pod", podName(sb), "pid", state.Pid, "took", took)
	s.plugins.ContainerStarted(ctx, sb, c)
	s.publish(sb.ID, c.ID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return nil
}

// startFailed records why, as the exit of the container: a caller that missed
// the error finds it in the status.
func (s *Server) startFailed(ctx context.Context, c store.Container, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
	defer cancel()
	c, err := s.containers.Update(c.ID, func(c *store.Container) error {
		now := time.Now()
		c.Exit(store.Status{
			StartedAt: now, FinishedAt: now, ExitCode: startErrorCode,
			Reason: startErrorReason, Message: cause.Error(),
		})
		return nil
	})
	s.task(c.ID).end()
	s.tellEnd(ctx, c)
	err = errors.Join(err, s.release(ctx, c.ID))
	s.publish(c.SandboxID, c.ID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	if err != nil {
		cause = errors.Join(cause, fmt.Errorf("undo it: %w", err))
	}
	return fmt.Errorf("start container %s: %w", c.ID, cause)
}
