package worker

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/probe"
)

// syncProbes tells the pod's probes which containers run.
func (w *Worker) syncProbes(ctx context.Context, obs *observed.Pod) {
	var targets []probe.Target
	add := func(c *v1.Container) {
		if c.StartupProbe == nil && c.ReadinessProbe == nil && c.LivenessProbe == nil {
			return
		}
		cur := obs.Container(c.Name)
		if cur == nil || cur.State != observed.Running {
			return
		}
		t := probe.Target{Container: c, ContainerID: cur.ID, StartedAt: cur.StartedAt}
		if p, ok := w.state.previous[c.Name]; ok && p.ContainerID == cur.ID {
			t.Previous = &p
		}
		targets = append(targets, t)
	}
	for i := range w.pod.Spec.InitContainers {
		if c := &w.pod.Spec.InitContainers[i]; plan.Sidecar(c) {
			add(c)
		}
	}
	for i := range w.pod.Spec.Containers {
		add(&w.pod.Spec.Containers[i])
	}
	if w.state.probes == nil {
		if len(targets) == 0 {
			return // most pods never need a set
		}
		w.state.probes = probe.NewSet(ctx, probe.Config{
			Exec: w.config.ProbeExec,
			Event: func(c *v1.Container, eventType, reason, message string) {
				w.parts.Events.Container(w.Pod(), c.Name, plan.Sidecar(c), eventType, reason, "%s", message)
			},
			Probed: func(c *v1.Container, kind probe.Kind, result string, took time.Duration) {
				if w.config.Probed != nil {
					w.config.Probed(w.Pod(), c.Name, kind, result, took)
				}
			},
		}, w.pod)
	}
	w.state.probes.Sync(w.actPod(obs).FirstIP(), targets)
}

// results are the newest of this agent's probes, and of the agent before for
// containers that were not probed yet.
func (w *Worker) results() map[string]probe.Result {
	if w.state.probes == nil {
		return w.state.previous
	}
	return w.state.probes.Results()
}

// probesChanged is nil, which blocks for ever, without probes.
func (w *Worker) probesChanged() <-chan struct{} {
	if w.state.probes == nil {
		return nil
	}
	return w.state.probes.Changed()
}

func (w *Worker) stopLiveness() {
	if w.state.probes != nil {
		w.state.probes.StopLiveness()
	}
}

func (w *Worker) endProbes() {
	if w.state.probes != nil {
		w.state.previous = w.state.probes.Results()
		w.state.probes.Stop()
		w.state.probes = nil
	}
}
