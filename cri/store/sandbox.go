package store

import (
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/selinux"
)

// SandboxFile is the name of a sandbox's record in its directory.
const SandboxFile = "sandbox.json"

// SandboxState is where a sandbox stands. A record is written in the state
// before the side effects that the state announces, so that a restart finds
// everything that may exist.
//
//	              RunPodSandbox              StopPodSandbox
//	(no record) ──► creating ──► ready ──► stopping ──► stopped
//	                   │           │          ▲  │          │
//	                   │           └──────────┘  │          │
//	                   │        shim died        │          │
//	                   │                         │          │ RemovePodSandbox
//	                   └─────────► removing ◄────┴──────────┘
//	                 failed            │
//	                                   ▼
//	                              (no record)
//
// Only a ready sandbox is SANDBOX_READY in the CRI, and one that is creating is
// not shown at all: its caller has not been told its ID.
type SandboxState string

// The states of a sandbox.
const (
	SandboxCreating SandboxState = "creating"
	SandboxReady    SandboxState = "ready"
	SandboxStopping SandboxState = "stopping"
	SandboxStopped  SandboxState = "stopped"
	SandboxRemoving SandboxState = "removing"
)

// Step is one entry of a timeline: what was done, when it began after the
// request came in, and how long it took.
type Step struct {
	Name     string        `json:"step"`
	Offset   time.Duration `json:"offset"`   // nanoseconds
	Duration time.Duration `json:"duration"` // nanoseconds
}

// Sandbox is the record of one pod sandbox.
type Sandbox struct {
	ID      string                       `json:"id"`
	Name    string                       `json:"name"` // NAME_NAMESPACE_UID_ATTEMPT
	Config  *runtimeapi.PodSandboxConfig `json:"config"`
	Handler string                       `json:"runtimeHandler,omitempty"` // as asked for
	// Runtime is the handler that Handler meant at the time.
	Runtime string `json:"runtime,omitempty"`
	// Cgroup is the parent of the containers' cgroups; OwnCgroup says that it
	// was made, and is to be removed, by this runtime.
	Cgroup    string       `json:"cgroup,omitempty"`
	OwnCgroup bool         `json:"ownCgroup,omitempty"`
	BootID    string       `json:"bootID"`
	CreatedAt time.Time    `json:"createdAt"`
	State     SandboxState `json:"state"`
	IPs       []string     `json:"ips,omitempty"`
	Timeline  []Step       `json:"timeline,omitempty"`
	// SELinux is how its files are labelled, and its containers unless they
	// ask for something else.
	SELinux selinux.Label `json:"selinux,omitzero"`
	// Lost says that the shim ended by itself.
	Lost bool `json:"lost,omitempty"`
}

// Key returns the sandbox ID.
func (s Sandbox) Key() string { return s.ID }

// Label returns the reserved name.
func (s Sandbox) Label() string { return s.Name }

func (s Sandbox) validate() error {
	switch {
	case s.ID == "":
		return fmt.Errorf("id is empty")
	case s.Name == "":
		return fmt.Errorf("name is empty")
	case s.Config.GetMetadata() == nil:
		return fmt.Errorf("config.metadata is missing")
	case sandboxNext[s.State] == nil:
		return fmt.Errorf("state %q is unknown", s.State)
	}
	return nil
}

// sandboxNext is the diagram above. Staying in a state is always allowed.
var sandboxNext = map[SandboxState][]SandboxState{
	SandboxCreating: {SandboxReady, SandboxRemoving},
	SandboxReady:    {SandboxStopping},
	SandboxStopping: {SandboxStopped, SandboxRemoving},
	SandboxStopped:  {SandboxRemoving},
	SandboxRemoving: {},
}

// Move takes the sandbox to another state, or says why there is no such way.
func (s *Sandbox) Move(to SandboxState) error {
	if !allowed(sandboxNext, s.State, to) {
		return fmt.Errorf("sandbox %s is %s: it cannot become %s", s.ID, s.State, to)
	}
	s.State = to
	return nil
}

// Ready tells whether containers can be created and started in the sandbox.
func (s Sandbox) Ready() bool { return s.State == SandboxReady }

// Namespaces returns the namespace options, never nil.
func (s Sandbox) Namespaces() *runtimeapi.NamespaceOption {
	if o := s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &runtimeapi.NamespaceOption{}
}

// HostNetwork tells whether the pod uses the network namespace of the node.
func (s Sandbox) HostNetwork() bool {
	return s.Namespaces().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// UserNamespace returns the ID mappings of the pod's user namespace, nil where
// the pod is in the node's.
func (s Sandbox) UserNamespace() *runtimeapi.UserNamespace {
	if u := s.Namespaces().GetUsernsOptions(); u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD {
		return u
	}
	return nil
}

func allowed[S comparable](next map[S][]S, from, to S) bool {
	if from == to {
		return true
	}
	for _, s := range next[from] {
		if s == to {
			return true
		}
	}
	return false
}
