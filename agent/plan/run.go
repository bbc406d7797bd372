package plan

import (
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/probe"
)

// Input is all that a decision stands on.
type Input struct {
	Pod      *v1.Pod
	Observed *observed.Pod
	// Probes are the newest results by container name; one of another
	// container ID counts for nothing.
	Probes map[string]probe.Result
	// Failures are attempts that did not work, by container name; those under
	// PodFailure concern the pod as a whole (volumes, sandbox), those under
	// PruneFailure what is left of earlier runs.
	Failures map[string]Failure
	// Restarts are IDs of containers that were killed to be started again.
	Restarts map[string]bool
	// Past is what ran before this boot, of which the runtime knows nothing any
	// more, by container name.
	Past    map[string]Past
	Backoff Backoff
	// KeepDead is how many dead containers of a name stay beside the newest; one
	// does in any case.
	KeepDead int
	// Actuated is what the pod's cgroup and its containers have.
	Actuated allocation.Actuated
	// RestartLimit is how many restarts the pod's containers have together; nil:
	// any number.
	RestartLimit *int64
	// Updated is when an image of the pod was changed last; zero: not while this
	// agent runs.
	Updated time.Time
	Now     time.Time

	round uint32 // see Round
}

// Past is the last run of a container before the host booted.
type Past struct {
	// Attempt is its restart count: a new container's is above it.
	Attempt uint32 `json:"attempt"`
	// Exited, with ExitCode: it had ended before. Otherwise the boot ended it.
	Exited   bool  `json:"exited,omitempty"`
	ExitCode int32 `json:"exitCode,omitempty"`
}

// Keys of failures that are not one container's: no container has such a name.
const (
	PodFailure    = ""
	PruneFailure  = "(prune)"
	ResizeFailure = "(resize)"
)

// Failure is an action that did not work and when it may be tried again.
type Failure struct {
	Waiting
	Count   int
	RetryAt time.Time
}

// Run decides for a pod that shall run.
func Run(in Input) Decision {
	var d Decision
	in.round = Round(in.Pod, in.Observed)
	if f, ok := in.Failures[PodFailure]; ok && f.RetryAt.After(in.Now) {
		d.wakeAt(f.RetryAt)
		return d
	}
	sandbox := in.Observed.ReadySandbox()
	if sandbox == nil {
		newSandbox(in, &d)
		return d
	}
	stopOlder(in, &d)
	if endRound(in, &d) {
		return d
	}
	r := run{in: in, sandbox: sandbox.ID, d: &d}
	if r.initContainers() {
		d.Complete = r.containers()
	}
	r.ephemeralContainers()
	resize(in, &d)
	prune(in, &d) // last: a leftover that resists holds nothing up
	return d
}

// newSandbox replaces a sandbox that is gone, unless the pod had its run.
func newSandbox(in Input, d *Decision) {
	for i := range in.Observed.Containers {
		if c := &in.Observed.Containers[i]; runs(c) {
			d.act(StopSandbox{ID: c.SandboxID})
			return
		}
	}
	if hadItsRun(in) {
		d.Complete = true
		return
	}
	if old := in.Observed.Sandbox(); old != nil {
		d.act(CreateSandbox{Attempt: old.Attempt + 1, Replaces: old.ID})
		return
	}
	d.act(CreateSandbox{})
}

// hadItsRun tells whether a pod whose sandbox is gone has nothing left to run:
// each container has ended for good, or the pod never restarts and was under way.
func hadItsRun(in Input) bool {
	if in.Pod.Spec.RestartPolicy == v1.RestartPolicyNever && len(in.Observed.Containers)+len(in.Past) > 0 {
		return true
	}
	for i := range in.Pod.Spec.Containers {
		if !endedForGood(in, &in.Pod.Spec.Containers[i]) {
			return false
		}
	}
	return true
}

// endedForGood tells whether a container proper has ended and is not to be
// started again.
func endedForGood(in Input, c *v1.Container) bool {
	if last := in.Observed.Container(c.Name); last != nil {
		return last.State == observed.Exited && last.Round >= in.round && !in.Restarts[last.ID] && !ShouldRestart(in.Pod, c, false, last.ExitCode)
	}
	past := in.Past[c.Name]
	return past.Exited && !ShouldRestart(in.Pod, c, false, past.ExitCode)
}

// run is one decision about the containers of a ready sandbox.
type run struct {
	in      Input
	sandbox string
	d       *Decision
}

// current returns the newest container of that name in the ready sandbox and of
// the pod's round.
func (r *run) current(name string) *observed.Container {
	if c := r.in.Observed.Container(name); c != nil && c.SandboxID == r.sandbox && c.Round >= r.in.round {
		return c
	}
	return nil
}

// initContainers brings the init containers forward by one step and tells
// whether the pod's containers may run. Sidecars are kept running from their
// turn on, whatever comes after them does.
func (r *run) initContainers() bool {
	begun := r.begun()
	pod := r.in.Pod
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		cur := r.current(c.Name)
		switch {
		case Sidecar(c):
			if !r.keepRunning(c, true) && !begun {
				return false
			}
			if !begun && !r.started(c, r.current(c.Name)) {
				return false
			}
		case begun:
			// Its work is done: containers of this sandbox exist already.
		case cur != nil && cur.State == observed.Exited && cur.ExitCode == 0 && !r.in.Restarts[cur.ID]:
		case cur != nil && cur.State == observed.Exited && !ShouldRestart(pod, c, true, cur.ExitCode):
			r.d.Complete = true // it failed, and nothing may start it again
			return false
		default:
			r.keepRunning(c, true)
			return false
		}
	}
	return true
}

