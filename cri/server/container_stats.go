package server

import (
	"context"
	"fmt"
	"iter"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// ContainerStats returns what a container uses. One that does not run has no
// more than its writable layer.
func (s *Server) ContainerStats(_ context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.containers.Find(req.GetContainerId())
	if err == nil && !containerShown(c) {
		err = store.ErrNotFound
	}
	if err != nil {
		return nil, findError("container", req.GetContainerId(), err)
	}
	st, err := s.containerStats(c)
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", c.ID, err)
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats returns what the running containers use that a filter
// lets through.
func (s *Server) ListContainerStats(_ context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	list, err := s.listContainerStats(req.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListContainerStatsResponse{}
	for st := range list {
		resp.Stats = append(resp.Stats, st)
	}
	return resp, nil
}

// StreamContainerStats is ListContainerStats in several messages.
func (s *Server) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	list, err := s.listContainerStats(req.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(list, func(chunk []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: chunk})
	})
}

func (s *Server) listContainerStats(f *runtimeapi.ContainerStatsFilter) (iter.Seq[*runtimeapi.ContainerStats], error) {
	id, err := filterID(s.containers, f.GetId())
	if err != nil {
		return nil, err
	}
	sandboxID, err := filterID(s.sandboxes, f.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return func(yield func(*runtimeapi.ContainerStats) bool) {
		for _, c := range s.containers.List() {
			switch {
			case c.State != store.ContainerRunning,
				f.GetId() != "" && c.ID != id,
				f.GetPodSandboxId() != "" && c.SandboxID != sandboxID,
				!matches(f.GetLabelSelector(), c.Config.GetLabels()):
				continue
			}
			if !yield(s.listedContainerStats(c)) {
				return
			}
		}
	}, nil
}

// listedContainerStats is containerStats in a list, of which the others are no
// less than before when one cannot be read.
func (s *Server) listedContainerStats(c store.Container) *runtimeapi.ContainerStats {
	st, err := s.containerStats(c)
	if err != nil {
		s.log.Warn("statistics of a container are incomplete", "container", c.ID, "sandbox", c.SandboxID, "error", err)
	}
	return st
}

// containerStats returns what it has also with an error.
func (s *Server) containerStats(c store.Container) (*runtimeapi.ContainerStats, error) {
	st := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: c.ID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
	}}
	layer, known, err := s.writableLayer(c.ID)
	if known {
		st.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp: layer.At.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: s.layersDir()},
			UsedBytes: criNumber(layer.Bytes), InodesUsed: criNumber(layer.Inodes),
		}
	}
	if err != nil || c.State != store.ContainerRunning {
		return st, err
	}
	u, err := s.reader.Usage(c.Cgroup)
	if err != nil {
		return st, ignoreGone(err)
	}
	st.Cpu, st.Memory, st.Swap, st.Io = criCPU(u, &s.sampleOf(c.ID).cpu), criMemory(u), criSwap(u), criIO(u)
	return st, nil
}
