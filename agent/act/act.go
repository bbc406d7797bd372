// Package act carries out what agent/plan decided: it is where the agent
// touches the runtime, the volumes and the cgroups. It decides nothing, and it
// remembers nothing between two calls; what a call needs comes in with it.
//
//	act.go        what all actions share
//	pod.go        before the first container and after the last: cgroup, volumes, directories
//	sandbox.go    create, stop, remove a sandbox
//	features.go   what pods want that not every runtime has
//	container.go  image, create, start, postStart
//	kill.go       preStop, signal, grace
//	claims.go     devices of ResourceClaims
//	resize.go     resources of what runs
//	turns.go      how many at once, and who first
package act

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/csi/volume"
)

// Sandboxes is the CRI's part about sandboxes.
type Sandboxes interface {
	RunPodSandbox(context.Context, *runtimeapi.RunPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error)
	StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error)
	RemovePodSandbox(context.Context, *runtimeapi.RemovePodSandboxRequest, ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error)
	UpdatePodSandboxResources(context.Context, *runtimeapi.UpdatePodSandboxResourcesRequest, ...grpc.CallOption) (*runtimeapi.UpdatePodSandboxResourcesResponse, error)
	PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.PodSandboxStatsResponse, error)
}

// Containers is the CRI's part about containers.
type Containers interface {
	CreateContainer(context.Context, *runtimeapi.CreateContainerRequest, ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error)
	StartContainer(context.Context, *runtimeapi.StartContainerRequest, ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error)
	StopContainer(context.Context, *runtimeapi.StopContainerRequest, ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error)
	RemoveContainer(context.Context, *runtimeapi.RemoveContainerRequest, ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error)
	UpdateContainerResources(context.Context, *runtimeapi.UpdateContainerResourcesRequest, ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error)
}

// Cgroups is the pod part of the cgroup tree.
type Cgroups interface {
	EnsurePod(pod *v1.Pod) (cgroupParent string, err error)
	PodParent(pod *v1.Pod) (cgroupParent string, err error)
	RemovePod(ctx context.Context, podUID string) error
	Node() qos.NodeInfo
	PodSettings
}

// PodSettings is the part of Cgroups that is about what a pod may use.
type PodSettings interface {
	PodSettings(pod *v1.Pod) qos.Settings
	SetPod(pod *v1.Pod, s qos.Settings) error
}

// Volumes gives pods their volumes.
type Volumes interface {
	SetUp(ctx context.Context, pod volume.Pod) (map[string]volume.Mounted, error)
	SubPath(ctx context.Context, pod volume.Pod, container string, index int, vol volume.Mounted, subPath string, readOnly bool) (string, error)
	CleanSubPaths(ctx context.Context, podUID, container string) error
	TearDown(ctx context.Context, podUID string) error
}

// Hooks runs lifecycle handlers; an error's text is for the pod's events.
type Hooks interface {
	Run(ctx context.Context, pod *v1.Pod, container *v1.Container, handler *v1.LifecycleHandler, containerID, podIP string) (message string, err error)
}

// Cluster is what a pod's cluster has beside its own objects.
type Cluster interface {
	// Services returns all services, or an error while they are not known.
	Services() ([]*v1.Service, error)
	// Handler returns the runtime handler of a RuntimeClass.
	Handler(runtimeClass string) (string, error)
}

// Logs are the logs of containers.
type Logs interface {
	// Remove removes the log of a container that has ended, rotated ones too.
	Remove(ctx context.Context, log string) error
}

// Exclusive is what containers have to themselves: CPUs, memory, devices.
type Exclusive interface {
	// PreStart prepares a container's devices, and Apply puts what it has into
	// its configuration.
	PreStart(ctx context.Context, pod *v1.Pod, container *v1.Container) error
	Apply(pod *v1.Pod, container *v1.Container, config *runtimeapi.ContainerConfig)
	// Poke tells that a container was started.
	Poke()
}

