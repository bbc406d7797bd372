package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berth-io/berth/cri/network"
	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/internal/failpoint"
)

const (
	// recoverAtOnce bounds how many sandboxes are asked at the same time.
	recoverAtOnce = 32
	// recoverAgain is the pause between attempts at one that does not answer.
	recoverAgain = 5 * time.Second
)

// Restart takes control of what an earlier daemon left, however it ended.
// When it returns, records say what is, what was half done is undone, and what
// nobody knows of is gone. A sandbox that cannot be recovered is reported and
// left for the next restart or for its removal; it never keeps the daemon from
// starting. It must have returned before the server serves.
func (s *Server) Restart(ctx context.Context) error {
	began := time.Now()
	var group errgroup.Group
	group.SetLimit(recoverAtOnce)
	for _, sb := range s.sandboxes.List() {
		group.Go(func() error {
			if err := s.recoverSandbox(ctx, sb); err != nil {
				s.log.Error("sandbox not recovered, tried again soon", "sandbox", sb.ID, "pod", podName(sb), "error", err)
				s.recoverLater(sb.ID)
			}
			return nil
		})
	}
	_ = group.Wait() // each has reported for itself
	failpoint.Hit("cri/sandboxes-recovered")
	// Their shims go before the containers are looked at, which may be alive in them.
	if err := s.sweepSandboxes(ctx); err != nil {
		return err
	}
	for _, c := range s.containers.List() {
		if _, ok := s.sandboxes.Get(c.SandboxID); ok {
			continue
		}
		s.log.Warn("container without a sandbox is removed", "container", c.ID, "sandbox", c.SandboxID)
		if err := s.removeStray(ctx, c); err != nil {
			s.log.Error("container not removed", "container", c.ID, "error", err)
		}
	}
	if err := s.sweep(ctx); err != nil {
		return err
	}
	failpoint.Hit("cri/swept")
	if err := s.network.GC(ctx, s.liveNetworks()); err != nil {
		s.log.Warn("networks of sandboxes that are gone", "error", err)
	}
	s.log.Info("in control", "sandboxes", len(s.sandboxes.List()), "containers", len(s.containers.List()), "took", time.Since(began))
	return nil
}

// recoverLater goes on trying to recover a sandbox whose shim does not answer,
// because the machine is busy or the shim is stopped. Until then its containers
// are left as they are.
func (s *Server) recoverLater(id string) {
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		for {
			select {
			case <-s.closing:
				return
			case <-time.After(recoverAgain):
			}
			sb, ok := s.sandboxes.Get(id)
			if !ok || s.pod(id).client() != nil {
				return
			}
			err := s.recoverSandbox(context.Background(), sb)
			if err == nil {
				s.log.Info("sandbox recovered", "sandbox", id)
				return
			}
			s.log.Warn("sandbox still not recovered", "sandbox", id, "error", err)
		}
	}()
}

// recoverSandbox brings one sandbox's record and its reality together.
func (s *Server) recoverSandbox(ctx context.Context, sb store.Sandbox) error {
	for _, c := range s.containersOf(sb.ID) {
		if err := s.retainImage(c); err != nil {
			s.log.Warn("image layers of a container", "container", c.ID, "error", err)
		}
	}
	if sb.BootID != s.cfg.BootID {
		return s.forgetAfterReboot(ctx, sb)
	}
	client, err := s.reconnect(ctx, sb.ID)
	if err != nil {
		return err
	}
	switch sb.State {
	case store.SandboxCreating, store.SandboxRemoving:
		// Nobody was told that it is there, or that it is gone.
		if err := s.recoverContainers(ctx, sb, client); err != nil {
			return err
		}
		return s.removeSandbox(ctx, sb.ID)
	case store.SandboxStopped:
		return s.recoverContainers(ctx, sb, client)
	}
	if err := s.recoverContainers(ctx, sb, client); err != nil {
		return err
	}
	if sb.State == store.SandboxReady && (client == nil || !s.namespacesPinned(sb)) {
		s.log.Error("sandbox lost its shim or its namespaces", "sandbox", sb.ID, "pod", podName(sb), "shim", client != nil)
		s.loseSandbox(ctx, sb.ID)
		return nil
	}
	if client != nil {
		s.watch(sb.ID, client)
	}
	return nil
}

