// Package probe runs startup, readiness and liveness probes.
//
// A Set belongs to one pod's worker. It is level driven: Sync tells it which
// containers run, it starts and stops their probes to match; Changed wakes the
// worker when a result it would act on has changed.
package probe

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
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
	ContainerID string    `json:"containerID"`
	Started     bool      `json:"started"`           // true without a startup probe
	Ready       bool      `json:"ready"`             // false until the first success where there is a readiness probe
	Alive       bool      `json:"alive"`             // false once liveness or startup failed for good: kill and restart
	Kind        string    `json:"kind,omitempty"`    // of the failing probe: Startup, Readiness, Liveness
	Message     string    `json:"message,omitempty"` // its last output
	At          time.Time `json:"at"`
}

// Exec runs a command in a container; output is stdout and stderr joined.
type Exec func(ctx context.Context, containerID string, command []string, timeout time.Duration) (output []byte, exitCode int, err error)

// Address are where HTTP, TCP and gRPC probes of a pod connect by default.
type Address struct{ PodIP string }

// To be implemented:
//
//	type Config struct { Exec Exec; Event func(container *v1.Container, eventType, reason, message string) }   // Unhealthy, ProbeWarning
//	func NewSet(ctx, Config, pod *v1.Pod) *Set
//	(*Set) Sync(podIP string, running []Target)
//	(*Set) Results() map[string]Result            // by container name
//	(*Set) Changed() <-chan struct{}              // capacity one
//	(*Set) StopLiveness()                         // the pod terminates: readiness goes on, as the kubelet does
//	(*Set) Stop()
