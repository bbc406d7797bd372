// Package agent is the node agent: it makes the pods that its sources want run
// on this node, through any CRI runtime.
//
//	source ──► dispatch ──► worker (one per pod) ──► plan ──► act ──► CRI, volumes, cgroups
//	                          ▲    │
//	              observed ───┘    └──► status ──► api, checkpoint
//
// This file only puts the parts together; docs/architecture.md follows one pod
// through them.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/api"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/hook"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/objects"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/source"
	"github.com/berth-io/berth/agent/userns"
	"github.com/berth-io/berth/agent/worker"
	"github.com/berth-io/berth/csi/volume"
)

// Config of an Agent.
type Config struct {
	Node        podspec.Node
	RuntimeSock string // of the CRI runtime
	APISocket   string
	ManifestDir string
	Rescan      time.Duration // of the manifest directory
	// StateDir keeps checkpoints, events and last good manifests.
	StateDir         string
	ContainerLogsDir string
	Cgroups          qos.Config
	BootID           string
	Log              *slog.Logger
}

const (
	// relist is how often everything is asked for although events tell it.
	relist = 5 * time.Minute
	// runtimeTimeout is the kubelet's runtimeRequestTimeout.
	runtimeTimeout = 2 * time.Minute
	keptEvents     = 1000
	// maxMessage is what CRI runtimes agree to send and receive.
	maxMessage = 16 << 20
)

// reconnect is how a runtime that is not there yet, or not any more, is looked
// for again: it is on this host, and asking costs nothing.
var reconnect = backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}

// Agent is the node agent; New puts it together, Run runs it.
type Agent struct {
	config     Config
	conn       *grpc.ClientConn
	runtime    runtimeapi.RuntimeServiceClient
	source     *source.Dir
	events     *event.Recorder
	cgroups    *qos.Tree
	volumes    *volume.Manager
	observed   *observed.Store
	actor      *act.Actor
	checkpoint *checkpoint.Store
	inControl  chan struct{}
}

// New makes the directories an agent needs and opens what it kept. It starts
// nothing.
func New(c Config) (*Agent, error) {
	for _, dir := range []string{c.StateDir, filepath.Join(c.Node.KubeletDir, "pods"), c.Node.PodLogsDir, c.ContainerLogsDir, filepath.Dir(c.APISocket)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make the agent's directories: %w", err)
		}
	}
	a := &Agent{config: c, inControl: make(chan struct{})}
	var err error
	a.conn, err = grpc.NewClient("unix://"+c.RuntimeSock,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)))
	if err != nil {
		return nil, fmt.Errorf("runtime socket %s: %w", c.RuntimeSock, err)
	}
	a.runtime = runtimeapi.NewRuntimeServiceClient(a.conn)
	a.source = source.NewDir(source.Config{
		Dir: c.ManifestDir, CacheDir: filepath.Join(c.StateDir, "manifests"), Rescan: c.Rescan,
		Options: a.manifestOptions(), Logger: c.Log,
	})
	if a.events, err = event.Open(event.Config{Path: filepath.Join(c.StateDir, "events"), NodeName: c.Node.Name, Keep: keptEvents, Log: c.Log}); err != nil {
		return nil, err
	}
	if a.checkpoint, err = checkpoint.Open(filepath.Join(c.StateDir, "pods")); err != nil {
		return nil, err
	}
	if a.cgroups, err = qos.NewTree(c.Cgroups); err != nil {
		return nil, err
	}
	if a.volumes, err = volume.New(volume.Config{KubeletDir: c.Node.KubeletDir, ClaimsDir: a.manifestOptions().ClaimsDir}, objects.Local{Manifests: a.source}); err != nil {
		return nil, err
	}
	a.actor = act.New(act.Parts{
		Sandboxes: a.runtime, Containers: a.runtime,
		Images:  images.New(runtimeapi.NewImageServiceClient(a.conn), a.events, images.Config{}),
		Volumes: a.volumes, Objects: objects.Local{Manifests: a.source}, Cgroups: a.cgroups,
		Hooks: hook.New(hook.Config{Exec: a.exec, Event: a.tell}), Events: a.events,
		Features: a.runtime, UserNamespaces: userns.New(filepath.Join(c.Node.KubeletDir, "pods"), userns.HostRange),
	}, act.Config{
		Node: c.Node, ContainerLogsDir: c.ContainerLogsDir,
		Parallel: max(4, 2*runtime.NumCPU()), RuntimeTimeout: runtimeTimeout, Log: c.Log,
	})
	return a, nil
}

// manifestOptions are what the node adds to manifests.
func (a *Agent) manifestOptions() manifest.Options {
	return manifest.Options{NodeName: a.config.Node.Name, ClaimsDir: filepath.Join(filepath.Dir(a.config.StateDir), "claims")}
}

