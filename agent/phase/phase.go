// Package phase is the life cycle of one pod UID on this node, as a pure state
// machine. It is not the API's PodPhase, which is a projection of container
// states (agent/status); it says what the pod's worker may still do.
//
//	           Started                    (the sandbox and the first container were asked for)
//	starting ───────────► running
//	   │                     │
//	   │ Stop, Completed     │ Stop, Completed
//	   └─────► terminating ◄─┘            (nothing is started any more)
//	               │
//	               │ Stopped              (no container runs; exit codes are final)
//	               ▼
//	           terminated                 (volumes, cgroup and network are given back; logs remain)
//	               │
//	               │ Forgotten            (no source wants the pod any longer)
//	               ▼
//	           finished                   (nothing is left; the worker ends)
//
// A phase never goes back: a pod that shall run again is a new UID.
package phase

import "fmt"

// Phase is where a pod UID stands in its life on this node.
type Phase int

const (
	Starting Phase = iota
	Running
	Terminating
	Terminated
	Finished
)

func (p Phase) String() string {
	switch p {
	case Starting:
		return "starting"
	case Running:
		return "running"
	case Terminating:
		return "terminating"
	case Terminated:
		return "terminated"
	case Finished:
		return "finished"
	}
	return fmt.Sprintf("phase(%d)", int(p))
}

// Event moves a pod through its phases.
type Event int

const (
	// Started: the pod's sandbox runs and containers are being started.
	Started Event = iota
	// Stop: someone wants the pod gone: its source, a deadline, an eviction.
	Stop
	// Completed: every container ended and none may start again.
	Completed
	// Stopped: no container of the pod runs.
	Stopped
	// Forgotten: no source wants the pod any longer.
	Forgotten
)

func (e Event) String() string {
	switch e {
	case Started:
		return "started"
	case Stop:
		return "stop"
	case Completed:
		return "completed"
	case Stopped:
		return "stopped"
	case Forgotten:
		return "forgotten"
	}
	return fmt.Sprintf("event(%d)", int(e))
}

// Next returns the phase after e. An event that means nothing in p leaves it
// as it is; no event leads back.
func Next(p Phase, e Event) Phase {
	switch {
	case e == Started && p == Starting:
		return Running
	case (e == Stop || e == Completed) && p < Terminating:
		return Terminating
	case e == Stopped && p == Terminating:
		return Terminated
	case e == Forgotten && p == Terminated:
		return Finished
	}
	return p
}
