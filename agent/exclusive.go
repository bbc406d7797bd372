package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/metrics"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/resources"
	"github.com/berth-io/berth/agent/resources/devices"
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
	config  Resources
	dir     string // the kubelet's
	counts  *metrics.Events
}

func (a *Agent) newExclusive(r Resources) (*exclusive, error) {
	e := &exclusive{config: r, dir: a.config.Node.KubeletDir, counts: a.counts}
	var err error
	e.plugins, err = devices.New(devices.Config{
		Dir: filepath.Join(e.dir, "device-plugins"), Nodes: r.Allocator.Machine.NodeIDs(), Counts: a.counts, Log: a.config.Log,
		CapacityChanged: func() { a.cluster.registrar.Poke() },
		HealthChanged: func(podUIDs []string) {
			for _, uid := range podUIDs {
				a.pods.Observed(uid)
			}
		},
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

// run keeps containers on what they have, and listens to plugins, until ctx ends.
func (e *exclusive) run(ctx context.Context, pods *dispatch.Dispatcher, observations *observed.Store, watcher *pluginwatch.Watcher) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.plugins.Run(ctx) })
	group.Go(func() error { return watcher.Run(ctx) })
	group.Go(func() error {
		return e.Allocator.Run(ctx, func() resources.World { return world(pods, observations) })
	})
	group.Go(func() error {
		return podresources.New(filepath.Join(e.dir, "pod-resources", "kubelet.sock"), activePods{pods}, e.Allocator, e.counts.PodResourcesAsked).Run(ctx)
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

// allocateTimeout bounds how long device plugins may take for one pod. Others
// wait for their admission meanwhile.
const allocateTimeout = time.Minute

// allocate gives a new pod what its containers are to have to themselves.
func (e *exclusive) allocate(pod *v1.Pod, others []*v1.Pod) *admit.Rejection {
	ctx, cancel := context.WithTimeoutCause(context.Background(), allocateTimeout, fmt.Errorf("device plugins did not answer within %s", allocateTimeout))
	defer cancel()
	if r := e.Admit(ctx, pod, slices.Clone(others)); r != nil {
		return &admit.Rejection{Reason: r.Reason, Message: r.Message}
	}
	return nil
}
