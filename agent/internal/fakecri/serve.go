package fakecri

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Serve serves the runtime and its images through gRPC until ctx ends.
func (r *Runtime) Serve(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, runtimeServer{r: r})
	runtimeapi.RegisterImageServiceServer(s, imageServer{r: r})
	defer context.AfterFunc(ctx, s.Stop)()
	if err := s.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return ctx.Err()
}

type runtimeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	r *Runtime
}

func (s runtimeServer) Version(ctx context.Context, req *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return s.r.Version(ctx, req)
}

func (s runtimeServer) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return s.r.RunPodSandbox(ctx, req)
}

func (s runtimeServer) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return s.r.StopPodSandbox(ctx, req)
}

func (s runtimeServer) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return s.r.RemovePodSandbox(ctx, req)
}

func (s runtimeServer) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return s.r.PodSandboxStatus(ctx, req)
}

func (s runtimeServer) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return s.r.ListPodSandbox(ctx, req)
}

func (s runtimeServer) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return s.r.CreateContainer(ctx, req)
}

func (s runtimeServer) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return s.r.StartContainer(ctx, req)
}

func (s runtimeServer) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return s.r.StopContainer(ctx, req)
}

func (s runtimeServer) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return s.r.RemoveContainer(ctx, req)
}

func (s runtimeServer) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return s.r.UpdateContainerResources(ctx, req)
}

func (s runtimeServer) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return s.r.UpdatePodSandboxResources(ctx, req)
}

func (s runtimeServer) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return s.r.PodSandboxStats(ctx, req)
}

func (s runtimeServer) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return s.r.ContainerStatus(ctx, req)
}

func (s runtimeServer) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return s.r.ListContainers(ctx, req)
}

func (s runtimeServer) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return s.r.ExecSync(ctx, req)
}

func (s runtimeServer) GetContainerEvents(req *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	reader, err := s.r.subscribe(stream.Context(), req)
	if err != nil {
		return err
	}
	if !s.r.hasEvents() {
		_, err := reader.Recv()
		return err
	}
	// The header says that the stream is open: what happens from here on is in it.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	for {
		e, err := reader.Recv()
		if err != nil {
			return err
		}
		if err := stream.Send(e); err != nil {
			return err
		}
	}
}

func (r *Runtime) hasEvents() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.eventless
}

type imageServer struct {
	runtimeapi.UnimplementedImageServiceServer
	r *Runtime
}

func (s imageServer) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return s.r.ImageStatus(ctx, req)
}

func (s imageServer) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return s.r.PullImage(ctx, req)
}

func (s imageServer) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return s.r.ListImages(ctx, req)
}

func (s imageServer) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return s.r.RemoveImage(ctx, req)
}

func (s imageServer) ImageFsInfo(ctx context.Context, req *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return s.r.ImageFsInfo(ctx, req)
}
