package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/atomicwriter"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// UpdateContainerResources changes the limits of a container that runs, or is
// to be started. What the request leaves at zero stays as it is, and so does
// everything when it fails.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, err := s.containers.Find(req.GetContainerId())
	if err != nil {
		return nil, findError("container", req.GetContainerId(), err)
	}
	if err := checkUpdatable(c); err != nil {
		return nil, err
	}
	sb, ok := s.sandboxes.Get(c.SandboxID)
	if !ok {
		return nil, findError("sandbox", c.SandboxID, store.ErrNotFound)
	}
	// Without a lock: plugins may change other containers first.
	change, err := s.plugins.UpdateContainer(ctx, sb, c, req.GetLinux())
	if err != nil {
		return nil, err
	}
	if c, err = s.changeLimits(ctx, c.ID, change); err != nil {
		return nil, err
	}
	s.plugins.ContainerUpdated(ctx, sb, c)
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func checkUpdatable(c store.Container) error {
	if c.State != store.ContainerRunning && c.State != store.ContainerCreated {
		return status.Errorf(codes.FailedPrecondition, "container %s is %s: limits of a created or running one can be changed", c.ID, c.State)
	}
	return nil
}

// changeLimits overlays the limits of a container: in the kernel where it
// runs, in what it is started with, and in its record.
func (s *Server) changeLimits(ctx context.Context, id string, change *runtimeapi.LinuxContainerResources) (store.Container, error) {
	t := s.task(id)
	if err := t.op.acquire(ctx); err != nil {
		return store.Container{}, err
	}
	defer t.op.release()
	c, ok := s.containers.Get(id)
	if !ok {
		return c, findError("container", id, store.ErrNotFound)
	}
	if err := checkUpdatable(c); err != nil {
		return c, err
	}
	merged := mergeResources(c.Resources, change)
	running := c.State == store.ContainerRunning
	if running && merged != nil {
		// Nobody changes that of a process that runs, here or elsewhere.
		merged.OomScoreAdj = c.Resources.GetOomScoreAdj()
	}
	before, after := spec.Resources(c.Resources, s.cfg.Host), spec.Resources(merged, s.cfg.Host)
	if running {
		if err := s.limitRunning(ctx, c, after, before); err != nil {
			return c, fmt.Errorf("update container %s: %w", id, err)
		}
	}
	err := s.rewriteSpec(id, after, merged)
	if err == nil {
		c, err = s.containers.Update(id, func(c *store.Container) error {
			c.Resources = merged
			return nil
		})
	}
	if err != nil {
		err = errors.Join(err, s.rewriteSpec(id, before, c.Resources))
		if running {
			err = errors.Join(err, s.limitRunning(ctx, c, before, after))
		}
		return c, fmt.Errorf("update container %s: %w", id, err)
	}
	s.log.Info("container updated", "container", id, "sandbox", c.SandboxID)
	return c, nil
}

// limitRunning writes limits to the kernel; where that fails half-way, those
// before.
func (s *Server) limitRunning(ctx context.Context, c store.Container, limits, before *specs.LinuxResources) error {
	sb, ok := s.sandboxes.Get(c.SandboxID)
	if !ok {
		return findError("sandbox", c.SandboxID, store.ErrNotFound)
	}
	runtime, err := s.runtimeOf(sb)
	if err != nil {
		return err
	}
	err = s.writeLimits(ctx, runtime, c, limits)
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		return err // a runtime that hangs is not asked again
	}
	return errors.Join(err, s.writeLimits(ctx, runtime, c, before))
}

func (s *Server) writeLimits(ctx context.Context, runtime *handler.Runtime, c store.Container, limits *specs.LinuxResources) error {
	// Runtimes leave limits of huge pages as they are.
	for _, h := range limits.HugepageLimits {
		if err := s.cfg.Cgroups.LimitHugePages(c.Cgroup, h.Pagesize, h.Limit); err != nil {
			return err
		}
	}
	rest := *limits
	rest.HugepageLimits = nil
	return runtime.Update(ctx, c.ID, &rest)
}

// rewriteSpec puts limits into the bundle's specification and leaves the rest.
func (s *Server) rewriteSpec(id string, limits *specs.LinuxResources, r *runtimeapi.LinuxContainerResources) error {
	path := filepath.Join(s.containers.Dir(id), "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the OCI configuration: %w", err)
	}
	var config specs.Spec
	if err := json.Unmarshal(data, &config); err != nil {
		return fmt.Errorf("parse the OCI configuration: %w", err)
	}
	spec.SetLimits(&config, limits, r, s.cfg.Host)
	if data, err = json.Marshal(&config); err != nil {
		return fmt.Errorf("encode the OCI configuration: %w", err)
	}
	if err := atomicwriter.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write the OCI configuration: %w", err)
	}
	return nil
}

// mergeResources overlays what is set on what was. Protobuf's own merge has
// just that meaning for numbers and strings; maps are joined by key.
func mergeResources(before, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if before == nil && change == nil {
		return nil
	}
	merged := &runtimeapi.LinuxContainerResources{}
	proto.Merge(merged, before)
	proto.Merge(merged, change)
	if len(change.GetHugepageLimits()) > 0 {
		merged.HugepageLimits = joinHugePages(before.GetHugepageLimits(), change.GetHugepageLimits())
	}
	return merged
}

// joinHugePages joins by page size what a merge would put in a row.
func joinHugePages(before, change []*runtimeapi.HugepageLimit) []*runtimeapi.HugepageLimit {
	joined := proto.CloneOf(&runtimeapi.LinuxContainerResources{HugepageLimits: change}).HugepageLimits
	changed := map[string]bool{}
	for _, h := range change {
		changed[h.GetPageSize()] = true
	}
	for _, h := range before {
		if !changed[h.GetPageSize()] {
			joined = append(joined, proto.CloneOf(h))
		}
	}
	return joined
}
