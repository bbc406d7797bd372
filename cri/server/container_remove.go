package server

import (
	"context"
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// RemoveContainer removes a container, killing it when it runs.
func (s *Server) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	c, err := s.containers.Find(req.GetContainerId())
	if errors.Is(err, store.ErrNotFound) {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, findError("container", req.GetContainerId(), err)
	}
	if err := s.removeContainer(ctx, c.ID); err != nil {
		return nil, fmt.Errorf("remove container %s: %w", c.ID, err)
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// removeContainer removes a container in any state, down to its record, which
// goes last.
func (s *Server) removeContainer(ctx context.Context, id string) error {
	if err := s.stop(ctx, id, 0); err != nil {
		return err
	}
	t := s.task(id)
	if err := t.op.acquire(ctx); err != nil {
		return err
	}
	defer t.op.release()
	c, ok := s.containers.Get(id)
	if !ok {
		return nil
	}
	shown := c.State != store.ContainerCreating
	c, err := s.containers.Update(id, func(c *store.Container) error { return c.Move(store.ContainerRemoving) })
	if err != nil {
		return err
	}
	failpoint.Hit("cri/container-removing")
	if err := s.release(ctx, id); err != nil {
		return err
	}
	if err := s.unmountImages(id); err != nil {
		return err
	}
	if err := s.layer(id).Remove(); err != nil {
		return err
	}
	failpoint.Hit("cri/layer-removed")
	if err := s.images.Release(ctx, id); err != nil {
		return fmt.Errorf("release its image: %w", err)
	}
	sb, _ := s.sandboxes.Get(c.SandboxID)
	if then := s.plugins.ContainerRemoved(ctx, sb, c); then != nil {
		s.goBackground(then)
	}
	if err := emptyDirectory(s.containers.Dir(id), store.ContainerFile); err != nil {
		return err
	}
	failpoint.Hit("cri/bundle-removed")
	if err := s.containers.Delete(id); err != nil {
		return err
	}
	s.cfg.Labels.Release(c.SELinux)
	s.forget("", id)
	s.log.Info("container removed", "container", id, "sandbox", c.SandboxID)
	if shown {
		s.publish(c.SandboxID, id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	return nil
}

// release takes what a container that does not run any more still has in the
// OCI runtime, its cgroup and its root mount. The caller holds the container's
// lock. It is idempotent.
func (s *Server) release(ctx context.Context, id string) error {
	c, ok := s.containers.Get(id)
	if !ok || c.Released {
		return nil
	}
	switch c.State {
	case store.ContainerExited, store.ContainerRemoving:
	default:
		return nil // created: the root mount is still wanted
	}
	if !c.StartedAt.IsZero() {
		if err := s.deleteFromRuntime(ctx, c); err != nil {
			return err
		}
		failpoint.Hit("cri/runtime-deleted")
		if err := s.cfg.Cgroups.Remove(c.Cgroup); err != nil {
			return err
		}
	}
	if err := s.unmountImages(id); err != nil {
		return err
	}
	if err := s.layer(id).Unmount(); err != nil {
		return err
	}
	failpoint.Hit("cri/container-unmounted")
	_, err := s.containers.Update(id, func(c *store.Container) error {
		c.Released = true
		return nil
	})
	return err
}

// deleteFromRuntime goes through the shim, or past it when it is gone.
func (s *Server) deleteFromRuntime(ctx context.Context, c store.Container) error {
	if client := s.pod(c.SandboxID).client(); client != nil {
		err := client.Delete(ctx, c.ID)
		if err == nil || !errors.Is(err, shim.ErrGone) {
			return err
		}
	}
	if err := s.killOrphan(ctx, c); err != nil {
		return err
	}
	if sb, ok := s.sandboxes.Get(c.SandboxID); ok {
		if _, err := s.runtimeOf(sb); err != nil {
			return err
		}
	}
	return s.runtimeDelete(ctx, c.ID)
}
