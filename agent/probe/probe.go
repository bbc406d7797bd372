// Package probe runs startup, readiness and liveness probes.
//
// A Set belongs to one pod's worker. It is level driven: Sync tells it which
// containers run, it starts and stops their probes to match; Changed wakes the
// worker when a result it would act on has changed.
//
// A probe that waits for its turn is a timer and nothing else: there is a
// goroutine only while an attempt is under way.
package probe

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Kind is what a probe is for; the texts are those of the kubelet's events.
type Kind string

// The kinds of probes.
const (
	Startup   Kind = "Startup"
	Readiness Kind = "Readiness"
	Liveness  Kind = "Liveness"
)

// Target is a running container with probes.
type Target struct {
	Container   *v1.Container
	ContainerID string
	StartedAt   time.Time
	// Previous is what was known of this very container ID before the agent
	// restarted; probing goes on from there.
	Previous *Result
}

// Result is what the probes of one container say now.
type Result struct {
	ContainerID string `json:"containerID"`
	Started     bool   `json:"started"`           // true without a startup probe
	Ready       bool   `json:"ready"`             // Started, and the readiness probe, if there is one, has succeeded
	Alive       bool   `json:"alive"`             // false once liveness or startup failed for good: kill and restart
	Kind        Kind   `json:"kind,omitempty"`    // of the failing probe
	Message     string `json:"message,omitempty"` // its last output; of an attempt that does not count as well
	// Grace is the failed probe's terminationGracePeriodSeconds; nil: the pod's.
	Grace *int64    `json:"grace,omitempty"`
	At    time.Time `json:"at"` // of the last attempt
}

// Exec runs a command in a container; output is stdout and stderr joined. An
// error says that the command did not run to its end: context.DeadlineExceeded
// or the CRI's DeadlineExceeded that timeout was reached, any other that
// nothing is known.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (output []byte, exitCode int, err error)

// Config is what a Set works with.
type Config struct {
	Exec Exec
	// Event is told of attempts that failed (Unhealthy) or ended in a warning
	// (ProbeWarning). It is called without locks held and must not block.
	Event func(container *v1.Container, eventType, reason, message string)
	// Probed is told of each attempt, in the same way: with "successful",
	// "failed" or "unknown", and how long it took. nil: nobody counts.
	Probed func(container *v1.Container, kind Kind, result string, took time.Duration)
}
