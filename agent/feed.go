package agent

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/source"
)

// classesPause is the least time between two looks at what pods request. A
// hundred pods that start change four times each.
const classesPause = 100 * time.Millisecond

// feed hands each new state of the sources to the dispatcher.
func (a *Agent) feed(ctx context.Context, d *dispatch.Dispatcher) error {
	var last source.Snapshot
	var pods []*v1.Pod
	told := map[string]bool{}
	classes := time.NewTimer(0) // runs while the classes' shares are not up to date
	classes.Stop()
	defer classes.Stop()
	var refreshed time.Time
	var fromAPI <-chan struct{} // nil, which never receives, without a cluster
	if a.cluster != nil {
		fromAPI = a.cluster.pods.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-classes.C:
			refreshed = time.Now()
			a.refreshClasses(a.allocated(pods))
			continue
		case <-a.source.Changed():
		case <-fromAPI:
			a.cluster.report.PodsChanged()
		}
		at := time.Now()
		a.feeding.Store(at.UnixNano())
		next := a.source.Snapshot()
		told = a.tellRejected(next.Rejected, told)
		want := dispatch.Desired{
			Pods: next.Set.Pods, Complete: next.Complete, Local: next.Complete, At: at,
			Objects: objectsChanged(&last.Set, &next.Set),
		}
		if a.cluster != nil {
			fromCluster, _, complete := a.cluster.pods.Pods()
			want.Pods, want.Complete = slices.Concat(want.Pods, fromCluster), want.Complete && complete
			want.Gone = a.cluster.pods.TakeGone()
			a.cluster.mirror.Poke()
		}
		d.Want(ctx, want)
		last, pods = next, want.Pods
		classes.Reset(time.Until(refreshed.Add(classesPause))) // at once, after a pause
		a.feeding.Store(0)
	}
}

// longestFeed is how long handing on what sources say may take in a healthy
// agent (pkg/kubelet/kubelet.go, SyncLoopHealthCheck).
const longestFeed = 5 * time.Minute

// syncing is the health of the loop that syncs pods.
func (a *Agent) syncing() error {
	since := a.feeding.Load()
	if since != 0 && time.Since(time.Unix(0, since)) > longestFeed {
		return errors.New("sync Loop took longer than expected")
	}
	return nil
}

// allocated are pods with what they are allocated, which is not what their
// sources want while a resize waits. Those that have ended are not among them,
// though their objects stay.
func (a *Agent) allocated(pods []*v1.Pod) []*v1.Pod {
	pods = slices.DeleteFunc(slices.Clone(pods), func(pod *v1.Pod) bool {
		return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
	})
	if a.ledger == nil {
		return pods
	}
	known := map[types.UID]*v1.Pod{}
	for _, pod := range a.ledger.Pods() {
		known[pod.UID] = pod
	}
	out := make([]*v1.Pod, 0, len(pods))
	for _, pod := range pods {
		if k := known[pod.UID]; k != nil {
			pod = k
		}
		out = append(out, pod)
	}
	return out
}

// refreshClasses sets the shares of the QoS levels to what their pods request.
// Pods run meanwhile with the shares of a moment ago.
func (a *Agent) refreshClasses(pods []*v1.Pod) {
	if err := a.cgroups.RefreshClasses(pods); err != nil {
		a.config.Log.Warn("CPU shares of the QoS classes are not up to date; they are set again with the next change", "err", err)
	}
}

// tellRejected records an event for each rejection that was not told yet, and
// returns those that are told now.
func (a *Agent) tellRejected(list []manifest.Rejection, told map[string]bool) map[string]bool {
	now := map[string]bool{}
	for _, r := range list {
		text := r.Error()
		if now[text] = true; !told[text] {
			a.events.Node(v1.EventTypeWarning, "InvalidManifest", "%s", text)
		}
	}
	return now
}

// objectsChanged compares by identity: an object that did not change is the
// same in the next snapshot.
func objectsChanged(old, next *manifest.Set) bool {
	return !maps.Equal(old.ConfigMaps, next.ConfigMaps) || !maps.Equal(old.Secrets, next.Secrets) || !maps.Equal(old.Claims, next.Claims)
}
