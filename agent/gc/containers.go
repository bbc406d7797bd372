package gc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels of the kubelet on containers and sandboxes.
const (
	uidLabel  = "io.kubernetes.pod.uid"
	nameLabel = "io.kubernetes.container.name"
)

// Runtime is what is asked of the container runtime.
type Runtime interface {
	ListContainers(ctx context.Context, in *runtimeapi.ListContainersRequest, opts ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ListPodSandbox(ctx context.Context, in *runtimeapi.ListPodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error)
	RemoveContainer(ctx context.Context, in *runtimeapi.RemoveContainerRequest, opts ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error)
	StopPodSandbox(ctx context.Context, in *runtimeapi.StopPodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error)
	RemovePodSandbox(ctx context.Context, in *runtimeapi.RemovePodSandboxRequest, opts ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error)
}

// removeContainers removes containers, then sandboxes that are empty, then
// logs. What is not of a pod (somebody runs it with crictl) is left alone.
func (c *Collector) removeContainers(ctx context.Context, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list, err := c.list(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, x := range c.config.Containers.removable(dead(list), c.owner, all, time.Now()) {
		if err := c.removeContainer(ctx, x.ID); err != nil {
			errs = append(errs, fmt.Errorf("remove container %s (%s): %w", x.Name, x.ID, err))
		}
	}
	if list, err = c.list(ctx); err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, c.removeSandboxes(ctx, list, all), c.removeLogs(list))
	return errors.Join(errs...)
}

// removeContainer removes the logs first: as long as the container is listed,
// somebody will come back for them.
func (c *Collector) removeContainer(ctx context.Context, id string) error {
	if err := c.config.Logs.RemoveOf(ctx, id); err != nil {
		return err
	}
	_, err := c.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	return err
}

func (c *Collector) owner(podUID string) Owner { return c.pods.Owner(types.UID(podUID)) }

// list are the containers of pods.
func (c *Collector) list(ctx context.Context) ([]*runtimeapi.Container, error) {
	answer, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ours []*runtimeapi.Container
	for _, x := range answer.GetContainers() {
		if x.GetLabels()[uidLabel] != "" {
			ours = append(ours, x)
		}
	}
	return ours, nil
}

// dead are those that do not run. A state that the runtime does not know is
// not dead: it is the worker's to find out.
func dead(list []*runtimeapi.Container) []Container {
	last := map[unit]int64{}
	for _, x := range list {
		u := unitOf(x)
		last[u] = max(last[u], x.GetCreatedAt())
	}
	var dead []Container
	for _, x := range list {
		state := x.GetState()
		if state != runtimeapi.ContainerState_CONTAINER_EXITED && state != runtimeapi.ContainerState_CONTAINER_CREATED {
			continue
		}
		u := unitOf(x)
		dead = append(dead, Container{
			ID: x.GetId(), PodUID: u.podUID, Name: u.name, CreatedAt: time.Unix(0, x.GetCreatedAt()),
			Started: state == runtimeapi.ContainerState_CONTAINER_EXITED,
			Last:    x.GetCreatedAt() == last[u],
		})
	}
	return dead
}

func unitOf(x *runtimeapi.Container) unit {
	return unit{x.GetLabels()[uidLabel], x.GetLabels()[nameLabel]}
}

func (c *Collector) removeSandboxes(ctx context.Context, list []*runtimeapi.Container, all bool) error {
	answer, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	containers := map[string]int{}
	for _, x := range list {
		containers[x.GetPodSandboxId()]++
	}
	var sandboxes []Sandbox
	for _, s := range answer.GetItems() {
		if uid := s.GetLabels()[uidLabel]; uid != "" {
			sandboxes = append(sandboxes, Sandbox{
				ID: s.GetId(), PodUID: uid, CreatedAt: time.Unix(0, s.GetCreatedAt()),
				Ready: s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY, Containers: containers[s.GetId()],
			})
		}
	}
	var errs []error
	for _, s := range removableSandboxes(sandboxes, c.owner, all) {
		// It is stopped once more, so that what it holds of the network is given
		// back.
		if _, err := c.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.ID}); err != nil {
			errs = append(errs, fmt.Errorf("stop sandbox %s before it is removed: %w", s.ID, err))
			continue
		}
		if _, err := c.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.ID}); err != nil {
			errs = append(errs, fmt.Errorf("remove sandbox %s: %w", s.ID, err))
		}
	}
	return errors.Join(errs...)
}
