package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/cgroup"
	"github.com/berth-io/berth/cri/store"
)

// UpdatePodSandboxResources records what the pod may use now. The cgroup is
// changed where this runtime made it; elsewhere its maker, the kubelet, has
// changed it already.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	p := s.pod(sb.ID)
	if err := p.op.acquire(ctx); err != nil {
		return nil, err
	}
	defer p.op.release()
	sb, ok := s.sandboxes.Get(sb.ID)
	if !ok || !sb.Ready() {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %s is not ready but %s", req.GetPodSandboxId(), sb.State)
	}
	config := proto.CloneOf(sb.Config) // records are not changed in place
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	config.Linux.Overhead = mergeResources(config.Linux.GetOverhead(), req.GetOverhead())
	config.Linux.Resources = mergeResources(config.Linux.GetResources(), req.GetResources())
	if err := s.plugins.UpdatePod(ctx, sb, req.GetOverhead(), req.GetResources()); err != nil {
		return nil, err
	}
	if err := s.limitPod(sb, config); err != nil {
		return nil, errors.Join(fmt.Errorf("update sandbox %s: %w", sb.ID, err), s.limitPod(sb, sb.Config))
	}
	updated, err := s.sandboxes.Update(sb.ID, func(sb *store.Sandbox) error {
		sb.Config = config
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, s.limitPod(sb, sb.Config))
	}
	s.plugins.PodUpdated(ctx, updated)
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// limitPod writes the limits of a pod's own cgroup.
func (s *Server) limitPod(sb store.Sandbox, config *runtimeapi.PodSandboxConfig) error {
	if !sb.OwnCgroup {
		return nil
	}
	return s.cfg.Cgroups.Limit(sb.Cgroup, cgroup.PodLimits(config.GetLinux().GetResources(), config.GetLinux().GetOverhead()))
}
