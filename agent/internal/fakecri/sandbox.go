package fakecri

import (
	"context"
	"fmt"
	"maps"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Version names the fake.
func (r *Runtime) Version(ctx context.Context, req *runtimeapi.VersionRequest, _ ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return do(ctx, r, "Version", req, func() (*runtimeapi.VersionResponse, error) {
		return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "fake", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
	})
}

// RunPodSandbox makes a sandbox. Repeated for one that is ready, it answers
// with that.
func (r *Runtime) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	return do(ctx, r, "RunPodSandbox", req, func() (*runtimeapi.RunPodSandboxResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		m := req.GetConfig().GetMetadata()
		if m.GetName() == "" || m.GetUid() == "" {
			return nil, status.Error(codes.InvalidArgument, "metadata: name and uid are required")
		}
		for _, s := range r.sandboxes {
			o := s.config.GetMetadata()
			if o.GetUid() != m.GetUid() || o.GetName() != m.GetName() || o.GetNamespace() != m.GetNamespace() || o.GetAttempt() != m.GetAttempt() {
				continue
			}
			if s.ready {
				return &runtimeapi.RunPodSandboxResponse{PodSandboxId: s.id}, nil
			}
			return nil, status.Errorf(codes.AlreadyExists, "sandbox of attempt %d exists as %s and is not ready", m.GetAttempt(), s.id)
		}
		r.log("RunPodSandbox %s %d", m.GetName(), m.GetAttempt())
		s := &sandbox{id: r.id("sandbox"), config: req.GetConfig(), created: time.Now(), ready: true}
		s.ip = fmt.Sprintf("10.88.0.%d", 2+r.ids)
		r.sandboxes[s.id] = s
		r.tell(s.id, s.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		return &runtimeapi.RunPodSandboxResponse{PodSandboxId: s.id}, nil
	})
}

// StopPodSandbox kills what runs in a sandbox. It may be repeated.
func (r *Runtime) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	return do(ctx, r, "StopPodSandbox", req, func() (*runtimeapi.StopPodSandboxResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s := r.sandboxes[req.GetPodSandboxId()]; s != nil {
			r.log("StopPodSandbox %s %d", s.config.GetMetadata().GetName(), s.config.GetMetadata().GetAttempt())
			r.stopSandbox(s)
		}
		return &runtimeapi.StopPodSandboxResponse{}, nil
	})
}

func (r *Runtime) stopSandbox(s *sandbox) {
	for _, c := range r.containers {
		if c.sandbox == s.id && c.running() {
			r.end(c, 137)
		}
	}
	if s.ready {
		s.ready = false
		r.tell(s.id, s.id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
}

// RemovePodSandbox removes a sandbox with its containers, by force where they
// run. It may be repeated.
func (r *Runtime) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	return do(ctx, r, "RemovePodSandbox", req, func() (*runtimeapi.RemovePodSandboxResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s := r.sandboxes[req.GetPodSandboxId()]; s != nil {
			r.log("RemovePodSandbox %s %d", s.config.GetMetadata().GetName(), s.config.GetMetadata().GetAttempt())
			r.stopSandbox(s)
			for _, c := range maps.Clone(r.containers) {
				if c.sandbox == s.id {
					delete(r.containers, c.id)
				}
			}
			r.deleted(s, s.id, func() { delete(r.sandboxes, s.id) })
		}
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	})
}

// PodSandboxStatus answers with the statuses of the containers as well, as
// runtimes with an event stream do.
func (r *Runtime) PodSandboxStatus(ctx context.Context, req *runtimeapi.PodSandboxStatusRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	return do(ctx, r, "PodSandboxStatus", req, func() (*runtimeapi.PodSandboxStatusResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		s := r.sandboxes[req.GetPodSandboxId()]
		if s == nil {
			return nil, notFound("sandbox", req.GetPodSandboxId())
		}
		resp := &runtimeapi.PodSandboxStatusResponse{Status: s.status(), Timestamp: time.Now().UnixNano()}
		if !r.eventless {
			resp.ContainersStatuses = r.statuses(s.id)
		}
		return resp, nil
	})
}

// ListPodSandbox knows the filters by ID, state and label.
func (r *Runtime) ListPodSandbox(ctx context.Context, req *runtimeapi.ListPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return do(ctx, r, "ListPodSandbox", req, func() (*runtimeapi.ListPodSandboxResponse, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		f := req.GetFilter()
		resp := &runtimeapi.ListPodSandboxResponse{}
		for _, s := range r.sandboxes {
			st := s.status()
			if f.GetId() != "" && f.GetId() != s.id || f.GetState() != nil && f.GetState().GetState() != st.GetState() ||
				!matches(f.GetLabelSelector(), st.GetLabels()) {
				continue
			}
			resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
				Id: s.id, Metadata: st.GetMetadata(), State: st.GetState(), CreatedAt: st.GetCreatedAt(),
				Labels: st.GetLabels(), Annotations: st.GetAnnotations(),
			})
		}
		return resp, nil
	})
}

func (s *sandbox) status() *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: s.id, Metadata: s.config.GetMetadata(), CreatedAt: s.created.UnixNano(),
		State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY, Network: &runtimeapi.PodSandboxNetworkStatus{},
		Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(),
	}
	if s.ready {
		st.State = runtimeapi.PodSandboxState_SANDBOX_READY
		st.Network.Ip = s.ip
	}
	return st
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