func (s *Server) retainImage(c store.Container) error {
	var errs []error
	for _, chain := range append([]string{c.ChainID}, c.VolumeChains...) {
		if chain != "" {
			errs = append(errs, s.images.Retain(chain, c.ID))
		}
	}
	return errors.Join(errs...)
}

// reconnect returns nil without an error when there is no shim any more.
func (s *Server) reconnect(ctx context.Context, sandboxID string) (Shim, error) {
	if client := s.pod(sandboxID).client(); client != nil {
		return client, nil
	}
	ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
	defer cancel()
	client, err := s.shims.Connect(ctx, s.sandboxes.Dir(sandboxID))
	switch {
	case err == nil:
		s.pod(sandboxID).setShim(client)
		return client, nil
	case errors.Is(err, os.ErrNotExist), errors.Is(err, shim.ErrGone):
		return nil, nil
	}
	return nil, fmt.Errorf("reach the shim: %w", err)
}

// namespacesPinned tells whether the sandbox still has what createNamespaces
// and startShim made.
func (s *Server) namespacesPinned(sb store.Sandbox) bool {
	dir := s.nsDir(sb.ID)
	if !sb.HostNetwork() && !ns.Pinned(ns.Path(dir, ns.Net)) {
		return false
	}
	return sb.UserNamespace() == nil || ns.Pinned(ns.Path(dir, ns.User))
}

// recoverContainers compares the containers with what the shim says, or with
// what it left when it is gone.
func (s *Server) recoverContainers(ctx context.Context, sb store.Sandbox, client Shim) error {
	known := map[string]shim.ContainerState{}
	if client != nil {
		ctx, cancel := context.WithTimeout(ctx, recoveryTimeout)
		defer cancel()
		states, err := client.State(ctx)
		if err != nil {
			return fmt.Errorf("ask the shim for its containers: %w", err)
		}
		for _, st := range states {
			known[st.ID] = st
		}
	}
	// All at once: without a shim, each may wait for the same command of the
	// OCI runtime.
	var recovering sync.WaitGroup
	for _, c := range s.containersOf(sb.ID) {
		st, there := known[c.ID]
		delete(known, c.ID)
		recovering.Go(func() {
			if err := s.recoverContainer(ctx, c, client, st, there); err != nil {
				s.log.Error("container not recovered", "container", c.ID, "sandbox", sb.ID, "error", err)
			}
		})
	}
	recovering.Wait()
	for id := range known {
		s.log.Warn("container without a record is removed", "container", id, "sandbox", sb.ID)
		if err := client.Delete(ctx, id); err != nil {
			return fmt.Errorf("remove container %s: %w", id, err)
		}
	}
	return nil
}

func (s *Server) recoverContainer(ctx context.Context, c store.Container, client Shim, st shim.ContainerState, there bool) error {
	switch c.State {
	case store.ContainerCreating, store.ContainerRemoving:
		return s.removeContainer(ctx, c.ID)
	case store.ContainerCreated:
		return nil
	case store.ContainerExited:
		s.task(c.ID).end()
		s.releaseLater(c.ID)
		return nil
	}
	if client == nil {
		return s.loseContainer(ctx, c)
	}
	if !there {
		return s.recoverUnknown(ctx, c)
	}
	if c.State == store.ContainerStarting {
		var err error
		if c, err = s.containers.Update(c.ID, func(c *store.Container) error {
			c.Pid, c.StartedAt = st.Pid, st.StartedAt
			return c.Move(store.ContainerRunning)
		}); err != nil {
			return err
		}
	}
	if st.Exited {
		return s.recordExit(ctx, c.ID, exitStatus(st))
	}
	return nil
}

// recoverUnknown is for a container that was to be started, or ran, and that
// its shim does not know: an interrupted start can be asked for again, an
// interrupted clean-up after an exit has left the exit in the bundle.
func (s *Server) recoverUnknown(ctx context.Context, c store.Container) error {
	if _, written := s.writtenExit(c.ID); written || c.State == store.ContainerRunning {
		return s.loseContainer(ctx, c)
	}
	if err := s.deleteFromRuntime(ctx, c); err != nil {
		return err
	}
	_, err := s.containers.Update(c.ID, func(c *store.Container) error { return c.Move(store.ContainerCreated) })
	return err
}

