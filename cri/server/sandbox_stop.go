package server

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

// StopPodSandbox kills what still runs in the sandbox and takes its network,
// namespaces and shim away. Its record and its containers' stay.
func (s *Server) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if errors.Is(err, store.ErrNotFound) {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	if err := s.stopSandbox(ctx, sb.ID); err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func findError(what, id string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return status.Errorf(codes.NotFound, "%s %q does not exist", what, id)
	}
	return status.Errorf(codes.InvalidArgument, "%s %q: %v", what, id, err)
}

func (s *Server) stopSandbox(ctx context.Context, id string) error {
	p := s.pod(id)
	if err := p.op.acquire(ctx); err != nil {
		return err
	}
	defer p.op.release()
	sb, ok := s.sandboxes.Get(id)
	if !ok || sb.State == store.SandboxStopped || sb.State == store.SandboxRemoving {
		return nil
	}
	if sb.State == store.SandboxCreating {
		return fmt.Errorf("it is being created")
	}
	sb, err := s.sandboxes.Update(id, func(sb *store.Sandbox) error { return sb.Move(store.SandboxStopping) })
	if err != nil {
		return err
	}
	failpoint.Hit("cri/sandbox-stopping")
	if err := s.tearDownSandbox(ctx, sb, p); err != nil {
		return err
	}
	if _, err := s.sandboxes.Update(id, func(sb *store.Sandbox) error { return sb.Move(store.SandboxStopped) }); err != nil {
		return err
	}
	s.log.Info("sandbox stopped", "sandbox", id, "pod", podName(sb))
	s.publish(id, id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// tearDownSandbox undoes setUpSandbox, all of it or as much as there is. The
// caller holds the pod's lock.
func (s *Server) tearDownSandbox(ctx context.Context, sb store.Sandbox, p *pod) error {
	if err := s.killContainers(ctx, sb.ID); err != nil {
		return err
	}
	failpoint.Hit("cri/containers-stopped")
	s.plugins.PodStopped(ctx, sb)
	var parts errgroup.Group
	parts.Go(func() error {
		if sb.HostNetwork() {
			return nil
		}
		if err := s.network.Teardown(ctx, s.networkSandbox(sb)); err != nil {
			return err
		}
		failpoint.Hit("cri/network-down")
		return nil
	})
	parts.Go(func() error { return s.stopShim(ctx, sb.ID, p) })
	if err := parts.Wait(); err != nil {
		return err
	}
	if err := ns.Remove(s.nsDir(sb.ID)); err != nil {
		return err
	}
	failpoint.Hit("cri/namespaces-removed")
	if err := rootfs.Unmount(s.shmDir(sb.ID)); err != nil {
		return err
	}
	if sb.Namespaces().GetPid() == runtimeapi.NamespaceMode_POD {
		initCgroup, err := s.initCgroup(sb)
		if err != nil {
			return err
		}
		// It has ended with its shim, unless the shim was killed.
		if err := s.cfg.Cgroups.Kill(initCgroup); err != nil {
			return err
		}
		if err := s.cfg.Cgroups.Remove(initCgroup); err != nil {
			return err
		}
	}
	if sb.OwnCgroup {
		if err := s.removeOwnCgroup(sb.ID); err != nil {
			return err
		}
	}
	failpoint.Hit("cri/cgroup-removed")
	return nil
}

// removeOwnCgroup removes a sandbox's cgroup, and the parent of all of them
// with the last; that it still has others is the usual case.
func (s *Server) removeOwnCgroup(id string) error {
	if err := s.cfg.Cgroups.Remove(path.Join(ownCgroups, id)); err != nil {
		return err
	}
	if err := s.cfg.Cgroups.RemoveEmpty(ownCgroups); err != nil {
		s.log.Debug("cgroup stays", "cgroup", ownCgroups, "error", err)
	}
	return nil
}

// killContainers ends every container of the sandbox at once and releases it.
func (s *Server) killContainers(ctx context.Context, sandboxID string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, c := range s.containersOf(sandboxID) {
		group.Go(func() error {
			if err := s.stop(ctx, c.ID, 0); err != nil {
				return fmt.Errorf("container %s: %w", c.ID, err)
			}
			t := s.task(c.ID)
			if err := t.op.acquire(ctx); err != nil {
				return err
			}
			defer t.op.release()
			return s.release(ctx, c.ID)
		})
	}
	return group.Wait()
}

func (s *Server) containersOf(sandboxID string) []store.Container {
	return s.containers.Where(func(c store.Container) bool { return c.SandboxID == sandboxID })
}

// stopShim ends the shim; one that does not answer is killed.
func (s *Server) stopShim(ctx context.Context, id string, p *pod) error {
	client := p.client()
	if client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, shimTimeout)
	defer cancel()
	pid := client.Pid()
	if err := client.Shutdown(ctx); err != nil && !errors.Is(err, shim.ErrGone) {
		s.log.Warn("shim does not end, it is killed", "sandbox", id, "pid", pid, "error", err)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill the shim, process %d: %w", pid, err)
		}
	}
	p.setShim(nil) // its connection ends with it
	failpoint.Hit("cri/shim-stopped")
	return nil
}
