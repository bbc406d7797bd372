package server

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// Plugins is NRI: who else takes part in the life of pods and containers. An
// error of theirs is a refusal; what has happened they are only told of.
type Plugins interface {
	PodPlugins
	ContainerPlugins
	LimitPlugins
}

// PodPlugins take part in the life of pods.
type PodPlugins interface {
	RunPod(ctx context.Context, sb store.Sandbox) error
	PodStopped(ctx context.Context, sb store.Sandbox)
	PodRemoved(ctx context.Context, sb store.Sandbox)
}

// ContainerPlugins take part in the life of containers.
type ContainerPlugins interface {
	ContainerMaker
	StartContainer(ctx context.Context, sb store.Sandbox, c store.Container) error
	ContainerStarted(ctx context.Context, sb store.Sandbox, c store.Container)
	// What the last two return, if it is not nil, is to be called when no lock
	// is held.
	ContainerStopped(ctx context.Context, sb store.Sandbox, c store.Container) (then func(context.Context))
	ContainerRemoved(ctx context.Context, sb store.Sandbox, c store.Container) (then func(context.Context))
}

// ContainerMaker takes part in the making of containers: it may change the
// specification, and returns the limits that it changed.
type ContainerMaker interface {
	CreateContainer(ctx context.Context, sb store.Sandbox, c store.Container, s *specs.Spec) (*runtimeapi.LinuxContainerResources, error)
	ContainerCreated(ctx context.Context, sb store.Sandbox, c store.Container)
}

// LimitPlugins take part when limits change.
type LimitPlugins interface {
	UpdatePod(ctx context.Context, sb store.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error
	PodUpdated(ctx context.Context, sb store.Sandbox)
	UpdateContainer(ctx context.Context, sb store.Sandbox, c store.Container, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error)
	ContainerUpdated(ctx context.Context, sb store.Sandbox, c store.Container)
}

// noPlugins is for a node without NRI.
type noPlugins struct{}

func (noPlugins) RunPod(context.Context, store.Sandbox) error { return nil }
func (noPlugins) PodStopped(context.Context, store.Sandbox)   {}
func (noPlugins) PodRemoved(context.Context, store.Sandbox)   {}
func (noPlugins) PodUpdated(context.Context, store.Sandbox)   {}

func (noPlugins) UpdatePod(context.Context, store.Sandbox, *runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources) error {
	return nil
}

func (noPlugins) CreateContainer(context.Context, store.Sandbox, store.Container, *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	return nil, nil
}

func (noPlugins) ContainerCreated(context.Context, store.Sandbox, store.Container) {}

func (noPlugins) StartContainer(context.Context, store.Sandbox, store.Container) error { return nil }

func (noPlugins) ContainerStarted(context.Context, store.Sandbox, store.Container) {}

func (noPlugins) ContainerStopped(context.Context, store.Sandbox, store.Container) func(context.Context) {
	return nil
}

func (noPlugins) ContainerRemoved(context.Context, store.Sandbox, store.Container) func(context.Context) {
	return nil
}

func (noPlugins) UpdateContainer(_ context.Context, _ store.Sandbox, _ store.Container, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	return change, nil
}

func (noPlugins) ContainerUpdated(context.Context, store.Sandbox, store.Container) {}

// Sandboxes lists the sandboxes that users see, for plugins.
func (s *Server) Sandboxes() []store.Sandbox {
	var shown []store.Sandbox
	for _, sb := range s.sandboxes.List() {
		if sandboxShown(sb) && sb.State != store.SandboxRemoving {
			shown = append(shown, sb)
		}
	}
	return shown
}

// Containers lists the containers that users see and that have not ended, for
// plugins.
func (s *Server) Containers() []store.Container {
	var shown []store.Container
	for _, c := range s.containers.List() {
		if containerShown(c) && c.CRIState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			shown = append(shown, c)
		}
	}
	return shown
}

// ChangeLimits overlays limits of a container as a plugin wants it, without
// asking other plugins.
func (s *Server) ChangeLimits(ctx context.Context, containerID string, change *runtimeapi.LinuxContainerResources) error {
	_, err := s.changeLimits(ctx, containerID, change)
	return err
}

// Evict kills a container as a plugin wants it.
func (s *Server) Evict(ctx context.Context, containerID, reason string) error {
	if _, ok := s.containers.Get(containerID); !ok {
		return findError("container", containerID, store.ErrNotFound)
	}
	if err := s.stop(ctx, containerID, 0); err != nil {
		return fmt.Errorf("evict container %s (%s): %w", containerID, reason, err)
	}
	return nil
}
