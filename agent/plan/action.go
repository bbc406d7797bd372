// Package plan decides what to do now for one pod. It is pure: what is wanted,
// what is observed, what was tried and the time come in; actions come out. It
// calls nobody, remembers nothing and has no clock. The pod's worker carries
// the actions out, asks again, and so on until there is nothing to do.
//
//	action.go   what can be done
//	run.go      a pod that shall run: sandbox, init containers, sidecars, containers
//	stop.go     a pod that shall stop: who is killed, in which order
//	resize.go   resources of containers that run
//	restart.go  restart policies and the crash-loop back-off
//	round.go    a container whose end restarts all containers of its pod
//	prune.go    dead containers and sandboxes that nobody needs any more
package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Action is one thing to do.
type Action interface{ String() string }

// CreateSandbox makes the pod's sandbox.
type CreateSandbox struct {
	Attempt uint32
	// Replaces is the sandbox before, which is not ready any more; empty: there
	// is none. It is stopped first: what it holds of the network is needed.
	Replaces string
}

// StopSandbox ends everything in a sandbox and gives its network back.
type StopSandbox struct{ ID string }

// RemoveSandbox removes a stopped sandbox and all its containers.
type RemoveSandbox struct{ ID string }

// StartContainer pulls the image where needed, creates the container, starts
// it and runs its postStart hook.
type StartContainer struct {
	Container *v1.Container
	Init      bool
	Attempt   uint32
	Round     uint32 // see Round; it is recorded with the container
	// Target is the ID of the container whose processes an ephemeral container
	// sees; empty: it sees its own.
	Target string
	// Backoff is the restart delay now in force; it is recorded with the
	// container, so that the next restart can double it.
	Backoff time.Duration
}

// KillContainer runs the preStop hook and stops a container.
type KillContainer struct {
	ID, Name string
	// Reason and Message are for the Killing event.
	Reason, Message string
	// Grace is the container's own grace period where it differs from the
	// pod's (a failed probe's).
	Grace *int64
	// After are container IDs that must have ended before this one gets its
	// stop signal; its preStop hook does not wait for them.
	After []string
	// Restart: the container is killed to be started again, whatever it exits with.
	Restart bool
}

// Resize sets containers that run, and the pod's cgroup, to what the pod is
// allocated now.
type Resize struct {
	Containers []ResizeContainer
	to         string
}

// ResizeContainer is a container that runs with other resources than it is
// allocated.
type ResizeContainer struct{ ID, Name string }

// RemoveContainer removes a dead container and its log.
type RemoveContainer struct{ ID, Name string }

func (a CreateSandbox) String() string { return fmt.Sprintf("create sandbox, attempt %d", a.Attempt) }
func (a StopSandbox) String() string   { return "stop sandbox " + a.ID }
func (a RemoveSandbox) String() string { return "remove sandbox " + a.ID }
func (a StartContainer) String() string {
	return fmt.Sprintf("start container %s, attempt %d", a.Container.Name, a.Attempt)
}
func (a KillContainer) String() string   { return fmt.Sprintf("kill container %s: %s", a.Name, a.Reason) }
func (a Resize) String() string          { return "resize " + a.to }
func (a RemoveContainer) String() string { return fmt.Sprintf("remove container %s %s", a.Name, a.ID) }

// Waiting is why a container does not run although it should, in the words of
// the API's ContainerStateWaiting.
type Waiting struct{ Reason, Message string }

// Decision is what to do now.
type Decision struct {
	Actions []Action
	// Wake is when to decide again if nothing happens before; zero is never.
	Wake time.Time
	// Complete: every container has ended and none will start again.
	Complete bool
	// Failed: the pod is to be ended as failed, for that reason; nil: it is not.
	Failed *Waiting
	// Waiting is by container name.
	Waiting map[string]Waiting
}

func (d *Decision) act(a Action) { d.Actions = append(d.Actions, a) }

func (d *Decision) wait(container string, w Waiting, until time.Time) {
	if d.Waiting == nil {
		d.Waiting = map[string]Waiting{}
	}
	d.Waiting[container] = w
	if !until.IsZero() {
		d.wakeAt(until)
	}
}

func (d *Decision) wakeAt(t time.Time) {
	if d.Wake.IsZero() || t.Before(d.Wake) {
		d.Wake = t
	}
}
