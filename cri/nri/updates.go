package nri

import (
	"context"

	"github.com/containerd/nri/pkg/api"
)

// update does what a plugin asks for by itself, and returns what could not be
// done.
func (n *NRI) update(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return n.apply(ctx, updates), nil
}

// apply changes limits of containers. What fails is reported, and returned
// unless its plugin does not care.
func (n *NRI) apply(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate) {
	for _, u := range updates {
		err := n.state.ChangeLimits(ctx, u.GetContainerId(), toCRI(u.GetLinux().GetResources()))
		if err == nil {
			continue
		}
		n.log.Warn("limits that an NRI plugin wants", "container", u.GetContainerId(), "error", err)
		if !u.GetIgnoreFailure() {
			failed = append(failed, u)
		}
	}
	return failed
}

// evict ends containers. One that does not end stays.
func (n *NRI) evict(ctx context.Context, evictions []*api.ContainerEviction) {
	for _, e := range evictions {
		n.log.Info("an NRI plugin evicts a container", "container", e.GetContainerId(), "reason", e.GetReason())
		if err := n.state.Evict(ctx, e.GetContainerId(), e.GetReason()); err != nil {
			n.log.Warn("container that an NRI plugin evicts", "container", e.GetContainerId(), "error", err)
		}
	}
}
