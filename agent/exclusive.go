package agent

import (
	"context"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/metrics"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/resources"
	"github.com/berth-io/berth/agent/resources/devices"
	"github.com/berth-io/berth/agent/resources/dra"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/pluginwatch"
	"github.com/berth-io/berth/agent/resources/podresources"
)

// Resources is what containers can have to themselves, and what the node has.
type Resources struct {
	// Allocator's Dir and Log are filled in.
	Allocator resources.Config
	// Capacity is what the node has with those devices.
	Capacity func(machine.Devices) (machine.Resources, error)
}

// exclusive gives containers CPUs, memory and devices to themselves.
type exclusive struct {
	*resources.Allocator
	plugins *devices.Plugins
	claims  *dra.Claims
	config  Resources
	dir     string // the kubelet's
	counts  *metrics.Events
}

func (a *Agent) newExclusive(r Resources) (*exclusive, error) {
	e := &exclusive{config: r, dir: a.config.Node.KubeletDir, counts: a.counts}
	changed := func(podUIDs []string) {
		for _, uid := range podUIDs {
			a.pods.Observed(uid)
		}
	}
	var err error
	e.plugins, err = devices.New(devices.Config{
		Dir: filepath.Join(e.dir, "device-plugins"), Nodes: r.Allocator.Machine.NodeIDs(), Counts: a.counts, Log: a.config.Log,
		CapacityChanged: func() { a.cluster.registrar.Poke() }, HealthChanged: changed,
	})
	if err != nil {
		return nil, err
	}
	e.claims, err = dra.New(dra.Config{
		Dir: e.dir, Node: a.config.Node.Name, Client: a.config.Cluster.Client.ResourceV1(), HealthChanged: changed, Log: a.config.Log,
		DriverCame: a.retryClaims,
	})
	if err != nil {
		return nil, err
	}
	r.Allocator.Dir, r.Allocator.Counts, r.Allocator.Log = e.dir, a.counts, a.config.Log
	if e.Allocator, err = resources.New(r.Allocator, e.plugins, a.runtime); err != nil {
		return nil, err
	}
	return e, nil
}

// retryClaims has pods whose claims could not be prepared try again now.
func (a *Agent) retryClaims() {
	for _, pod := range a.pods.Pods() {
		if len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil {
			a.pods.ObjectsChanged(pod.UID)
		}
	}
}

// run keeps containers on what they have, and listens to plugins, until ctx ends.
func (e *exclusive) run(ctx context.Context, pods *dispatch.Dispatcher, observations *observed.Store, watcher *pluginwatch.Watcher) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.plugins.Run(ctx) })
	group.Go(func() error { return e.claims.Run(ctx) })
	group.Go(func() error { return watcher.Run(ctx) })
	group.Go(func() error {
		return e.Allocator.Run(ctx, func() resources.World { return world(pods, observations) })
	})
	group.Go(func() error {
		socket := filepath.Join(e.dir, "pod-resources", "kubelet.sock")
		return podresources.New(socket, activePods{pods}, e.Allocator, e.claims, e.counts.PodResourcesAsked).Run(ctx)
	})
	return group.Wait()
}

// world is who holds what containers can have to themselves.
func world(pods *dispatch.Dispatcher, observations *observed.Store) resources.World {
	if !pods.Complete() {
		return resources.World{}
	}
	w := resources.World{Pods: pods.Active()}
	if w.Pods == nil {
		w.Pods = []*v1.Pod{} // known to be none
	}
	for _, pod := range w.Pods {
		o := observations.Pod(string(pod.UID))
		for i := range o.Containers {
			if c := &o.Containers[i]; c.State == observed.Running {
				w.Running = append(w.Running, resources.Running{ID: c.ID, PodUID: string(pod.UID), Name: c.Name})
			}
		}
	}
	return w
}

// activePods are the pods that the PodResources API tells of.
type activePods struct{ *dispatch.Dispatcher }

// ActivePods are those that were admitted and have not ended.
func (p activePods) ActivePods() []*v1.Pod { return p.Active() }

// allocate gives a new pod that need ask nobody what its containers are to have
// to themselves.
func (e *exclusive) allocate(pod *v1.Pod, others []*v1.Pod) *admit.Rejection {
	return rejection(e.Admit(pod, slices.Clone(others)))
}

// ask is allocate for a pod for which device plugins are asked.
func (e *exclusive) ask(ctx context.Context, pod *v1.Pod, active func() []*v1.Pod) *admit.Rejection {
	return rejection(e.AdmitAsking(ctx, pod, active))
}

func rejection(r *resources.Rejection) *admit.Rejection {
	if r == nil {
		return nil
	}
	return &admit.Rejection{Reason: r.Reason, Message: r.Message}
}
