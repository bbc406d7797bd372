package fakecri

import (
	"context"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *container) running() bool {
	return c.state == runtimeapi.ContainerState_CONTAINER_RUNNING
}

func (c *container) name() string { return c.config.GetMetadata().GetName() }

// CreateContainer makes a container in a ready sandbox. Repeated for one that
// was not started, it answers with that.
func (r *Runtime) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	return do(ctx, r, "CreateContainer", req, func() (*runtimeapi.CreateContainerResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		s := r.sandboxes[req.GetPodSandboxId()]
		if s == nil {
			return nil, notFound("sandbox", req.GetPodSandboxId())
		}
		if !s.ready {
			return nil, status.Errorf(codes.FailedPrecondition, "sandbox %s is not ready", s.id)
		}
		if !r.has(req.GetConfig().GetImage().GetImage()) {
			return nil, notFound("image", req.GetConfig().GetImage().GetImage())
		}
		m := req.GetConfig().GetMetadata()
		for _, c := range r.containers {
			if c.sandbox != s.id || c.name() != m.GetName() || c.config.GetMetadata().GetAttempt() != m.GetAttempt() {
				continue
			}
			if c.state == runtimeapi.ContainerState_CONTAINER_CREATED {
				return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
			}
			return nil, status.Errorf(codes.AlreadyExists, "container %s, attempt %d, exists as %s", m.GetName(), m.GetAttempt(), c.id)
		}
		r.log("CreateContainer %s %d", m.GetName(), m.GetAttempt())
		c := &container{
			id: r.id("container"), sandbox: s.id, config: req.GetConfig(), logDir: req.GetSandboxConfig().GetLogDirectory(),
			created: time.Now(), exited: make(chan struct{}),
		}
		r.containers[c.id] = c
		r.tell(s.id, c.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
		return &runtimeapi.CreateContainerResponse{ContainerId: c.id}, nil
	})
}

// CDIDevices are those of the containers of that name.
func (r *Runtime) CDIDevices(name string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, c := range r.containers {
		if c.name() != name {
			continue
		}
		for _, d := range c.config.GetCDIDevices() {
			names = append(names, d.GetName())
		}
	}
	return names
}

// StartContainer starts a created container.
func (r *Runtime) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	return do(ctx, r, "StartContainer", req, func() (*runtimeapi.StartContainerResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		c := r.containers[req.GetContainerId()]
		if c == nil {
			return nil, notFound("container", req.GetContainerId())
		}
		if c.state != runtimeapi.ContainerState_CONTAINER_CREATED {
			return nil, status.Errorf(codes.FailedPrecondition, "container %s is %s", c.id, c.state)
		}
		p := r.programs[c.name()]
		c.started = time.Now()
		if p.StartError != "" {
			c.reason, c.message = "StartError", p.StartError
			r.end(c, 128)
			return nil, status.Error(codes.Unknown, p.StartError)
		}
		r.log("StartContainer %s %d", c.name(), c.config.GetMetadata().GetAttempt())
		c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
		r.tell(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		switch {
		case p.Exits && p.RunsFor == 0:
			r.end(c, p.Code)
		case p.Exits:
			time.AfterFunc(p.RunsFor, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				if c.running() {
					r.end(c, p.Code)
				}
			})
		}
		return &runtimeapi.StartContainerResponse{}, nil
	})
}

// StopContainer signals a container and kills it when the timeout is over. A
// caller that leaves earlier leaves a signalled container behind.
func (r *Runtime) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	return do(ctx, r, "StopContainer", req, func() (*runtimeapi.StopContainerResponse, error) {
		r.mu.Lock()
		c := r.containers[req.GetContainerId()]
		if c == nil || !c.running() {
			r.mu.Unlock()
			return &runtimeapi.StopContainerResponse{}, nil
		}
		r.log("StopContainer %s %ds", c.name(), req.GetTimeout())
		if req.GetTimeout() > 0 && !r.programs[c.name()].Stubborn {
			r.end(c, 143)
		}
		r.mu.Unlock()
		timer := time.NewTimer(time.Duration(req.GetTimeout()) * time.Second)
		defer timer.Stop()
		select {
		case <-c.exited:
			return &runtimeapi.StopContainerResponse{}, nil
		case <-ctx.Done():
			return nil, left(ctx)
		case <-timer.C:
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if c.running() {
			r.end(c, 137)
		}
		return &runtimeapi.StopContainerResponse{}, nil
	})
}

