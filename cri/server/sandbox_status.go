package server

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/store"
)

// PodSandboxStatus returns one sandbox with its containers. Verbose, info
// holds a JSON object with the shim's pid, the namespaces and the timeline.
func (s *Server) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	// Taken before anything is read: a kubelet keeps of this answer and of an
	// event the one with the later time, which must not know less.
	asOf := time.Now()
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if err == nil && !sandboxShown(sb) {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status:             sandboxStatus(sb),
		ContainersStatuses: s.containerStatuses(sb.ID),
		Timestamp:          asOf.UnixNano(),
	}
	if req.GetVerbose() {
		if resp.Info, err = s.sandboxInfo(sb); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// sandboxShown: who asked for a sandbox has not been told its ID while it is
// being created.
func sandboxShown(sb store.Sandbox) bool { return sb.State != store.SandboxCreating }

func sandboxState(sb store.Sandbox) runtimeapi.PodSandboxState {
	if sb.Ready() {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxStatus(sb store.Sandbox) *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: sb.ID, Metadata: sb.Config.GetMetadata(), State: sandboxState(sb), CreatedAt: sb.CreatedAt.UnixNano(),
		Network:        &runtimeapi.PodSandboxNetworkStatus{},
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: sb.Namespaces()}},
		Labels:         sb.Config.GetLabels(),
		Annotations:    sb.Config.GetAnnotations(),
		RuntimeHandler: sb.Handler,
	}
	// The addresses of a stopped sandbox belong to others by now.
	if sb.Ready() && len(sb.IPs) > 0 {
		st.Network.Ip = sb.IPs[0]
		for _, ip := range sb.IPs[1:] {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

// step is one line of a timeline as info shows it: durations as Go writes them.
type step struct {
	Step     string `json:"step"`
	Offset   string `json:"offset"`
	Duration string `json:"duration"`
}

func timelineInfo(steps []store.Step) []step {
	shown := []step{}
	for _, st := range steps {
		shown = append(shown, step{Step: st.Name, Offset: st.Offset.String(), Duration: st.Duration.String()})
	}
	return shown
}

func (s *Server) sandboxInfo(sb store.Sandbox) (map[string]string, error) {
	type info struct {
		Pid            int                          `json:"pid"`
		State          store.SandboxState           `json:"state"`
		ShimLost       bool                         `json:"shimLost,omitempty"`
		NetNS          string                       `json:"netns,omitempty"`
		CgroupParent   string                       `json:"cgroupParent"`
		RuntimeHandler string                       `json:"runtimeHandler"` // as asked for
		Runtime        string                       `json:"runtime"`
		Timeline       []step                       `json:"timeline"`
		Config         *runtimeapi.PodSandboxConfig `json:"config"`
	}
	i := info{
		State: sb.State, ShimLost: sb.Lost, CgroupParent: sb.Cgroup, RuntimeHandler: sb.Handler, Runtime: sb.Runtime,
		Timeline: timelineInfo(sb.Timeline), Config: sb.Config,
	}
	if c := s.pod(sb.ID).client(); c != nil {
		i.Pid = c.Pid()
	}
	if p := ns.Path(s.nsDir(sb.ID), ns.Net); ns.Pinned(p) {
		i.NetNS = p
	}
	return infoJSON(i)
}

func infoJSON(v any) (map[string]string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the information: %w", err)
	}
	return map[string]string{"info": string(data)}, nil
}

// ListPodSandbox lists the sandboxes that a filter lets through.
func (s *Server) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	resp := &runtimeapi.ListPodSandboxResponse{}
	f := req.GetFilter()
	id, err := filterID(s.sandboxes, f.GetId())
	if err != nil {
		return nil, err
	}
	for _, sb := range s.sandboxes.Where(func(sb store.Sandbox) bool {
		return sandboxShown(sb) &&
			(f.GetId() == "" || sb.ID == id) &&
			(f.GetState() == nil || f.GetState().GetState() == sandboxState(sb)) &&
			matches(f.GetLabelSelector(), sb.Config.GetLabels())
	}) {
		resp.Items = append(resp.Items, &runtimeapi.PodSandbox{
			Id: sb.ID, Metadata: sb.Config.GetMetadata(), State: sandboxState(sb), CreatedAt: sb.CreatedAt.UnixNano(),
			Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(), RuntimeHandler: sb.Handler,
		})
	}
	return resp, nil
}

// filterID completes an abbreviated ID of a filter; one that names nothing
// lets nothing through.
func filterID[T store.Record](table *store.Table[T], id string) (string, error) {
	if id == "" {
		return "", nil
	}
	r, err := table.Find(id)
	switch err {
	case nil:
		return r.Key(), nil
	case store.ErrNotFound:
		return "", nil
	}
	return "", status.Errorf(codes.InvalidArgument, "filter.id %q: %v", id, err)
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}
