package nri

import (
	"context"
	"fmt"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// CreateContainer lets plugins adjust the specification of a container that is
// being created. It returns the limits that they changed, nil for none. An
// error is a plugin's refusal, or an adjustment that cannot be.
func (n *NRI) CreateContainer(ctx context.Context, sb store.Sandbox, c store.Container, s *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	var answer *api.CreateContainerResponse
	err := n.ask(func(a *adaptation.Adaptation) (err error) {
		m := n.container(c, s)
		n.tell(c.ID, told{container: m})
		answer, err = a.CreateContainer(ctx, &api.CreateContainerRequest{Pod: n.pod(sb), Container: m})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("an NRI plugin refuses the container: %w", err)
	}
	// What others have to give up for this one comes first. A plugin that
	// cannot have it knows from the container's state.
	n.evict(ctx, answer.GetEvict())
	n.apply(ctx, answer.GetUpdate())
	if answer.GetAdjust() == nil {
		return nil, nil
	}
	if err := n.adjust(s, answer.GetAdjust()); err != nil {
		return nil, err
	}
	return toCRI(answer.GetAdjust().GetLinux().GetResources()), nil
}

// ContainerCreated tells that a container is there.
func (n *NRI) ContainerCreated(ctx context.Context, sb store.Sandbox, c store.Container) {
	n.mu.Lock()
	if t := n.told[c.ID]; t != nil {
		t.container = nil // it is listed from now on
	}
	n.mu.Unlock()
	n.report("creation of a container", c.ID, n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		return a.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: n.pod(sb), Container: m})
	}))
}

// StartContainer tells of a container that is about to start. An error is a
// plugin's refusal.
func (n *NRI) StartContainer(ctx context.Context, sb store.Sandbox, c store.Container) error {
	err := n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		return a.StartContainer(ctx, &api.StartContainerRequest{Pod: n.pod(sb), Container: m})
	})
	if err != nil {
		return fmt.Errorf("an NRI plugin refuses the start: %w", err)
	}
	return nil
}

// ContainerStarted tells that a container runs.
func (n *NRI) ContainerStarted(ctx context.Context, sb store.Sandbox, c store.Container) {
	n.report("start of a container", c.ID, n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		return a.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: n.pod(sb), Container: m})
	}))
}

// UpdateContainer lets plugins change the limits that a container is about to
// get. It returns what to change, which is change itself where nobody wants
// otherwise.
func (n *NRI) UpdateContainer(ctx context.Context, sb store.Sandbox, c store.Container, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	var answer *api.UpdateContainerResponse
	err := n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		answer, err = a.UpdateContainer(ctx, &api.UpdateContainerRequest{Pod: n.pod(sb), Container: m, LinuxResources: fromCRI(change)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("an NRI plugin refuses the limits: %w", err)
	}
	n.evict(ctx, answer.GetEvict())
	// The container's own comes last.
	others := answer.GetUpdate()
	if last := len(others) - 1; last >= 0 && others[last].GetContainerId() == c.ID {
		if changed := toCRI(others[last].GetLinux().GetResources()); changed != nil {
			changed.OomScoreAdj = change.GetOomScoreAdj()
			change = changed
		}
		others = others[:last]
	}
	n.apply(ctx, others)
	return change, nil
}

// ContainerUpdated tells that a container has new limits.
func (n *NRI) ContainerUpdated(ctx context.Context, sb store.Sandbox, c store.Container) {
	n.report("update of a container", c.ID, n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		return a.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: n.pod(sb), Container: m})
	}))
}

// ContainerStopped tells, once, that a container has ended, and returns what
// plugins want done with others then, nil for nothing: for when the caller
// holds no container's lock.
func (n *NRI) ContainerStopped(ctx context.Context, sb store.Sandbox, c store.Container) (then func(context.Context)) {
	if !n.stop(c.ID) {
		return nil
	}
	n.report("end of a container", c.ID, n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		answer, err := a.StopContainer(ctx, &api.StopContainerRequest{Pod: n.pod(sb), Container: m})
		if updates := answer.GetUpdate(); len(updates) > 0 {
			then = func(ctx context.Context) { n.apply(ctx, updates) }
		}
		return err
	}))
	return then
}

// ContainerRemoved tells, once, that a container is gone; of one that never
// ran also that it has ended. Its bundle must still be there. It returns what
// ContainerStopped does.
func (n *NRI) ContainerRemoved(ctx context.Context, sb store.Sandbox, c store.Container) (then func(context.Context)) {
	then = n.ContainerStopped(ctx, sb, c)
	if !n.knows(c.ID) {
		return then
	}
	n.report("removal of a container", c.ID, n.ask(func(a *adaptation.Adaptation) error {
		m, err := n.recorded(c)
		if err != nil {
			return err
		}
		return a.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: n.pod(sb), Container: m})
	}))
	n.forget(c.ID)
	return then
}
