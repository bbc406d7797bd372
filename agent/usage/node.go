package usage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is what is asked of the container runtime.
type Runtime interface {
	ListPodSandboxStats(ctx context.Context, in *runtimeapi.ListPodSandboxStatsRequest, opts ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error)
}

// ImageService is what is asked of the image service.
type ImageService interface {
	ImageFsInfo(ctx context.Context, in *runtimeapi.ImageFsInfoRequest, opts ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error)
}

// Config of a Meter.
type Config struct {
	// KubeletDir has the pods' directories; it is on the node's file system.
	KubeletDir string
	PodLogsDir string
	// PodsCgroup is the path of the cgroup of all pods below the mount point of
	// its hierarchy, for example /kubepods.slice.
	PodsCgroup string
	Cgroups    Hierarchy
}

// Meter measures. Its methods may be called concurrently.
type Meter struct {
	config  Config
	runtime Runtime
	images  ImageService
	dirs    *dirs

	mu     sync.Mutex
	places *places // nil: the runtime was not asked yet
}

// places are where the runtime keeps images and writable layers. It does not
// change them while it runs.
type places struct {
	image, container string
	layout           Layout
}

// New returns a Meter. It asks nobody yet.
func New(c Config, runtime Runtime, images ImageService) *Meter {
	return &Meter{config: c, runtime: runtime, images: images, dirs: newDirs()}
}

// Node measures the node.
func (m *Meter) Node(ctx context.Context) (Node, error) {
	var n Node
	where, err := m.where(ctx)
	if err != nil {
		return n, err
	}
	n.Layout = where.layout
	if n.Memory, err = m.config.Cgroups.node("/proc/meminfo"); err != nil {
		return n, fmt.Errorf("measure the node's memory: %w", err)
	}
	if n.Pods, err = m.config.Cgroups.memory(m.config.PodsCgroup); err != nil {
		return n, fmt.Errorf("measure the memory of all pods: %w", err)
	}
	if n.PIDs, err = processes(); err != nil {
		return n, fmt.Errorf("count processes: %w", err)
	}
	if n.NodeFS, err = fileSystem(m.config.KubeletDir); err != nil {
		return n, err
	}
	if n.ImageFS, err = fileSystem(where.image); err != nil {
		return n, err
	}
	n.ContainerFS, err = fileSystem(where.container)
	return n, err
}

// ImageFS measures the file system of the images.
func (m *Meter) ImageFS(ctx context.Context) (FS, error) {
	where, err := m.where(ctx)
	if err != nil {
		return FS{}, err
	}
	return fileSystem(where.image)
}

// where asks the runtime once.
func (m *Meter) where(ctx context.Context) (places, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.places != nil {
		return *m.places, nil
	}
	info, err := m.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return places{}, fmt.Errorf("ask the runtime where images are: %w", err)
	}
	if len(info.GetImageFilesystems()) == 0 {
		return places{}, errors.New("the runtime does not say where images are")
	}
	p := places{image: info.GetImageFilesystems()[0].GetFsId().GetMountpoint()}
	p.container = p.image
	if fs := info.GetContainerFilesystems(); len(fs) > 0 {
		p.container = fs[0].GetFsId().GetMountpoint()
	}
	if p.layout, err = layout(m.config.KubeletDir, p.image, p.container); err != nil {
		return places{}, err
	}
	m.places = &p
	return p, nil
}

// layout compares devices.
func layout(node, image, container string) (Layout, error) {
	var devices [3]uint64
	for i, path := range []string{node, image, container} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return Single, fmt.Errorf("find the file system of %s: %w", path, err)
		}
		devices[i] = st.Dev
	}
	switch {
	case devices[0] == devices[1]:
		return Single, nil
	case devices[1] == devices[2]:
		return ImagesApart, nil
	}
	return Split, nil
}

func fileSystem(path string) (FS, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return FS{}, fmt.Errorf("measure the file system of %s: %w", path, err)
	}
	block := uint64(st.Bsize)
	return FS{Capacity: st.Blocks * block, Available: st.Bavail * block, Inodes: st.Files, InodesFree: st.Ffree}, nil
}

// processes counts the kernel's tasks and how many there may be.
func processes() (PIDs, error) {
	var p PIDs
	for _, path := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		n, err := number(path)
		if err != nil {
			return p, err
		}
		if p.Max == 0 || int64(n) < p.Max {
			p.Max = int64(n)
		}
	}
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return p, err
	}
	p.Running, err = tasks(string(text))
	return p, err
}

// tasks reads the number of tasks from /proc/loadavg: 1.36 3.49 4.53 2/3518 3715089.
func tasks(loadavg string) (int64, error) {
	words := strings.Fields(loadavg)
	if len(words) < 5 {
		return 0, fmt.Errorf("/proc/loadavg has %d fields: %q", len(words), loadavg)
	}
	_, all, found := strings.Cut(words[3], "/")
	if !found {
		return 0, fmt.Errorf("/proc/loadavg has no number of tasks: %q", loadavg)
	}
	return strconv.ParseInt(all, 10, 64)
}
