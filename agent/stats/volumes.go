package stats

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// storage adds what a pod takes on disk: its containers' layers and logs, its
// volumes, and all of that together which is limited as ephemeral storage.
func (c *Collector) storage(ctx context.Context, s *statsapi.PodStats, pod *v1.Pod, at layers, root space) {
	total := &statsapi.FsStats{Time: metav1.NewTime(root.at)}
	root.into(total)
	dir := filepath.Join(c.config.PodLogsDir, s.PodRef.Namespace+"_"+s.PodRef.Name+"_"+s.PodRef.UID)
	for i := range s.Containers {
		container := &s.Containers[i]
		container.Logs = c.directory(ctx, filepath.Join(dir, container.Name), root)
		if mount := at[layerKey(s.PodRef.UID, container.Name)]; mount != "" {
			if sp, err := c.disk.fileSystem(ctx, mount); err == nil {
				sp.into(container.Rootfs)
			}
		}
		add(total, container.Rootfs)
		add(total, container.Logs)
	}
	if pod != nil {
		for i := range pod.Spec.Volumes {
			volume, ok := c.volume(ctx, pod, &pod.Spec.Volumes[i])
			if !ok {
				continue
			}
			if localEphemeral(&pod.Spec.Volumes[i]) {
				add(total, &volume.FsStats)
			}
			s.VolumeStats = append(s.VolumeStats, volume)
		}
	}
	add(total, c.directory(ctx, filepath.Join(c.config.KubeletDir, "pods", s.PodRef.UID, "etc-hosts"), root))
	s.EphemeralStorage = total
}

// directory is what a directory takes of a file system; nil if it is not there.
func (c *Collector) directory(ctx context.Context, path string, on space) *statsapi.FsStats {
	u, err := c.disk.usage(ctx, path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.config.Log.Warn("disk use of a pod is not measured", "path", path, "err", err)
		}
		return nil
	}
	s := &statsapi.FsStats{Time: metav1.NewTime(u.at), UsedBytes: &u.bytes, InodesUsed: &u.inodes}
	on.into(s)
	return s
}

// volume measures a volume that is mounted. Volumes that are somebody else's
// directory (hostPath) or another image's are not measured, as by the kubelet.
func (c *Collector) volume(ctx context.Context, pod *v1.Pod, v *v1.Volume) (statsapi.VolumeStats, bool) {
	s := statsapi.VolumeStats{Name: v.Name}
	var path string
	walked := true
	volumes := filepath.Join(c.config.KubeletDir, "pods", string(pod.UID), "volumes")
	switch {
	case v.EmptyDir != nil:
		path = filepath.Join(volumes, "kubernetes.io~empty-dir", v.Name)
		walked = v.EmptyDir.Medium == v1.StorageMediumDefault
	case v.ConfigMap != nil:
		path = filepath.Join(volumes, "kubernetes.io~configmap", v.Name)
	case v.Secret != nil:
		path = filepath.Join(volumes, "kubernetes.io~secret", v.Name)
	case v.DownwardAPI != nil:
		path = filepath.Join(volumes, "kubernetes.io~downward-api", v.Name)
	case v.Projected != nil:
		path = filepath.Join(volumes, "kubernetes.io~projected", v.Name)
	case v.PersistentVolumeClaim != nil:
		s.PVCRef = &statsapi.PVCReference{Namespace: pod.Namespace, Name: v.PersistentVolumeClaim.ClaimName}
	case v.Ephemeral != nil:
		s.PVCRef = &statsapi.PVCReference{Namespace: pod.Namespace, Name: pod.Name + "-" + v.Name}
	case v.CSI != nil:
		path, walked = filepath.Join(volumes, "kubernetes.io~csi", v.Name, "mount"), false
	case v.NFS != nil:
		path, walked = filepath.Join(volumes, "kubernetes.io~nfs", v.Name), false
	default:
		return s, false
	}
	if s.PVCRef != nil {
		if path, walked = c.claim(volumes, v.Name, s.PVCRef), false; path == "" {
			return s, false
		}
	}
	return s, c.fill(ctx, &s.FsStats, path, walked)
}

// claim finds where a claim's volume is mounted in the pod: the kubelet names
// the place after the PersistentVolume and its plugin, Berth's local claims after
// the pod's volume.
func (c *Collector) claim(volumes, name string, ref *statsapi.PVCReference) string {
	names := []string{name}
	if c.config.ClaimVolume != nil {
		names = append(names, c.config.ClaimVolume(ref.Namespace, ref.Name))
	}
	for _, name := range names {
		if name == "" {
			continue
		}
		for _, pattern := range []string{filepath.Join("kubernetes.io~csi", name, "mount"), filepath.Join("*", name)} {
			if found, err := filepath.Glob(filepath.Join(volumes, pattern)); err == nil && len(found) > 0 {
				return found[0]
			}
		}
	}
	return ""
}

// fill measures one volume. Every number is set: the kubelet's readers rely on it.
func (c *Collector) fill(ctx context.Context, s *statsapi.FsStats, path string, walked bool) bool {
	sp, err := c.disk.fileSystem(ctx, path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.config.Log.Warn("a volume is not measured", "path", path, "err", err)
		}
		return false
	}
	if !walked {
		*s = *rootStats(sp)
		return true
	}
	u := c.directory(ctx, path, sp)
	if u == nil {
		return false
	}
	*s = *u
	return true
}

// localEphemeral tells which volumes count as ephemeral storage, as the
// kubelet's IsLocalEphemeralVolume of pkg/volume/util/util.go.
func localEphemeral(v *v1.Volume) bool {
	return v.GitRepo != nil || v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault || v.ConfigMap != nil
}

// add adds what is used; times become the latest.
func add(total, s *statsapi.FsStats) {
	if s == nil {
		return
	}
	total.UsedBytes, total.InodesUsed = sum(total.UsedBytes, s.UsedBytes), sum(total.InodesUsed, s.InodesUsed)
	if total.Time.Before(&s.Time) {
		total.Time = s.Time
	}
}

func sum(a, b *uint64) *uint64 {
	if a == nil || b == nil {
		if a == nil {
			a = b
		}
		if a == nil {
			return nil
		}
		n := *a
		return &n
	}
	n := *a + *b
	return &n
}
