package usage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// uidLabel is on every sandbox (the kubelet's name).
	uidLabel = "io.kubernetes.pod.uid"
	// oneByOne is up to how many pods the runtime is asked for each alone.
	oneByOne = 3
)

// Pods measures pods. One that the runtime knows nothing of is left out. What
// of a pod cannot be read is not counted, which the error tells.
func (m *Meter) Pods(ctx context.Context, pods []*v1.Pod) (map[types.UID]Pod, error) {
	if len(pods) == 0 {
		return nil, nil
	}
	known, err := m.stats(ctx, pods)
	if err != nil {
		return nil, err
	}
	out := map[types.UID]Pod{}
	var errs []error
	for _, pod := range pods {
		s := known[string(pod.UID)]
		if s == nil {
			continue
		}
		p, err := m.pod(ctx, pod, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("measure pod %s/%s: %w", pod.Namespace, pod.Name, err))
		}
		out[pod.UID] = p
	}
	return out, errors.Join(errs...)
}

// stats asks the runtime, by pod UID. Where a pod has several sandboxes, the
// newest counts.
func (m *Meter) stats(ctx context.Context, pods []*v1.Pod) (map[string]*runtimeapi.PodSandboxStats, error) {
	filters := []*runtimeapi.PodSandboxStatsFilter{nil} // all
	if len(pods) <= oneByOne {
		filters = nil
		for _, pod := range pods {
			filters = append(filters, &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{uidLabel: string(pod.UID)}})
		}
	}
	known := map[string]*runtimeapi.PodSandboxStats{}
	for _, filter := range filters {
		answer, err := m.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
		if err != nil {
			return nil, fmt.Errorf("ask the runtime what pods use: %w", err)
		}
		for _, s := range answer.GetStats() {
			meta := s.GetAttributes().GetMetadata()
			if old := known[meta.GetUid()]; old == nil || old.GetAttributes().GetMetadata().GetAttempt() < meta.GetAttempt() {
				known[meta.GetUid()] = s
			}
		}
	}
	return known, nil
}

func (m *Meter) pod(ctx context.Context, pod *v1.Pod, s *runtimeapi.PodSandboxStats) (Pod, error) {
	p := Pod{
		WorkingSet: s.GetLinux().GetMemory().GetWorkingSetBytes().GetValue(),
		Processes:  s.GetLinux().GetProcess().GetProcessCount().GetValue(),
		Volumes:    map[string]Volume{},
	}
	var errs []error
	logDir := filepath.Join(m.config.PodLogsDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
	for _, c := range s.GetLinux().GetContainers() {
		name := c.GetAttributes().GetMetadata().GetName()
		container := Container{Name: name, WorkingSet: c.GetMemory().GetWorkingSetBytes().GetValue()}
		if logs, err := m.dirs.of(ctx, filepath.Join(logDir, name)); err != nil {
			errs = append(errs, err)
		} else {
			container.Logs = &logs
		}
		if layer := c.GetWritableLayer(); layer.GetUsedBytes() != nil {
			container.Rootfs = &Disk{Bytes: layer.GetUsedBytes().GetValue(), Inodes: layer.GetInodesUsed().GetValue()}
		}
		p.Containers = append(p.Containers, container)
	}
	podDir := filepath.Join(m.config.KubeletDir, "pods", string(pod.UID))
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		size, local, err := m.volume(ctx, podDir, v)
		errs = append(errs, err)
		if local {
			p.Volumes[v.Name] = size
		}
	}
	var err error
	p.Other, err = file(ctx, filepath.Join(podDir, "etc-hosts"))
	return p, errors.Join(append(errs, err)...)
}

// volume measures those that take room of the node and end with the pod
// (pkg/volume/util, IsLocalEphemeralVolume), and emptyDirs in memory, which
// have limits too.
func (m *Meter) volume(ctx context.Context, podDir string, v *v1.Volume) (size Volume, local bool, err error) {
	switch {
	case v.EmptyDir != nil:
		dir := filepath.Join(podDir, "volumes", "kubernetes.io~empty-dir", v.Name)
		if v.EmptyDir.Medium != v1.StorageMediumDefault {
			return inMemory(dir)
		}
		size.Disk, err = m.dirs.of(ctx, dir)
	case v.ConfigMap != nil:
		size.Disk, err = m.dirs.of(ctx, filepath.Join(podDir, "volumes", "kubernetes.io~configmap", v.Name))
	default:
		return Volume{}, false, nil
	}
	return size, err == nil, err
}

// inMemory asks the volume's own file system. Before it is mounted there is
// nothing in it.
func inMemory(dir string) (Volume, bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); errors.Is(err, unix.ENOENT) {
		return Volume{}, false, nil
	} else if err != nil {
		return Volume{}, false, fmt.Errorf("measure %s: %w", dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.HUGETLBFS_MAGIC {
		return Volume{}, false, nil
	}
	used := Disk{Bytes: (st.Blocks - st.Bfree) * uint64(st.Bsize), Inodes: st.Files - st.Ffree}
	return Volume{Disk: used, Memory: true}, true, nil
}
