package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/probe"
)

// world is a runtime in memory: it does what the plan says, and lets tests end
// containers as they like. Time is its own.
type world struct {
	pod      *v1.Pod
	obs      observed.Pod
	probes   map[string]probe.Result
	failures map[string]Failure
	restarts map[string]bool
	past     map[string]Past
	keepDead int
	limit    *int64
	failed   *Waiting
	now      time.Time
	ids      int
	log      []string
	complete bool
	waiting  map[string]Waiting
	wake     time.Time
}

func newWorld(pod *v1.Pod) *world {
	pod.UID, pod.Name, pod.Namespace = "uid", "web", "default"
	return &world{
		pod: pod, now: time.Unix(1_000_000, 0), probes: map[string]probe.Result{},
		failures: map[string]Failure{}, restarts: map[string]bool{}, past: map[string]Past{},
	}
}

// settle asks and acts until there is nothing to do.
func (w *world) settle() *world {
	for range 100 {
		d := Run(Input{
			Pod: w.pod, Observed: &w.obs, Probes: w.probes, Failures: w.failures, Restarts: w.restarts,
			Past: w.past, Backoff: KubeletBackoff, KeepDead: w.keepDead, RestartLimit: w.limit, Now: w.now,
		})
		w.complete, w.waiting, w.wake, w.failed = d.Complete, d.Waiting, d.Wake, d.Failed
		if len(d.Actions) == 0 || d.Complete || d.Failed != nil {
			return w
		}
		w.do(d.Actions[0])
	}
	panic(fmt.Sprintf("the plan does not settle: %v", w.log))
}

func (w *world) do(a Action) {
	w.log = append(w.log, a.String())
	switch a := a.(type) {
	case CreateSandbox:
		w.ids++
		s := observed.Sandbox{ID: fmt.Sprintf("s%d", w.ids), Attempt: a.Attempt, Ready: true, CreatedAt: w.now, IPs: []string{"10.0.0.2"}}
		w.obs.Sandboxes = append([]observed.Sandbox{s}, w.obs.Sandboxes...)
	case StopSandbox:
		for i := range w.obs.Sandboxes {
			if w.obs.Sandboxes[i].ID == a.ID {
				w.obs.Sandboxes[i].Ready = false
			}
		}
		for i := range w.obs.Containers {
			if w.obs.Containers[i].SandboxID == a.ID {
				w.exitAt(i, 137)
			}
		}
	case RemoveSandbox:
		for i := range w.obs.Sandboxes {
			if w.obs.Sandboxes[i].ID == a.ID {
				w.obs.Sandboxes = append(w.obs.Sandboxes[:i:i], w.obs.Sandboxes[i+1:]...)
				return
			}
		}
	case StartContainer:
		w.ids++
		c := observed.Container{
			ID: fmt.Sprintf("c%d", w.ids), SandboxID: w.obs.Sandboxes[0].ID, Name: a.Container.Name, Attempt: a.Attempt,
			State: observed.Running, CreatedAt: w.now, StartedAt: w.now, Backoff: a.Backoff, Round: a.Round,
		}
		w.obs.Containers = append([]observed.Container{c}, w.obs.Containers...)
	case KillContainer:
		if a.Restart {
			w.restarts[a.ID] = true
		}
		for i := range w.obs.Containers {
			if w.obs.Containers[i].ID == a.ID {
				w.exitAt(i, 143)
			}
		}
	case RemoveContainer:
		for i := range w.obs.Containers {
			if w.obs.Containers[i].ID == a.ID {
				w.obs.Containers = append(w.obs.Containers[:i:i], w.obs.Containers[i+1:]...)
				return
			}
		}
	}
}

func (w *world) exitAt(i int, code int32) {
	if c := &w.obs.Containers[i]; runs(c) {
		c.State, c.ExitCode, c.FinishedAt = observed.Exited, code, w.now
	}
}

// exit ends the newest container of that name after it ran for a while.
func (w *world) exit(name string, code int32, after time.Duration) *world {
	w.now = w.now.Add(after)
	for i := range w.obs.Containers {
		if w.obs.Containers[i].Name == name {
			w.exitAt(i, code)
			return w
		}
	}
	panic("no container " + name)
}

func (w *world) wait(d time.Duration) *world {
	w.now = w.now.Add(d)
	return w
}

// running lists the names of running containers, newest first.
func (w *world) running() []string {
	var names []string
	for i := range w.obs.Containers {
		if w.obs.Containers[i].State == observed.Running {
			names = append(names, w.obs.Containers[i].Name)
		}
	}
	return names
}

// did returns what was done since the last call.
func (w *world) did() []string {
	log := w.log
	w.log = nil
	return log
}
