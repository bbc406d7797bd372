package volume

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"
)

// emptyDir is a directory that lives as long as its pod.
type emptyDir struct{ source *v1.EmptyDirVolumeSource }

func (emptyDir) plugin() string { return "kubernetes.io~empty-dir" }

func (e emptyDir) setUp(_ context.Context, r request) (Mounted, error) {
	switch medium := e.source.Medium; {
	case medium == v1.StorageMediumDefault:
		if err := makeDir(r.dir, r.pod.fsGroup()); err != nil {
			return Mounted{}, fmt.Errorf("emptyDir: %w", err)
		}
	case medium == v1.StorageMediumMemory:
		if err := r.tmpfs(memorySize(r.pod, e.source.SizeLimit)); err != nil {
			return Mounted{}, fmt.Errorf("emptyDir: %w", err)
		}
	case strings.HasPrefix(string(medium), string(v1.StorageMediumHugePages)):
		return Mounted{}, fmt.Errorf("emptyDir: medium %s is not supported: use Memory or leave it out", medium)
	default:
		return Mounted{}, fmt.Errorf("emptyDir: unknown medium %q: use Memory or leave it out", medium)
	}
	return Mounted{HostPath: r.dir}, nil
}

// tmpfs mounts one of size bytes at the volume's directory; zero leaves the
// size to the kernel (half of the memory). Its mode is 01777, and as for any
// volume its group and the setgid bit follow fsGroup.
func (r request) tmpfs(size int64) error {
	if err := makeDir(r.dir, nil); err != nil {
		return err
	}
	var options []string
	if size > 0 {
		options = append(options, "size="+strconv.FormatInt(size, 10))
	}
	if group := r.pod.fsGroup(); group != nil {
		options = append(options, "mode=3777", "gid="+strconv.FormatInt(*group, 10))
	}
	m := r.manager
	return m.mounts.make(m.podDir(string(r.pod.UID)), r.dir, "tmpfs", r.at, func() error {
		return m.mounts.tmpfs(r.dir, options)
	})
}

// memorySize bounds a volume in memory as the kubelet does: by the smallest of
// limit, which may be nil, the pod's limit and what the node gives to pods, in
// bytes. Zero is no bound.
func memorySize(pod *Pod, limit *apiresource.Quantity) int64 {
	size := pod.Allocatable.Memory().Value()
	lower := func(bound int64) {
		if bound > 0 && (size == 0 || bound < size) {
			size = bound
		}
	}
	lower(podMemoryLimit(pod.Pod))
	if limit != nil {
		lower(limit.Value())
	}
	return size
}

// podMemoryLimit is what the pod's cgroup is limited to; zero when a container
// without a limit leaves the pod without one.
func podMemoryLimit(pod *v1.Pod) int64 {
	limited := true
	limits := resource.PodLimits(pod, resource.PodResourcesOptions{
		ContainerFn: func(own v1.ResourceList, _ resource.ContainerType) {
			limited = limited && !own.Memory().IsZero()
		},
	})
	if r := pod.Spec.Resources; !limited && (r == nil || r.Limits.Memory().IsZero()) {
		return 0
	}
	return limits.Memory().Value()
}
