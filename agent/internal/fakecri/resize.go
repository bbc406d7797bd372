package fakecri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Uses sets how much memory containers of that name use. A pod uses what its
// containers do.
func (r *Runtime) Uses(container string, bytes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.memory[container] = bytes
}

// Note adds to what Calls returns something that others than the runtime did.
func (r *Runtime) Note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log(format, args...)
}

// UpdateContainerResources sets what a container may use.
func (r *Runtime) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return do(ctx, r, "UpdateContainerResources", req, func() (*runtimeapi.UpdateContainerResourcesResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		c := r.containers[req.GetContainerId()]
		if c == nil {
			return nil, notFound("container", req.GetContainerId())
		}
		l := req.GetLinux()
		r.log("UpdateContainerResources %s shares %d quota %d memory %d", c.name(), l.GetCpuShares(), l.GetCpuQuota(), l.GetMemoryLimitInBytes())
		c.config.Linux = &runtimeapi.LinuxContainerConfig{Resources: l, SecurityContext: c.config.GetLinux().GetSecurityContext()}
		return &runtimeapi.UpdateContainerResourcesResponse{}, nil
	})
}

// Resources returns what the newest container of that name may use.
func (r *Runtime) Resources(name string) *runtimeapi.LinuxContainerResources {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.newestFirst() {
		if c.name() == name {
			return c.config.GetLinux().GetResources()
		}
	}
	return nil
}

// UpdatePodSandboxResources takes note.
func (r *Runtime) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return do(ctx, r, "UpdatePodSandboxResources", req, func() (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.sandboxes[req.GetPodSandboxId()] == nil {
			return nil, notFound("sandbox", req.GetPodSandboxId())
		}
		return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
	})
}

// PodSandboxStats tells what memory is in use.
func (r *Runtime) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatsResponse, error) {
	return do(ctx, r, "PodSandboxStats", req, func() (*runtimeapi.PodSandboxStatsResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		linux, total := &runtimeapi.LinuxPodSandboxStats{}, uint64(0)
		for _, c := range r.containers {
			if c.sandbox != req.GetPodSandboxId() || !c.running() {
				continue
			}
			total += r.memory[c.name()]
			linux.Containers = append(linux.Containers, &runtimeapi.ContainerStats{
				Attributes: &runtimeapi.ContainerAttributes{Id: c.id, Metadata: c.config.GetMetadata()},
				Memory:     &runtimeapi.MemoryUsage{UsageBytes: &runtimeapi.UInt64Value{Value: r.memory[c.name()]}},
			})
		}
		linux.Memory = &runtimeapi.MemoryUsage{UsageBytes: &runtimeapi.UInt64Value{Value: total}}
		return &runtimeapi.PodSandboxStatsResponse{Stats: &runtimeapi.PodSandboxStats{Linux: linux}}, nil
	})
}
