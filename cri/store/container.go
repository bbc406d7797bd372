package store

import (
	"fmt"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/selinux"
)

// ContainerFile is the name of a container's record in its directory.
const ContainerFile = "container.json"

// ContainerState is where a container stands.
//
//	             CreateContainer          StartContainer
//	(no record) ──► creating ──► created ──► starting ──► running
//	                   │          │   ▲         │  │         │
//	                   │          │   └─────────┘  │         │ its process ended
//	                   │          │  daemon died   │ failed  │
//	                   │ failed   │                ▼         ▼
//	                   │          │              exited ◄────┘
//	                   │          │                │  RemoveContainer
//	                   └──────────┴► removing ◄────┘
//	                                    │
//	                                    ▼
//	                               (no record)
//
// In the CRI, created and starting are CONTAINER_CREATED; a container that is
// creating is not shown; removing is CONTAINER_EXITED.
type ContainerState string

// The states of a container.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerStarting ContainerState = "starting"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

// Container is the record of one container.
type Container struct {
	ID        string                      `json:"id"`
	SandboxID string                      `json:"sandbox"`
	Name      string                      `json:"name"` // NAME_ATTEMPT_SANDBOX
	Config    *runtimeapi.ContainerConfig `json:"config"`
	ImageID   string                      `json:"imageID"`
	ImageRef  string                      `json:"imageRef"` // NAME@DIGEST where the image has one, else its ID
	ChainID   string                      `json:"chainID"`
	// VolumeChains are the layers of the images that are mounted into it, and
	// of the checkpoint that it starts from.
	VolumeChains []string                            `json:"volumeChains,omitempty"`
	LogPath      string                              `json:"logPath,omitempty"`
	Resources    *runtimeapi.LinuxContainerResources `json:"resources,omitempty"`
	User         *runtimeapi.LinuxContainerUser      `json:"user,omitempty"`
	// Checkpoint is the directory of criu's images that the container starts
	// from; empty for all but restored ones.
	Checkpoint string `json:"checkpoint,omitempty"`
	StopSignal string `json:"stopSignal"` // SIGTERM, RTMIN+3, ...
	Cgroup     string `json:"cgroup"`     // path in the cgroup file systems
	// SELinux is how its processes and files are labelled.
	SELinux   selinux.Label `json:"selinux,omitzero"`
	CreatedAt time.Time     `json:"createdAt"`
	Timeline  []Step        `json:"timeline,omitempty"`

	Status
}

// Status is the part of a container's record that changes in its life.
type Status struct {
	State      ContainerState `json:"state"`
	Pid        int            `json:"pid,omitempty"` // in the host's pid namespace
	StartedAt  time.Time      `json:"startedAt,omitzero"`
	FinishedAt time.Time      `json:"finishedAt,omitzero"`
	ExitCode   int            `json:"exitCode,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	Message    string         `json:"message,omitempty"`
	// Released says that nothing of the container is left in the OCI runtime,
	// its cgroup and its root mount.
	Released bool `json:"released,omitempty"`
}

// Key returns the container ID.
func (c Container) Key() string { return c.ID }

// Label returns the reserved name.
func (c Container) Label() string { return c.Name }

func (c Container) validate() error {
	switch {
	case c.ID == "":
		return fmt.Errorf("id is empty")
	case c.SandboxID == "":
		return fmt.Errorf("sandbox is empty")
	case c.Name == "":
		return fmt.Errorf("name is empty")
	case c.Config.GetMetadata() == nil:
		return fmt.Errorf("config.metadata is missing")
	case containerNext[c.State] == nil:
		return fmt.Errorf("state %q is unknown", c.State)
	}
	return nil
}

// containerNext is the diagram above. Staying in a state is always allowed.
var containerNext = map[ContainerState][]ContainerState{
	ContainerCreating: {ContainerCreated, ContainerRemoving},
	ContainerCreated:  {ContainerStarting, ContainerRemoving},
	ContainerStarting: {ContainerRunning, ContainerExited, ContainerCreated},
	ContainerRunning:  {ContainerExited},
	ContainerExited:   {ContainerRemoving},
	ContainerRemoving: {},
}

// Move takes the container to another state, or says why there is no such way.
func (c *Container) Move(to ContainerState) error {
	if !allowed(containerNext, c.State, to) {
		return fmt.Errorf("container %s is %s: it cannot become %s", c.ID, c.State, to)
	}
	c.State = to
	return nil
}

// CRIState is the state as the CRI knows it.
func (c Container) CRIState() runtimeapi.ContainerState {
	switch c.State {
	case ContainerCreating, ContainerCreated, ContainerStarting:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case ContainerExited, ContainerRemoving:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// Exit takes a container that ran, or that could not be started, to exited.
// It reports whether this changed anything: the first exit is kept.
func (c *Container) Exit(s Status) bool {
	if c.State != ContainerStarting && c.State != ContainerRunning {
		return false
	}
	c.State = ContainerExited
	if !s.StartedAt.IsZero() {
		c.StartedAt = s.StartedAt
	}
	c.FinishedAt = s.FinishedAt
	c.ExitCode = s.ExitCode
	c.Reason = s.Reason
	c.Message = s.Message
	c.Pid = 0
	return true
}
