package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// RemovePodSandbox removes the sandbox with all its containers, stopping what
// still runs.
func (s *Server) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if errors.Is(err, store.ErrNotFound) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	if err := s.stopSandbox(ctx, sb.ID); err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
	}
	if err := s.removeSandbox(ctx, sb.ID); err != nil {
		return nil, fmt.Errorf("remove sandbox %s: %w", sb.ID, err)
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// removeSandbox removes a sandbox in any state, down to its record, which goes
// last.
func (s *Server) removeSandbox(ctx context.Context, id string) error {
	p := s.pod(id)
	if err := p.op.acquire(ctx); err != nil {
		return err
	}
	defer p.op.release()
	sb, ok := s.sandboxes.Get(id)
	if !ok {
		return nil
	}
	tornDown := sb.State == store.SandboxStopped
	shown := sb.State != store.SandboxCreating
	sb, err := s.sandboxes.Update(id, func(sb *store.Sandbox) error { return sb.Move(store.SandboxRemoving) })
	if err != nil {
		return err
	}
	failpoint.Hit("cri/sandbox-removing")
	if !tornDown {
		if err := s.tearDownSandbox(ctx, sb, p); err != nil {
			return err
		}
	}
	for _, c := range s.containersOf(id) {
		if err := s.removeContainer(ctx, c.ID); err != nil {
			return fmt.Errorf("remove container %s: %w", c.ID, err)
		}
	}
	s.plugins.PodRemoved(ctx, sb)
	if shown {
		s.publish(id, id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
	if err := emptyDirectory(s.sandboxes.Dir(id), store.SandboxFile); err != nil {
		return err
	}
	failpoint.Hit("cri/sandbox-emptied")
	if err := s.sandboxes.Delete(id); err != nil {
		return err
	}
	s.cfg.Labels.Release(sb.SELinux)
	s.forget(id, "")
	s.log.Info("sandbox removed", "sandbox", id, "pod", podName(sb))
	return nil
}

// emptyDirectory removes everything in a directory but one file.
func emptyDirectory(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() == keep {
			continue
		}
		if err := rootfs.RemoveTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