// begun tells whether a container proper was ever created in this sandbox.
func (r *run) begun() bool {
	for i := range r.in.Pod.Spec.Containers {
		if r.current(r.in.Pod.Spec.Containers[i].Name) != nil {
			return true
		}
	}
	return false
}

// started tells whether a sidecar lets its successors start.
func (r *run) started(c *v1.Container, cur *observed.Container) bool {
	if cur == nil || cur.State != observed.Running {
		return false
	}
	if c.StartupProbe == nil {
		return true
	}
	p := r.in.Probes[c.Name]
	return p.ContainerID == cur.ID && p.Started
}

// containers brings the containers proper forward and tells whether all of
// them have ended for good.
func (r *run) containers() (complete bool) {
	complete = true
	for i := range r.in.Pod.Spec.Containers {
		c := &r.in.Pod.Spec.Containers[i]
		if endedForGood(r.in, c) {
			continue
		}
		complete = false
		r.keepRunning(c, false)
	}
	return complete
}

// ephemeralContainers starts those that never ran: none is started twice. They
// wait for no init container, and the pod does not wait for them.
func (r *run) ephemeralContainers() {
	for i := range r.in.Pod.Spec.EphemeralContainers {
		e := &r.in.Pod.Spec.EphemeralContainers[i]
		c := (*v1.Container)(&e.EphemeralContainerCommon)
		_, past := r.in.Past[c.Name]
		if past || r.in.Observed.Container(c.Name) != nil {
			continue
		}
		if f, ok := r.in.Failures[c.Name]; ok && f.RetryAt.After(r.in.Now) {
			r.d.wait(c.Name, f.Waiting, f.RetryAt)
			continue
		}
		a := StartContainer{Container: c}
		if e.TargetContainerName != "" {
			target := r.current(e.TargetContainerName)
			if target == nil {
				r.d.wait(c.Name, Waiting{Reason: "CreateContainerConfigError",
					Message: "unable to find target container " + e.TargetContainerName}, time.Time{})
				continue
			}
			a.Target = target.ID
		}
		r.d.act(a)
	}
}

// keepRunning starts a container that does not run and kills one that runs
// but is not well. It tells whether the container runs and may go on.
func (r *run) keepRunning(c *v1.Container, init bool) bool {
	cur := r.current(c.Name)
	switch {
	case cur == nil:
		r.start(c, init)
		return false
	case cur.State == observed.Running && changed(c, cur) && r.in.Now.Before(r.in.Updated.Add(settle)):
		r.d.wakeAt(r.in.Updated.Add(settle))
		return r.healthy(c, cur)
	case cur.State == observed.Running && changed(c, cur):
		r.d.act(KillContainer{ID: cur.ID, Name: cur.Name, Reason: "Killing",
			Message: "Container " + c.Name + " definition changed, will be restarted", Restart: true})
		return false
	case cur.State == observed.Running && r.healthy(c, cur):
		return !r.restartToResize(c, cur)
	case cur.State == observed.Running:
		return false
	case cur.State == observed.Created:
		// Created, never started: the agent died in between. Its successor
		// takes over its attempt.
		r.d.act(RemoveContainer{ID: cur.ID, Name: cur.Name})
		return false
	case cur.State == observed.Unknown:
		r.d.act(KillContainer{ID: cur.ID, Name: cur.Name, Reason: "ContainerUnknown",
			Message: "Container is in unknown state, try killing it before restart", Restart: true})
		return false
	}
	r.start(c, init)
	return false
}

// settle is how long a pod's images must not have changed before containers are
// restarted for it: changes come in a row, and each restart costs its users.
const settle = time.Second

// changed tells whether a container is another than the pod's now: the API lets
// the image change in place.
func changed(c *v1.Container, cur *observed.Container) bool {
	return cur.Hash != "" && cur.Hash != strconv.FormatUint(podspec.Hash(c), 16)
}

// healthy kills a running container whose liveness or startup probe failed.
func (r *run) healthy(c *v1.Container, cur *observed.Container) bool {
	p, ok := r.in.Probes[c.Name]
	if !ok || p.ContainerID != cur.ID || p.Alive {
		return true
	}
	what := "liveness"
	if p.Kind == probe.Startup {
		what = "startup"
	}
	r.d.act(KillContainer{
		ID: cur.ID, Name: cur.Name, Reason: string(p.Kind),
		Message: "Container " + c.Name + " failed " + what + " probe, will be restarted",
		Grace:   p.Grace,
		Restart: r.in.Pod.Spec.RestartPolicy != v1.RestartPolicyNever,
	})
	return false
}

// start starts a container, or says why it has to wait.
func (r *run) start(c *v1.Container, init bool) {
	if f, ok := r.in.Failures[c.Name]; ok && f.RetryAt.After(r.in.Now) {
		r.d.wait(c.Name, f.Waiting, f.RetryAt)
		return
	}
	a := StartContainer{Container: c, Init: init, Attempt: nextAttempt(r.in, c.Name), Round: r.in.round}
	if r.in.RestartLimit != nil && restartsWith(r.in, a) > *r.in.RestartLimit {
		r.d.Failed = &Waiting{Reason: "BackoffLimitExceeded", Message: "Job has reached the specified backoff limit"}
		return
	}
	if last := r.in.Observed.Container(c.Name); last != nil && last.State == observed.Exited && last.Round >= r.in.round && !changed(c, last) {
		from, delay := r.in.Backoff.next(last, r.in.Now)
		if from.After(r.in.Now) {
			r.d.wait(c.Name, crashLoop(r.in.Pod, c.Name, last.Backoff), from)
			return
		}
		a.Backoff = delay
	}
	r.d.act(a)
}