// Parts are what an Actor works with.
type Parts struct {
	Sandboxes  Sandboxes
	Containers Containers
	Images     *images.Puller
	Volumes    Volumes
	Objects    volume.Objects
	Cgroups    Cgroups
	Hooks      Hooks
	Logs       Logs
	// Cluster is asked for pods of an API server; nil: there is none.
	Cluster Cluster
	// Exclusive may be nil: then no container has anything to itself.
	Exclusive Exclusive
	// Claims may be nil: then no pod has any.
	Claims Claims
	// Features and UserNamespaces are asked for pods that want them.
	Features       Features
	UserNamespaces UserNamespaces
	Events         *event.Recorder
}

// Config of an Actor.
type Config struct {
	Node podspec.Node
	// ContainerLogsDir holds the links POD_NAMESPACE_CONTAINER-ID.log that log
	// shippers follow (/var/log/containers).
	ContainerLogsDir string
	// Parallel bounds how many sandboxes and containers are being started at
	// once: past the machine's cores more at once only makes each slower.
	Parallel int
	// RuntimeTimeout bounds one call to the runtime beyond what the call
	// itself waits for (a grace period, a pull).
	RuntimeTimeout time.Duration
	// ImageVolumes is told how many images a container has as volumes, once it was
	// tried to create it; nil: nobody counts.
	ImageVolumes func(n int, mounted bool)
	Log          *slog.Logger
}

// Actor carries out actions. It may be used by all workers at once.
type Actor struct {
	Parts
	config Config
	turns  *turns
}

// New returns an Actor.
func New(parts Parts, config Config) *Actor {
	return &Actor{Parts: parts, config: config, turns: newTurns(config.Parallel)}
}

// Busy tells whether sandboxes or containers are being made now.
func (a *Actor) Busy() bool { return a.turns.busy() }

// Pod is a pod at the time of an action.
type Pod struct {
	*v1.Pod
	IPs      []string // of its ready sandbox; the node's with hostNetwork
	Sandbox  string   // ID of the ready sandbox
	Attempt  uint32   // of that sandbox
	Mounted  map[string]volume.Mounted
	Timeline *timeline.Log
	// Cgroup is the pod with the resources that its cgroup is made from, where
	// they are not those of the pod; nil: they are.
	Cgroup *v1.Pod
}

// cgroupPod is the pod that the pod's cgroup is made from.
func (p Pod) cgroupPod() *v1.Pod {
	if p.Cgroup != nil {
		return p.Cgroup
	}
	return p.Pod
}

// FirstIP is the address probes and hooks connect to; empty without one.
func (p Pod) FirstIP() string {
	if len(p.IPs) == 0 {
		return ""
	}
	return p.IPs[0]
}

// Error is why an action did not work, in the words of the API's
// ContainerStateWaiting.
type Error struct {
	plan.Waiting
	// RetryAt is when trying again makes sense; zero: the caller's back-off.
	RetryAt time.Time
}

func (e *Error) Error() string { return e.Message }

func failed(reason string, err error) *Error {
	return &Error{Waiting: plan.Waiting{Reason: reason, Message: message(err)}}
}

// message is an error as the runtime said it, without gRPC's wrapping.
func message(err error) string { return plain(err).Error() }

// plain takes gRPC's wrapping off an error of the runtime. Others stay what
// they are.
func plain(err error) error {
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return errors.New(s.GRPCStatus().Message())
	}
	return err
}

// podDir is the kubelet's directory of a pod.
func (a *Actor) podDir(uid string) string {
	return filepath.Join(a.config.Node.KubeletDir, "pods", uid)
}

// why tells who ended a call that did not work: its caller, whose error is
// returned as it is, its deadline, or the one who was called.
func why(caller, call context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case caller.Err() != nil:
		return caller.Err()
	case call.Err() != nil:
		return context.Cause(call)
	}
	return err
}

// call bounds one call to the runtime.
func (a *Actor) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, a.config.RuntimeTimeout,
		fmt.Errorf("the runtime did not answer within %s", a.config.RuntimeTimeout))
}
