package server

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// UpdateContainerResources changes the limits of a running container. What
// the request leaves at zero stays as it is.
func (s *Server) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, _, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	sb, _ := s.sandboxes.Get(c.SandboxID)
	t := s.task(c.ID)
	if err := t.op.acquire(ctx); err != nil {
		return nil, err
	}
	defer t.op.release()
	merged := mergeResources(c.Resources, req.GetLinux())
	limits := spec.Resources(merged, s.cfg.Host)
	limits.HugepageLimits = nil // cannot be changed while it runs
	runtime, err := s.runtimeOf(sb)
	if err != nil {
		return nil, err
	}
	if err := runtime.Update(ctx, c.ID, limits); err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.ID, err)
	}
	if _, err := s.containers.Update(c.ID, func(c *store.Container) error {
		c.Resources = merged
		return nil
	}); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
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
		merged.HugepageLimits = change.GetHugepageLimits() // lists would be joined
	}
	return merged
}