// InControl is closed when every pod has its worker again.
func (a *Agent) InControl() <-chan struct{} { return a.inControl }

// Run runs the agent until ctx ends. Pods run on without it.
func (a *Agent) Run(ctx context.Context) error {
	defer a.conn.Close()
	defer a.events.Close()
	version, err := a.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fmt.Errorf("ask the runtime at %s for its version: %w", a.config.RuntimeSock, err)
	}
	if err := a.cgroups.Ensure(); err != nil {
		return fmt.Errorf("make the pods' cgroups: %w", err)
	}
	if err := a.actor.SweepLinks(); err != nil {
		return err
	}
	var d *dispatch.Dispatcher
	a.observed = observed.New(observed.Config{
		Runtime: a.runtime, Relist: relist, Log: a.config.Log,
		Changed: func(uid string) { d.Observed(uid) },
	})
	d = dispatch.New(dispatch.Config{
		Parts: worker.Parts{Actor: a.actor, Observations: a.observed, Events: a.events, Checkpoints: a.checkpoint},
		Worker: worker.Config{
			Backoff: plan.KubeletBackoff, ProbeExec: a.exec, HostIPs: a.config.Node.HostIPs,
			RuntimeName: version.GetRuntimeName(), BootID: a.config.BootID, Log: a.config.Log,
		},
		Observations: a.observed,
		Leftovers:    []dispatch.Leftovers{a.volumes, leftoverCgroups{a.cgroups}},
		Log:          a.config.Log,
	})
	server := api.New(api.Config{
		Socket: a.config.APISocket, Pods: d, Events: a.events, Streams: a.runtime, Observations: a.observed, Log: a.config.Log,
		Manifests: &manifests{dir: a.config.ManifestDir, source: a.source, options: a.manifestOptions()},
	})
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.source.Run(ctx) })
	group.Go(func() error { return a.observed.Run(ctx) })
	group.Go(func() error { return d.Run(ctx) })
	group.Go(func() error { return a.feed(ctx, d) })
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error {
		select {
		case <-d.InControl():
			close(a.inControl)
		case <-ctx.Done():
		}
		return nil
	})
	if err := group.Wait(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// feed hands each new state of the sources to the dispatcher.
func (a *Agent) feed(ctx context.Context, d *dispatch.Dispatcher) error {
	var last source.Snapshot
	told := map[string]bool{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.source.Changed():
		}
		at := time.Now()
		next := a.source.Snapshot()
		told = a.tellRejected(next.Rejected, told)
		d.Want(ctx, dispatch.Desired{
			Pods: next.Set.Pods, Complete: next.Complete, At: at,
			Objects: objectsChanged(&last.Set, &next.Set),
		})
		last = next
		a.refreshClasses(next.Set.Pods)
	}
}

// refreshClasses sets the shares of the QoS levels to what their pods request.
// Pods run meanwhile with the shares of a moment ago.
func (a *Agent) refreshClasses(pods []*v1.Pod) {
	if err := a.cgroups.RefreshClasses(pods); err != nil {
		a.config.Log.Warn("CPU shares of the QoS classes are not up to date; they are set again with the next change", "err", err)
	}
}

// tellRejected records an event for each rejection that was not told yet, and
// returns those that are told now.
func (a *Agent) tellRejected(list []manifest.Rejection, told map[string]bool) map[string]bool {
	now := map[string]bool{}
	for _, r := range list {
		text := r.Error()
		if now[text] = true; !told[text] {
			a.events.Node(v1.EventTypeWarning, "InvalidManifest", "%s", text)
		}
	}
	return now
}

// objectsChanged compares by identity: an object that did not change is the
// same in the next snapshot.
func objectsChanged(old, next *manifest.Set) bool {
	return !maps.Equal(old.ConfigMaps, next.ConfigMaps) || !maps.Equal(old.Secrets, next.Secrets) || !maps.Equal(old.Claims, next.Claims)
}

// exec runs a probe's or a hook's command in a container.
func (a *Agent) exec(ctx context.Context, containerID string, command []string, timeout time.Duration) ([]byte, int, error) {
	resp, err := a.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: containerID, Cmd: command, Timeout: int64((timeout + time.Second - 1) / time.Second),
	})
	if err != nil {
		return nil, 0, err
	}
	return append(resp.GetStdout(), resp.GetStderr()...), int(resp.GetExitCode()), nil
}

func (a *Agent) tell(pod *v1.Pod, eventType, reason, message string) {
	a.events.Pod(pod, eventType, reason, "%s", message)
}

// leftoverCgroups finds pods that only have a cgroup left.
type leftoverCgroups struct{ tree *qos.Tree }

func (l leftoverCgroups) Orphans() ([]string, error) { return l.tree.Pods() }
