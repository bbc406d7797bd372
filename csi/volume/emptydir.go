package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
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
		if err := r.hugePages(medium); err != nil {
			return Mounted{}, fmt.Errorf("emptyDir: %w", err)
		}
	default:
		return Mounted{}, fmt.Errorf("emptyDir: unknown storage medium %q: use Memory, HugePages, HugePages-<size> or leave it out", medium)
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
	options := r.groupOptions()
	if size > 0 {
		options = append(options, "size="+strconv.FormatInt(size, 10))
	}
	m := r.manager
	return m.mounts.make(m.podDir(string(r.pod.UID)), r.dir, "tmpfs", r.at, func() error {
		return m.mounts.tmpfs(r.dir, options)
	})
}

func (r request) groupOptions() []string {
	if group := r.pod.fsGroup(); group != nil {
		return []string{"mode=3777", "gid=" + strconv.FormatInt(*group, 10)}
	}
	return []string{"mode=1777"}
}

// hugePages mounts memory in huge pages at the volume's directory. How much of
// it there is, is the pod's limit in its cgroup.
func (r request) hugePages(medium v1.StorageMedium) error {
	size, err := HugePageSize(medium, &r.pod.Spec)
	if err != nil {
		return err
	}
	if err := makeDir(r.dir, nil); err != nil {
		return err
	}
	options := append(r.groupOptions(), "pagesize="+strconv.FormatInt(size, 10))
	err = r.manager.mounts.make(r.manager.podDir(string(r.pod.UID)), r.dir, "hugetlbfs", r.at, func() error {
		return unix.Mount("nodev", r.dir, "hugetlbfs", 0, strings.Join(options, ","))
	})
	var st unix.Stat_t
	if err == nil && r.pod.fsGroup() != nil {
		err = unix.Stat(r.dir, &st)
	}
	if err != nil || r.pod.fsGroup() == nil || st.Mode&unix.S_ISGID != 0 {
		return err
	}
	// This file system drops the setgid bit of its option mode.
	return chmod(r.dir, 0o3777)
}

// HugePageSize is the size of the pages of an emptyDir's medium, in bytes: the one
// it names, or else the only one that the pod has; the pod must request pages of
// that size (pkg/volume/emptydir, getPageSizeMountOption).
func HugePageSize(medium v1.StorageMedium, pod *v1.PodSpec) (int64, error) {
	var wanted int64 // zero: what the pod has
	if name, ok := strings.CutPrefix(string(medium), string(v1.StorageMediumHugePagesPrefix)); ok {
		size, err := apiresource.ParseQuantity(name)
		if err != nil || size.Value() <= 0 {
			return 0, fmt.Errorf("medium %s: %q is no page size", medium, name)
		}
		wanted = size.Value()
	} else if medium != v1.StorageMediumHugePages {
		return 0, fmt.Errorf("unknown storage medium %q: use Memory, HugePages, HugePages-<size> or leave it out", medium)
	}
	var found int64
	for _, name := range slices.Sorted(maps.Keys(hugePageRequests(pod))) {
		size, err := apiresource.ParseQuantity(strings.TrimPrefix(string(name), v1.ResourceHugePagesPrefix))
		if err != nil {
			return 0, fmt.Errorf("resource %s: %w", name, err)
		}
		switch {
		case wanted != 0 && size.Value() != wanted:
		case found != 0 && found != size.Value():
			return 0, fmt.Errorf("medium: %s can't be used if container requests multiple huge page sizes", medium)
		default:
			found = size.Value()
		}
	}
	if found == 0 {
		return 0, fmt.Errorf("medium %s: hugePages storage requested, but there is no resource request for huge pages", medium)
	}
	return found, nil
}

// hugePageRequests are the kinds of huge pages that a pod or one of its
// containers requests.
func hugePageRequests(pod *v1.PodSpec) map[v1.ResourceName]bool {
	kinds := map[v1.ResourceName]bool{}
	add := func(requests v1.ResourceList) {
		for name := range requests {
			if strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
				kinds[name] = true
			}
		}
	}
	if pod.Resources != nil {
		add(pod.Resources.Requests)
	}
	for _, list := range [][]v1.Container{pod.InitContainers, pod.Containers} {
		for i := range list {
			add(list[i].Resources.Requests)
		}
	}
	return kinds
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
