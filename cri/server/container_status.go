package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// ContainerStatus returns one container. Verbose, info holds a JSON object
// with its pid, its place in the runtime and its timeline.
func (s *Server) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.containers.Find(req.GetContainerId())
	if err == nil && !containerShown(c) {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, findError("container", req.GetContainerId(), err)
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: containerStatus(c)}
	if req.GetVerbose() {
		if resp.Info, err = s.containerInfo(c); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func containerShown(c store.Container) bool { return c.State != store.ContainerCreating }

// containerStatuses are those of a sandbox, oldest first.
func (s *Server) containerStatuses(sandboxID string) []*runtimeapi.ContainerStatus {
	var list []*runtimeapi.ContainerStatus
	for _, c := range s.containersOf(sandboxID) {
		if containerShown(c) {
			list = append(list, containerStatus(c))
		}
	}
	return list
}

func containerStatus(c store.Container) *runtimeapi.ContainerStatus {
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: c.CRIState(),
		CreatedAt: c.CreatedAt.UnixNano(), ExitCode: int32(c.ExitCode),
		Image: imageSpec(c.Config), ImageRef: c.ImageRef, ImageId: c.ImageID,
		Reason: c.Reason, Message: c.Message,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		Mounts: c.Config.GetMounts(), LogPath: c.LogPath,
		StopSignal: criSignal(c.StopSignal),
	}
	if !c.StartedAt.IsZero() {
		st.StartedAt = c.StartedAt.UnixNano()
	}
	if !c.FinishedAt.IsZero() {
		st.FinishedAt = c.FinishedAt.UnixNano()
	}
	if c.Resources != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: c.Resources}
	}
	if c.User != nil {
		st.User = &runtimeapi.ContainerUser{Linux: c.User}
	}
	return st
}

// imageSpec shows the image as the user wrote it, where that is known.
func imageSpec(config *runtimeapi.ContainerConfig) *runtimeapi.ImageSpec {
	asked := config.GetImage()
	name := asked.GetUserSpecifiedImage()
	if name == "" {
		name = asked.GetImage()
	}
	return &runtimeapi.ImageSpec{
		Image: name, Annotations: asked.GetAnnotations(),
		UserSpecifiedImage: asked.GetUserSpecifiedImage(), RuntimeHandler: asked.GetRuntimeHandler(),
	}
}

func (s *Server) containerInfo(c store.Container) (map[string]string, error) {
	return infoJSON(struct {
		SandboxID string                      `json:"sandboxID"`
		Pid       int                         `json:"pid"`
		State     store.ContainerState        `json:"state"`
		Bundle    string                      `json:"bundle"`
		Rootfs    string                      `json:"rootfs"`
		Cgroup    string                      `json:"cgroup"`
		Released  bool                        `json:"released"`
		Timeline  []step                      `json:"timeline"`
		Config    *runtimeapi.ContainerConfig `json:"config"`
	}{
		SandboxID: c.SandboxID, Pid: c.Pid, State: c.State, Bundle: s.containers.Dir(c.ID),
		Rootfs: s.layer(c.ID).Mount, Cgroup: c.Cgroup, Released: c.Released,
		Timeline: timelineInfo(c.Timeline), Config: c.Config,
	})
}

// ListContainers lists the containers that a filter lets through.
func (s *Server) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := req.GetFilter()
	id, err := filterID(s.containers, f.GetId())
	if err != nil {
		return nil, err
	}
	sandboxID, err := filterID(s.sandboxes, f.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListContainersResponse{}
	for _, c := range s.containers.Where(func(c store.Container) bool {
		return containerShown(c) &&
			(f.GetId() == "" || c.ID == id) &&
			(f.GetPodSandboxId() == "" || c.SandboxID == sandboxID) &&
			(f.GetState() == nil || f.GetState().GetState() == c.CRIState()) &&
			matches(f.GetLabelSelector(), c.Config.GetLabels())
	}) {
		resp.Containers = append(resp.Containers, &runtimeapi.Container{
			Id: c.ID, PodSandboxId: c.SandboxID, Metadata: c.Config.GetMetadata(),
			Image: imageSpec(c.Config), ImageRef: c.ImageRef, ImageId: c.ImageID,
			State: c.CRIState(), CreatedAt: c.CreatedAt.UnixNano(),
			Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		})
	}
	return resp, nil
}
