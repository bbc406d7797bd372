package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/evict"
	"github.com/berth-io/berth/agent/gc"
	"github.com/berth-io/berth/agent/logrotate"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/shutdown"
	"github.com/berth-io/berth/agent/usage"
)

// Pressure is what the agent does when the node runs short of something, or
// goes down.
type Pressure struct {
	Evict           evict.Config // what it tells, and whom it spares, is filled in
	Images          gc.ImagePolicy
	Containers      gc.ContainerPolicy
	ShutdownPeriods []shutdown.Period
}

// pressure keeps the node from running short.
type pressure struct {
	evict   *evict.Manager
	collect *gc.Collector
	stopper *shutdown.Stopper
}

func (a *Agent) newPressure(p Pressure, pods *dispatch.Dispatcher) (*pressure, error) {
	hierarchy, err := usage.FindHierarchy()
	if err != nil {
		return nil, err
	}
	node := a.config.Node
	meter := usage.New(usage.Config{
		KubeletDir: node.KubeletDir, PodLogsDir: node.PodLogsDir, PodsCgroup: a.cgroups.PodsPath(), Cgroups: hierarchy,
	}, a.runtime, a.images)
	view := podsView{pods}
	out := &pressure{stopper: shutdown.New(p.ShutdownPeriods, view, a.config.Log)}
	collected, changed, spared := (func([]string, time.Time))(nil), pods.Retry, disruption.OfSystem
	if a.cluster != nil {
		collected, changed, spared = a.cluster.forget, a.cluster.registrar.Poke, disruption.Critical
	}
	if out.collect, err = gc.New(gc.Config{
		Collected: collected, ImageCollected: a.counts.ImageCollected,
		Images: p.Images, Containers: p.Containers, Record: filepath.Join(a.config.StateDir, "images-used"),
		PodLogsDir: node.PodLogsDir, ContainerLogsDir: a.config.ContainerLogsDir,
		Logs: logsOf{a.runtime, a.logs}, Log: a.config.Log,
	}, a.runtime, a.images, view, meter, a.events); err != nil {
		return nil, fmt.Errorf("garbage collection: %w", err)
	}
	p.Evict.Notifier = evict.NewNotifier(evict.NotifyConfig{
		Cgroups: hierarchy, PodsCgroup: a.cgroups.PodsPath(), Thresholds: p.Evict.Thresholds,
	})
	p.Evict.Changed, p.Evict.Spared, p.Evict.Counts, p.Evict.Log = changed, spared, a.counts, a.config.Log
	out.evict = evict.New(p.Evict, view, meter, out.collect, a.events)
	return out, nil
}

// run watches the node until ctx ends. Nothing is collected before the agent
// is in control: until then nobody knows whose what is.
func (p *pressure) run(ctx context.Context, inControl <-chan struct{}) error {
	select {
	case <-inControl:
	case <-ctx.Done():
		return ctx.Err()
	}
	ended := make(chan error, 2)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { ended <- p.evict.Run(ctx) }()
	go func() { ended <- p.collect.Run(ctx) }()
	err := <-ended
	cancel()
	<-ended
	return err
}

// logsOf finds the logs of containers that are known by their IDs alone.
type logsOf struct {
	runtime runtimeapi.RuntimeServiceClient
	logs    *logrotate.Rotator
}

// RemoveOf removes the logs of a container that has ended. One that is gone has
// none.
func (l logsOf) RemoveOf(ctx context.Context, id string) error {
	c, err := l.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	switch {
	case status.Code(err) == codes.NotFound:
		return nil
	case err != nil:
		return fmt.Errorf("ask for its log: %w", err)
	case c.GetStatus().GetLogPath() == "":
		return nil
	}
	return l.logs.Remove(ctx, c.GetStatus().GetLogPath())
}

// podsView is the pods as those see them who end and collect.
type podsView struct{ *dispatch.Dispatcher }

// Finished tells whether nothing of a pod runs and its volumes are gone.
func (v podsView) Finished(uid types.UID) bool {
	w := v.ByUID(uid)
	return w == nil || w.Settled()
}

// Stop ends a pod as failed, for a reason of the node's.
func (v podsView) Stop(uid types.UID, s disruption.Stop) { v.Disrupt(uid, s) }

// Owner tells what the agent has to do with a pod.
func (v podsView) Owner(uid types.UID) gc.Owner {
	switch w := v.ByUID(uid); {
	case w != nil && w.Settled():
		return gc.Ended
	case w != nil || !v.Complete():
		return gc.Active
	}
	return gc.Nobody
}

// ImageVolumes are the images that pods have as volumes.
func (v podsView) ImageVolumes() []string {
	var out []string
	for _, pod := range v.Pods() {
		for i := range pod.Spec.Volumes {
			if image := pod.Spec.Volumes[i].Image; image != nil {
				out = append(out, image.Reference)
			}
		}
	}
	return out
}

// under tells what the node is short of.
func (p *pressure) under(c v1.NodeConditionType) bool {
	return p != nil && slices.Contains(p.evict.Pressure(), c)
}

// again tells which pods from manifests run once more after they were evicted;
// nil: none. Without a cluster there is no controller that makes others in place
// of a workload's, so the same ones come back when the node is short of nothing.
func (a *Agent) again() func(pod *v1.Pod) bool {
	if a.cluster != nil {
		return nil
	}
	return func(pod *v1.Pod) bool {
		return pod.Status.Phase == v1.PodFailed && pod.Status.Reason == evict.Evicted && manifest.Replaced(pod) && a.pressure.evict.Calm()
	}
}
