// Package observed holds what the runtime says runs on this node: the third of
// the agent's three stores, beside desired (agent/source) and life cycle (a
// pod's worker).
//
// It is fed by the CRI's event stream, by refreshes that workers ask for after
// they acted, and by a slow full relist. Readers get values that nobody
// changes any more.
package observed

import (
	"reflect"
	"time"

	v1 "k8s.io/api/core/v1"
)

// Pod is one observation of a pod.
type Pod struct {
	UID, Namespace, Name string
	Sandboxes            []Sandbox   // newest first
	Containers           []Container // newest first
	// At is when the runtime was asked: an observation never replaces one with
	// a later At. It is in this process's monotonic clock, which nobody sets.
	At time.Time

	asked bool // the runtime was asked; otherwise it told
}

// Same tells whether two observations say the same, whenever they were made.
func (p Pod) Same(o Pod) bool {
	p.UID, p.At, p.asked = o.UID, o.At, o.asked
	if p.gone() && o.gone() {
		return true
	}
	return reflect.DeepEqual(p, o)
}

// gone tells whether the runtime knows nothing of the pod.
func (p Pod) gone() bool { return len(p.Sandboxes) == 0 && len(p.Containers) == 0 }

// Sandbox is one pod sandbox.
type Sandbox struct {
	ID        string
	Attempt   uint32
	Ready     bool
	CreatedAt time.Time
	IPs       []string
}

// State is a container's state as the CRI tells it.
type State int

const (
	Created State = iota
	Running
	Exited
	Unknown
)

// Container is one container, running or not.
type Container struct {
	ID        string
	SandboxID string
	Name      string
	Attempt   uint32
	State     State
	CreatedAt time.Time
	StartedAt time.Time // zero: never started
	// FinishedAt, ExitCode, Reason and Message are set for Exited.
	FinishedAt time.Time
	ExitCode   int32
	Reason     string
	Message    string

	Image    string // as the pod names it
	ImageRef string // as the runtime resolved it
	User     *User
	// Hash of the container's specification at creation.
	Hash string
	// Backoff is the delay that was in force when this container was created:
	// what the next restart doubles.
	Backoff time.Duration
	// Round counts how often all containers of the pod had been started anew
	// when this one was created (agent/plan, Round).
	Round uint32
	// LogPath is the container's log file.
	LogPath string
	// TerminationLog is the host's path of the file behind terminationMessagePath.
	TerminationLog string
	// GracePeriod (seconds) and PreStop are what the pod asked for when this
	// container was created: all there is once no source knows the pod.
	GracePeriod *int64
	PreStop     *v1.LifecycleHandler
}

// User is the identity a container's first process has.
type User struct {
	UID, GID           int64
	SupplementalGroups []int64
}

// Sandbox returns the newest sandbox, or nil.
func (p *Pod) Sandbox() *Sandbox {
	if len(p.Sandboxes) == 0 {
		return nil
	}
	return &p.Sandboxes[0]
}

// ReadySandbox returns the newest sandbox if it is ready, or nil.
func (p *Pod) ReadySandbox() *Sandbox {
	if s := p.Sandbox(); s != nil && s.Ready {
		return s
	}
	return nil
}

// Container returns the newest container of that name, in any sandbox, or nil.
func (p *Pod) Container(name string) *Container {
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Previous returns the newest exited container of that name older than c, or nil.
func (p *Pod) Previous(c *Container) *Container {
	for i := range p.Containers {
		o := &p.Containers[i]
		if o.Name == c.Name && o.ID != c.ID && o.State == Exited && !o.CreatedAt.After(c.CreatedAt) {
			return o
		}
	}
	return nil
}

// ByID returns the container with that ID, or nil.
func (p *Pod) ByID(id string) *Container {
	for i := range p.Containers {
		if p.Containers[i].ID == id {
			return &p.Containers[i]
		}
	}
	return nil
}

// AnyRunning tells whether a container of the pod runs or may run.
func (p *Pod) AnyRunning() bool {
	for i := range p.Containers {
		if s := p.Containers[i].State; s == Running || s == Unknown {
			return true
		}
	}
	return false
}