// RemoveContainer removes a container, by force where it runs. It may be
// repeated.
func (r *Runtime) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	return do(ctx, r, "RemoveContainer", req, func() (*runtimeapi.RemoveContainerResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if c := r.containers[req.GetContainerId()]; c != nil {
			r.log("RemoveContainer %s %d", c.name(), c.config.GetMetadata().GetAttempt())
			if c.running() {
				r.end(c, 137)
			}
			r.deleted(r.sandboxes[c.sandbox], c.id, func() { delete(r.containers, c.id) })
		}
		return &runtimeapi.RemoveContainerResponse{}, nil
	})
}

// end records the end of a container.
func (r *Runtime) end(c *container, code int32) {
	c.state, c.code, c.finished = runtimeapi.ContainerState_CONTAINER_EXITED, code, time.Now()
	if c.reason == "" {
		if c.reason = "Completed"; code != 0 {
			c.reason = "Error"
		}
	}
	close(c.exited)
	r.tell(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
}

// ContainerStatus is the status of one container.
func (r *Runtime) ContainerStatus(ctx context.Context, req *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	return do(ctx, r, "ContainerStatus", req, func() (*runtimeapi.ContainerStatusResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		c := r.containers[req.GetContainerId()]
		if c == nil {
			return nil, notFound("container", req.GetContainerId())
		}
		return &runtimeapi.ContainerStatusResponse{Status: c.status()}, nil
	})
}

// ListContainers knows the filters by ID, sandbox and label.
func (r *Runtime) ListContainers(ctx context.Context, req *runtimeapi.ListContainersRequest, _ ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return do(ctx, r, "ListContainers", req, func() (*runtimeapi.ListContainersResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		f := req.GetFilter()
		resp := &runtimeapi.ListContainersResponse{}
		for _, c := range r.newestFirst() {
			if f.GetId() != "" && f.GetId() != c.id || f.GetPodSandboxId() != "" && f.GetPodSandboxId() != c.sandbox ||
				!matches(f.GetLabelSelector(), c.config.GetLabels()) {
				continue
			}
			resp.Containers = append(resp.Containers, &runtimeapi.Container{
				Id: c.id, PodSandboxId: c.sandbox, Metadata: c.config.GetMetadata(), Image: c.config.GetImage(),
				State: c.state, CreatedAt: c.created.UnixNano(), Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(),
			})
		}
		return resp, nil
	})
}

// ExecSync runs what OnExec says.
func (r *Runtime) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	return do(ctx, r, "ExecSync", req, func() (*runtimeapi.ExecSyncResponse, error) {
		r.mu.Lock()
		c, exec := r.containers[req.GetContainerId()], r.exec
		running := c != nil && c.running()
		r.mu.Unlock()
		switch {
		case c == nil:
			return nil, notFound("container", req.GetContainerId())
		case !running:
			return nil, status.Errorf(codes.FailedPrecondition, "container %s does not run", c.id)
		case exec == nil:
			return &runtimeapi.ExecSyncResponse{}, nil
		}
		out, code := exec(c.name(), req.GetCmd())
		return &runtimeapi.ExecSyncResponse{Stdout: out, ExitCode: code}, nil
	})
}

func (r *Runtime) statuses(sandboxID string) []*runtimeapi.ContainerStatus {
	var out []*runtimeapi.ContainerStatus
	for _, c := range r.newestFirst() {
		if c.sandbox == sandboxID {
			out = append(out, c.status())
		}
	}
	return out
}

func (c *container) status() *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: c.id, Metadata: c.config.GetMetadata(), State: c.state, CreatedAt: c.created.UnixNano(),
		StartedAt: nanos(c.started), FinishedAt: nanos(c.finished), ExitCode: c.code, Reason: c.reason, Message: c.message,
		Image: c.config.GetImage(), ImageRef: c.config.GetImage().GetImage(),
		Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(), Mounts: c.config.GetMounts(),
		LogPath: filepath.Join(c.logDir, c.config.GetLogPath()),
	}
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
