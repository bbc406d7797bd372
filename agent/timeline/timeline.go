// Package timeline records what a pod's worker did and how long it took: the
// answer to "why is this pod not running" and "where did the time go".
package timeline

import (
	"slices"
	"sync"
	"time"
)

// The names of steps, in the order a pod meets them.
const (
	Queued   = "queued"  // from the source's notice to the worker's first decision
	Cgroup   = "cgroup"  // the pod's cgroup
	Volumes  = "volumes" // set-up of all volumes
	Claims   = "claims"  // drivers prepare the devices of ResourceClaims
	Sandbox  = "sandbox" // namespaces, network and shim
	Pull     = "pull"    // image, where it was not there
	Create   = "create"  // container: writable layer, configuration
	Start    = "start"   // container: the OCI runtime
	PostHook = "postStart"
	PreHook  = "preStop"
	Stop     = "stop" // signal, grace, kill
	Release  = "release"
	Resize   = "resize" // resources of what runs
	Backoff  = "back-off"
	Ready    = "ready" // an instant: the pod's Ready condition became true
)

// Step is one thing that was done, is being done, or is waited for.
type Step struct {
	Name      string    `json:"name"`
	Container string    `json:"container,omitempty"`
	Start     time.Time `json:"start"`
	End       time.Time `json:"end,omitzero"` // zero: under way
	Error     string    `json:"error,omitempty"`
}

// keep bounds the record: a pod that restarts for months keeps its first steps
// (how it came up) and its latest.
const keepFirst, keepLast = 24, 40

// Log is the record of one pod. The zero value is ready to use, and it may be
// used by several goroutines.
type Log struct {
	mu    sync.Mutex
	steps []Step
}

// Restore starts a Log from what was recorded before a restart of the agent.
// What was under way then has been interrupted.
func Restore(steps []Step, now time.Time) *Log {
	l := &Log{steps: slices.Clone(steps)}
	for i := range l.steps {
		if l.steps[i].End.IsZero() {
			l.steps[i].End, l.steps[i].Error = now, "interrupted by a restart of the agent"
		}
	}
	return l
}

// Begin records the start of a step; the returned function records its end.
func (l *Log) Begin(name, container string) (end func(error)) {
	start := time.Now()
	l.add(Step{Name: name, Container: container, Start: start})
	return func(err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for i := len(l.steps) - 1; i >= 0; i-- {
			s := &l.steps[i]
			if s.Name == name && s.Container == container && s.Start.Equal(start) {
				s.End = time.Now()
				if err != nil {
					s.Error = err.Error()
				}
				return
			}
		}
	}
}

// Span records a step that is over.
func (l *Log) Span(name, container string, start, end time.Time) {
	l.add(Step{Name: name, Container: container, Start: start, End: end})
}

// Steps returns a copy of the record, oldest first.
func (l *Log) Steps() []Step {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.steps)
}

func (l *Log) add(s Step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps = append(l.steps, s)
	if len(l.steps) > keepFirst+keepLast {
		l.steps = slices.Delete(l.steps, keepFirst, len(l.steps)-keepLast)
	}
}