// forgetAfterReboot: no process, mount or namespace has outlived the kernel;
// leases and writable layers have, and records where RunDir is on a disk.
func (s *Server) forgetAfterReboot(ctx context.Context, sb store.Sandbox) error {
	s.log.Info("sandbox of an earlier boot is removed", "sandbox", sb.ID, "pod", podName(sb))
	for _, c := range s.containersOf(sb.ID) {
		if err := s.removeStray(ctx, c); err != nil {
			return err
		}
	}
	if !sb.HostNetwork() {
		if err := s.network.Teardown(ctx, s.networkSandbox(sb)); err != nil {
			return err
		}
	}
	if err := ns.Remove(s.nsDir(sb.ID)); err != nil {
		return err
	}
	if err := rootfs.Unmount(s.shmDir(sb.ID)); err != nil {
		return err
	}
	if err := s.removeOwnCgroup(sb.ID); err != nil {
		return err
	}
	if err := emptyDirectory(s.sandboxes.Dir(sb.ID), store.SandboxFile); err != nil {
		return err
	}
	if err := s.sandboxes.Delete(sb.ID); err != nil {
		return err
	}
	s.cfg.Labels.Release(sb.SELinux)
	return nil
}

// removeStray removes a container whose sandbox is not there to ask.
func (s *Server) removeStray(ctx context.Context, c store.Container) error {
	if c.State == store.ContainerRunning || c.State == store.ContainerStarting {
		if err := s.loseContainer(ctx, c); err != nil {
			return err
		}
	}
	return s.removeContainer(ctx, c.ID)
}

// sweepSandboxes removes what is left of sandboxes without a record: from before
// its first write, after its removal, or of one that was unreadable.
func (s *Server) sweepSandboxes(ctx context.Context) error {
	orphans, err := s.sandboxes.Orphans()
	if err != nil {
		return err
	}
	for _, id := range orphans {
		if err := s.sweepSandbox(ctx, id); err != nil {
			s.log.Error("remains of a sandbox", "sandbox", id, "error", err)
		}
	}
	return nil
}

// sweep does the same for containers, namespaces, and layers of earlier boots.
func (s *Server) sweep(ctx context.Context) error {
	orphans, err := s.containers.Orphans()
	if err != nil {
		return err
	}
	for _, id := range orphans {
		if err := s.sweepContainer(ctx, id); err != nil {
			s.log.Error("remains of a container", "container", id, "error", err)
		}
	}
	return errors.Join(
		sweepDirectory(filepath.Join(s.cfg.RunDir, "ns"), s.sandboxes, ns.Remove),
		sweepDirectory(s.layersDir(), s.containers, rootfs.RemoveDir),
	)
}

func (s *Server) sweepSandbox(ctx context.Context, id string) error {
	client, err := s.reconnect(ctx, id)
	if err != nil {
		return err
	}
	if client != nil {
		states, err := client.State(ctx)
		if err != nil {
			return err
		}
		for _, st := range states {
			if err := client.Delete(ctx, st.ID); err != nil {
				return err
			}
		}
		if err := s.stopShim(ctx, id, s.pod(id)); err != nil {
			return err
		}
	}
	defer s.forget(id, "")
	if err := s.network.Teardown(ctx, network.Sandbox{ID: id}); err != nil {
		return err
	}
	if err := ns.Remove(s.nsDir(id)); err != nil {
		return err
	}
	if err := rootfs.Unmount(s.shmDir(id)); err != nil {
		return err
	}
	if err := s.removeOwnCgroup(id); err != nil {
		return err
	}
	return rootfs.RemoveTree(s.sandboxes.Dir(id))
}

func (s *Server) sweepContainer(ctx context.Context, id string) error {
	if err := s.runtimeDelete(ctx, id); err != nil {
		return err
	}
	if err := s.unmountImages(id); err != nil {
		return err
	}
	if err := s.layer(id).Remove(); err != nil {
		return err
	}
	return rootfs.RemoveTree(s.containers.Dir(id))
}

// sweepDirectory removes the entries of a directory that no record names.
func sweepDirectory[T store.Record](dir string, table *store.Table[T], remove func(string) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	var errs []error
	for _, e := range entries {
		if _, known := table.Get(e.Name()); !known {
			errs = append(errs, remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) liveNetworks() []network.Sandbox {
	var live []network.Sandbox
	for _, sb := range s.sandboxes.List() {
		if !sb.HostNetwork() && sb.State != store.SandboxStopped {
			live = append(live, s.networkSandbox(sb))
		}
	}
	return live
}
