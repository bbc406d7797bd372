package server

import (
	"context"
	"fmt"
	"iter"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// PodSandboxStats returns what a pod and its running containers use. A sandbox
// that is not ready uses nothing.
func (s *Server) PodSandboxStats(_ context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if err == nil && !sandboxShown(sb) {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	pods := s.readPods(func(other store.Sandbox) bool { return other.ID == sb.ID })
	if len(pods) == 0 {
		return &runtimeapi.PodSandboxStatsResponse{Stats: sandboxStats(sb)}, nil
	}
	st, err := s.podStats(pods[0])
	if err != nil {
		return nil, fmt.Errorf("statistics of sandbox %s: %w", sb.ID, err)
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats returns what the ready sandboxes use that a filter lets
// through.
func (s *Server) ListPodSandboxStats(_ context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	list, err := s.listPodSandboxStats(req.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListPodSandboxStatsResponse{}
	for st := range list {
		resp.Stats = append(resp.Stats, st)
	}
	return resp, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in several messages.
func (s *Server) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	list, err := s.listPodSandboxStats(req.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(list, func(chunk []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk})
	})
}

func (s *Server) listPodSandboxStats(f *runtimeapi.PodSandboxStatsFilter) (iter.Seq[*runtimeapi.PodSandboxStats], error) {
	id, err := filterID(s.sandboxes, f.GetId())
	if err != nil {
		return nil, err
	}
	pods := s.readPods(func(sb store.Sandbox) bool {
		return (f.GetId() == "" || sb.ID == id) && matches(f.GetLabelSelector(), sb.Config.GetLabels())
	})
	return func(yield func(*runtimeapi.PodSandboxStats) bool) {
		for _, p := range pods {
			st, err := s.podStats(p)
			if err != nil {
				s.log.Warn("statistics of a sandbox are incomplete", "sandbox", p.sandbox.ID, "error", err)
			}
			if !yield(st) {
				return
			}
		}
	}, nil
}

func sandboxStats(sb store.Sandbox) *runtimeapi.PodSandboxStats {
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: sb.ID, Metadata: sb.Config.GetMetadata(), Labels: sb.Config.GetLabels(), Annotations: sb.Config.GetAnnotations(),
		},
		Linux: &runtimeapi.LinuxPodSandboxStats{},
	}
}

// podStats returns what it has also with an error.
func (s *Server) podStats(p podReadings) (*runtimeapi.PodSandboxStats, error) {
	st := sandboxStats(p.sandbox)
	for _, c := range p.containers {
		st.Linux.Containers = append(st.Linux.Containers, s.listedContainerStats(c))
	}
	st.Linux.Network = criNetwork(p.network)
	if err := ignoreGone(p.network.Err); err != nil {
		return st, err
	}
	cgroup := s.podCgroup(p.sandbox)
	if cgroup == "" {
		return st, nil
	}
	u, err := s.reader.Usage(cgroup)
	if err != nil {
		return st, ignoreGone(err)
	}
	pids, err := s.reader.Processes(cgroup)
	if err != nil {
		return st, err
	}
	st.Linux.Cpu, st.Linux.Memory, st.Linux.Io = criCPU(u, &s.sampleOf(p.sandbox.ID).cpu), criMemory(u), criIO(u)
	st.Linux.Process = &runtimeapi.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: criNumber(uint64(len(pids)))}
	return st, nil
}
