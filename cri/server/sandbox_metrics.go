package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/metrics"
	"github.com/berth-io/berth/cri/stats"
	"github.com/berth-io/berth/cri/store"
)

// ListMetricDescriptors describes the metrics of ListPodSandboxMetrics. It
// answers the same for as long as the daemon runs.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: metrics.Descriptors()}, nil
}

// ListPodSandboxMetrics returns the metrics of the ready sandboxes and their
// running containers.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for m := range s.podSandboxMetrics() {
		resp.PodMetrics = append(resp.PodMetrics, m)
	}
	return resp, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in several messages.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return sendChunks(s.podSandboxMetrics(), func(chunk []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}

func (s *Server) podSandboxMetrics() iter.Seq[*runtimeapi.PodSandboxMetrics] {
	return func(yield func(*runtimeapi.PodSandboxMetrics) bool) {
		fs, err := s.layerFileSystem()
		if err != nil {
			s.log.Warn("metrics have no file system", "error", err)
		}
		for _, p := range s.readPods(func(store.Sandbox) bool { return true }) {
			pod, err := s.podSample(p)
			if err != nil {
				s.log.Warn("metrics of a sandbox are incomplete", "sandbox", p.sandbox.ID, "error", err)
			}
			m := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.sandbox.ID, Metrics: metrics.Metrics(pod)}
			for _, c := range p.containers {
				container, err := s.containerSample(p.sandbox, c, fs)
				if err != nil {
					s.log.Warn("metrics of a container are incomplete", "container", c.ID, "sandbox", c.SandboxID, "error", err)
				}
				m.ContainerMetrics = append(m.ContainerMetrics, &runtimeapi.ContainerMetrics{
					ContainerId: c.ID, Metrics: metrics.Metrics(container),
				})
			}
			if !yield(m) {
				return
			}
		}
	}
}

// podSample returns what it has also with an error.
func (s *Server) podSample(p podReadings) (metrics.Sample, error) {
	meta := p.sandbox.Config.GetMetadata()
	cgroup := s.podCgroup(p.sandbox)
	sample := metrics.Sample{
		Labels:    metrics.Labels{ID: cgroup, Name: p.sandbox.ID, Namespace: meta.GetNamespace(), Pod: meta.GetName()},
		StartedAt: p.sandbox.CreatedAt, Network: p.network.Interfaces, Device: stats.Device,
	}
	errs := []error{ignoreGone(p.network.Err)}
	if cgroup != "" {
		errs = append(errs, s.readSample(cgroup, &sample))
	}
	return sample, errors.Join(errs...)
}

// containerSample returns what it has also with an error.
func (s *Server) containerSample(sb store.Sandbox, c store.Container, fs *metrics.Layer) (metrics.Sample, error) {
	meta := sb.Config.GetMetadata()
	sample := metrics.Sample{
		Labels: metrics.Labels{
			Container: c.Config.GetMetadata().GetName(), ID: c.Cgroup, Image: imageSpec(c.Config).GetImage(), Name: c.ID,
			Namespace: meta.GetNamespace(), Pod: meta.GetName(),
		},
		StartedAt: c.StartedAt, Limits: c.Resources, Device: stats.Device,
	}
	if sample.Limits == nil {
		sample.Limits = &runtimeapi.LinuxContainerResources{}
	}
	layer, known, err := s.writableLayer(c.ID)
	if known && fs != nil {
		sample.Layer = &metrics.Layer{
			LayerUsage: layer, Device: fs.Device,
			Capacity: fs.Capacity, Inodes: fs.Inodes, AvailableInodes: fs.AvailableInodes,
		}
	}
	errs := []error{err, s.readSample(c.Cgroup, &sample)}
	if sample.Processes != nil && c.Pid > 0 {
		// It may have ended, and then has no limit.
		if limit, err := stats.OpenFilesLimit(c.Pid); err == nil {
			sample.Processes.FileLimit = &limit
		} else if !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return sample, errors.Join(errs...)
}

// readSample reads a cgroup and what its processes hold open.
func (s *Server) readSample(cgroup string, sample *metrics.Sample) error {
	var err error
	if sample.Usage, err = s.reader.Detail(cgroup); err != nil {
		return ignoreGone(err)
	}
	pids, err := s.reader.Processes(cgroup)
	if err != nil {
		return err
	}
	sample.Processes = &metrics.Processes{Count: len(pids)}
	if sample.Labels.Container == "" {
		return nil // counted with the containers
	}
	open, err := stats.Open(pids)
	switch {
	case err == nil:
		sample.Processes.Open = &open
	case !errors.Is(err, stats.ErrTooMany):
		return fmt.Errorf("count open files: %w", err)
	}
	return nil
}

// layerFileSystem is the part of metrics.Layer that all containers share.
func (s *Server) layerFileSystem() (*metrics.Layer, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.layersDir(), &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil, nil // no container was ever made
		}
		return nil, fmt.Errorf("look at the file system of %s: %w", s.layersDir(), err)
	}
	device, err := s.layerDevice()
	return &metrics.Layer{
		Device: device, Capacity: st.Blocks * uint64(st.Bsize), Inodes: st.Files, AvailableInodes: st.Ffree,
	}, err
}

// mountSource is what is mounted where a directory is.
func mountSource(dir string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return "", fmt.Errorf("find the file system of %s: %w", dir, err)
	}
	var found *mountinfo.Info
	for _, m := range mounts {
		// Of two on one mount point, the later one is seen.
		if found == nil || strings.HasPrefix(m.Mountpoint, found.Mountpoint) {
			found = m
		}
	}
	if found == nil {
		return "", fmt.Errorf("find the file system of %s: it is on none", dir)
	}
	return found.Source, nil
}
