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
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/api"
	"github.com/berth-io/berth/agent/checkpoint"
	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/event"
	"github.com/berth-io/berth/agent/hook"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/kubeletapi"
	"github.com/berth-io/berth/agent/logrotate"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/metrics"
	"github.com/berth-io/berth/agent/objects"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/probe"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/resources/cpus"
	"github.com/berth-io/berth/agent/resources/memory"
	"github.com/berth-io/berth/agent/resources/pluginwatch"
	"github.com/berth-io/berth/agent/source"
	"github.com/berth-io/berth/agent/userns"
	"github.com/berth-io/berth/agent/worker"
	"github.com/berth-io/berth/csi/volume"
)

// Config of an Agent.
type Config struct {
	Node        podspec.Node
	RuntimeSock string // of the CRI runtime
	ImageSock   string // of its image service; empty: RuntimeSock
	APISocket   string
	ManifestDir string
	Rescan      time.Duration // of the manifest directory
	// StateDir keeps checkpoints, events and last good manifests.
	StateDir         string
	ContainerLogsDir string
	// Logs is how containers' logs are rotated; Log is filled in.
	Logs    logrotate.Config
	Cgroups qos.Config
	// Pressure is what is done when the node runs short of something.
	Pressure Pressure
	// Backoff is that of restarts.
	Backoff plan.Backoff
	// RuntimeTimeout bounds one request to the runtime, beyond what the request
	// itself waits for (runtimeRequestTimeout).
	RuntimeTimeout time.Duration
	// Reserved are cgroups that others made, by name.
	Reserved map[string]Reserved
	// IDsPerPod are the user and group IDs of a pod with a user namespace
	// (userNamespaces.idsPerPod); zero: the kubelet's default.
	IDsPerPod uint32
	BootID    string
	// Cluster is what the node belongs to; nil: pods come from manifests alone.
	Cluster *Cluster
	Log     *slog.Logger
}

// Reserved is what a cgroup that others made is set to.
type Reserved struct {
	Resources v1.ResourceList
	// CompressibleOnly: no more than its weight of the CPUs.
	CompressibleOnly bool
}

const (
	// relist is how often everything is asked for although events tell it.
	relist     = 5 * time.Minute
	keptEvents = 1000
	// runtimeThere is after how long it is told that the runtime is waited for.
	runtimeThere = 10 * time.Second
	// maxMessage is what CRI runtimes agree to send and receive.
	maxMessage = 16 << 20
)

// reconnect is how a runtime that is not there yet, or not any more, is looked
// for again: it is on this host, and asking costs nothing.
var reconnect = backoff.Config{BaseDelay: 5 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}

// Agent is the node agent; New puts it together, Run runs it.
type Agent struct {
	config     Config
	conns      []*grpc.ClientConn // to the runtime
	runtime    runtimeapi.RuntimeServiceClient
	images     runtimeapi.ImageServiceClient
	source     *source.Dir
	events     *event.Recorder
	cgroups    *qos.Tree
	volumes    *volume.Manager
	logs       *logrotate.Rotator
	observed   *observed.Store
	actor      *act.Actor
	checkpoint *checkpoint.Store
	pods       *dispatch.Dispatcher // nil before Run
	cluster    *cluster             // nil: there is none
	ledger     *allocation.Ledger   // nil without a cluster
	exclusive  *exclusive           // nil without a cluster
	pressure   *pressure            // nil before Run
	counts     *metrics.Events      // shown where there is a cluster
	feeding    atomic.Int64         // since when feed is at something, Unix nanoseconds; zero: it waits
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
	a := &Agent{config: c, counts: metrics.NewEvents(), inControl: make(chan struct{})}
	if c.Cluster != nil && c.Cluster.API.Metrics.Events != nil {
		a.counts = c.Cluster.API.Metrics.Events // others count there too
	}
	err := a.connect()
	if err != nil {
		return nil, err
	}
	a.source = source.NewDir(source.Config{
		Dir: c.ManifestDir, CacheDir: filepath.Join(c.StateDir, "manifests"), Rescan: c.Rescan,
		Options: a.manifestOptions(), Logger: c.Log,
	})
	recorded := event.Config{Path: filepath.Join(c.StateDir, "events"), NodeName: c.Node.Name, Keep: keptEvents, Log: c.Log}
	var broadcaster record.EventBroadcaster
	if c.Cluster != nil {
		broadcaster = record.NewBroadcaster()
		recorded.Forward = broadcaster.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: c.Node.Name})
	}
	if a.events, err = event.Open(recorded); err != nil {
		return nil, err
	}
	if a.checkpoint, err = checkpoint.Open(filepath.Join(c.StateDir, "pods")); err != nil {
		return nil, err
	}
	c.Cgroups.Changed, c.Cgroups.Protected = a.counts.CgroupChanged, a.counts.MemoryProtected
	c.Cgroups.ExclusiveCPUs = func(pod *v1.Pod) bool { return a.exclusive != nil && a.exclusive.ExclusiveCPUs(pod) }
	if a.cgroups, err = qos.NewTree(c.Cgroups); err != nil {
		return nil, err
	}
	var sources volume.Objects = objects.Local{Manifests: a.source}
	if c.Cluster != nil {
		if a.cluster, err = a.newCluster(*c.Cluster, broadcaster); err != nil {
			return nil, err
		}
		static := c.Cluster.Resources.Allocator
		a.ledger = allocation.NewLedger(allocation.Config{
			Fits: a.fits, StaticCPU: static.CPUs.Policy == cpus.PolicyStatic, StaticMemory: static.Memory.Policy == memory.PolicyStatic,
			Swaps: a.cgroups.Node().Swaps, Counts: a.counts,
		})
		if a.exclusive, err = a.newExclusive(c.Cluster.Resources); err != nil {
			return nil, err
		}
		sources = objects.BySource{File: sources, API: a.cluster.objects}
	}
	if a.volumes, err = volume.New(volume.Config{KubeletDir: c.Node.KubeletDir, ClaimsDir: a.manifestOptions().ClaimsDir}, sources); err != nil {
		return nil, err
	}
	c.Logs.Log = c.Log
	if a.logs, err = logrotate.New(c.Logs, a.runtime); err != nil {
		return nil, fmt.Errorf("rotation of logs: %w", err)
	}
	puller := images.New(a.images, a.events, images.Config{Pulled: a.counts.ImagePulled})
	if a.cluster != nil {
		if puller, err = a.cluster.puller(a, sources); err != nil {
			return nil, err
		}
	}
	parts := act.Parts{
		Sandboxes: a.runtime, Containers: a.runtime,
		Images:  puller,
		Volumes: a.volumes, Objects: sources, Cgroups: a.cgroups,
		Hooks: hook.New(hook.Config{Exec: a.exec, Event: a.tell, HTTPFallback: a.counts.HTTPFallback, SleepCut: a.counts.SleepCut}), Logs: a.logs, Events: a.events,
		Features: a.runtime, UserNamespaces: userns.New(filepath.Join(c.Node.KubeletDir, "pods"), c.IDsPerPod, userns.HostRange),
	}
	if a.cluster != nil {
		parts.Cluster, parts.Exclusive, parts.Claims = a.cluster, a.exclusive, a.exclusive.claims
	}
	a.actor = act.New(parts, act.Config{
		Node: c.Node, ContainerLogsDir: c.ContainerLogsDir,
		Parallel: max(4, 2*runtime.NumCPU()), RuntimeTimeout: c.RuntimeTimeout, ImageVolumes: a.counts.ImageVolumes, Log: c.Log,
	})
	return a, nil
}

// connect makes the clients of the runtime and of its image service, which may
// have a socket of its own. They connect when they are used.
func (a *Agent) connect() error {
	forRuntime, err := a.dial(a.config.RuntimeSock)
	if err != nil {
		return err
	}
	forImages := forRuntime
	if sock := a.config.ImageSock; sock != "" && sock != a.config.RuntimeSock {
		if forImages, err = a.dial(sock); err != nil {
			return err
		}
	}
	a.runtime, a.images = runtimeapi.NewRuntimeServiceClient(forRuntime), runtimeapi.NewImageServiceClient(forImages)
	return nil
}

// dial prepares a connection to a socket of the runtime.
func (a *Agent) dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: time.Second}),
		grpc.WithUnaryInterceptor(a.counts.Interceptor()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)))
	if err != nil {
		return nil, fmt.Errorf("runtime socket %s: %w", socket, err)
	}
	a.conns = append(a.conns, conn)
	return conn, nil
}

// manifestOptions are what the node adds to manifests.
func (a *Agent) manifestOptions() manifest.Options {
	o := manifest.Options{NodeName: a.config.Node.Name, ClaimsDir: filepath.Join(filepath.Dir(a.config.StateDir), "claims")}
	if a.config.Cluster != nil {
		// Nodes may have the same manifests, and mirror pods share a namespace
		// (pkg/kubelet/config, generatePodName).
		o.NameSuffix = "-" + strings.ToLower(o.NodeName)
	}
	return o
}

// InControl is closed when every pod has its worker again.
func (a *Agent) InControl() <-chan struct{} { return a.inControl }

// Run runs the agent until ctx ends. Pods run on without it.
func (a *Agent) Run(ctx context.Context) error {
	defer func() {
		for _, conn := range a.conns {
			conn.Close()
		}
	}()
	defer a.events.Close()
	if a.cluster != nil {
		defer a.cluster.tellEvents()() // what nobody listens to is lost
	}
	version, err := a.version(ctx)
	if err != nil {
		return err
	}
	if err := a.prepare(); err != nil {
		return err
	}
	a.observed = observed.New(observed.Config{
		Runtime: a.runtime, Relist: relist, Counts: a.counts, Log: a.config.Log,
		Changed: func(uid string) { a.pods.Observed(uid) },
	})
	d := a.newDispatcher(version)
	a.pods = d
	server := api.New(api.Config{
		Socket: a.config.APISocket, Pods: d, Events: a.events, Streams: a.runtime, Observations: a.observed, Log: a.config.Log,
		Manifests: &manifests{dir: a.config.ManifestDir, source: a.source, options: a.manifestOptions()},
	})
	if a.pressure, err = a.newPressure(a.config.Pressure, d); err != nil {
		return err
	}
	var kubelet *kubeletapi.Server
	if a.cluster != nil {
		if kubelet, err = a.cluster.kubeletAPI(a, d); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.source.Run(ctx) })
	group.Go(func() error { return a.observed.Run(ctx) })
	group.Go(func() error { return a.logs.Run(ctx, a.observed) })
	group.Go(func() error { return d.Run(ctx) })
	group.Go(func() error { return a.feed(ctx, d) })
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error { return a.pressure.run(ctx, a.inControl) })
	if a.cluster != nil {
		group.Go(func() error { return a.cluster.run(ctx) })
		group.Go(func() error { return kubelet.Run(ctx) })
		plugins := pluginwatch.New(filepath.Join(a.config.Node.KubeletDir, "plugins_registry"),
			map[string]pluginwatch.Handler{"DevicePlugin": a.exclusive.plugins, "DRAPlugin": a.exclusive.claims.Drivers()}, a.config.Log)
		group.Go(func() error { return a.exclusive.run(ctx, d, a.observed, plugins) })
	}
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

// prepare makes what no pod does without.
func (a *Agent) prepare() error {
	if err := a.cgroups.Ensure(); err != nil {
		return fmt.Errorf("make the pods' cgroups: %w", err)
	}
	for name, r := range a.config.Reserved {
		if err := a.cgroups.Reserve(name, r.Resources, r.CompressibleOnly); err != nil {
			return fmt.Errorf("reserve resources for others: %w", err)
		}
	}
	return a.actor.SweepLinks()
}

func (a *Agent) newDispatcher(version *runtimeapi.VersionResponse) *dispatch.Dispatcher {
	return dispatch.New(dispatch.Config{
		Parts: a.workerParts(),
		Worker: worker.Config{
			Backoff: a.config.Backoff, KeepDead: a.config.Pressure.Containers.MaxPerPodContainer, ProbeExec: a.exec, HostIPs: a.config.Node.HostIPs,
			RuntimeName: version.GetRuntimeName(), BootID: a.config.BootID, Log: a.config.Log, Report: a.reporter(),
			Health: a.health, Probed: a.probed, NotStarted: a.counts.PodNotStarted, Ended: a.counts.ContainerEnded, Counts: a.counts, Resizes: a.counts,
		},
		Observations: a.observed,
		Leftovers:    a.leftovers(),
		Admit:        a.admit(),
		Again:        a.again(),
		Begun:        a.begun,
		Ended:        a.ended,
		Preempted:    a.counts.Preempted,
		Counts:       a.counts,
		Log:          a.config.Log,
	})
}

// version waits for the runtime and asks for its version.
func (a *Agent) version(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	for {
		call, cancel := context.WithTimeout(ctx, runtimeThere)
		version, err := a.runtime.Version(call, &runtimeapi.VersionRequest{})
		cancel()
		switch {
		case err == nil:
			return version, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case status.Code(err) != codes.DeadlineExceeded:
			return nil, fmt.Errorf("ask the runtime at %s for its version: %w", a.config.RuntimeSock, err)
		}
		a.config.Log.Warn("the runtime does not answer; it is waited for", "socket", a.config.RuntimeSock, "err", err)
	}
}

// reporter is who is told what becomes of the pods; nil: nobody.
func (a *Agent) reporter() func(worker.Report) {
	if a.cluster == nil {
		return nil
	}
	return a.cluster.report.Report
}

// workerParts are what workers share.
func (a *Agent) workerParts() worker.Parts {
	p := worker.Parts{Actor: a.actor, Observations: a.observed, Events: a.events, Checkpoints: a.checkpoint}
	if a.cluster != nil {
		p.Allocations = a.ledger
	}
	return p
}

// health is that of the devices that a container has.
func (a *Agent) health(pod *v1.Pod, container string) []v1.ResourceStatus {
	if a.exclusive == nil {
		return nil
	}
	return slices.Concat(a.exclusive.Health(string(pod.UID), container), a.exclusive.claims.Health(pod, container))
}

// probed counts a probe.
func (a *Agent) probed(pod *v1.Pod, container string, kind probe.Kind, result string, took time.Duration) {
	a.counts.Probed(pod, container, string(kind), result, took)
}

// begun is told of pods that are about to start, or that have changed.
func (a *Agent) begun(pod *v1.Pod) {
	if a.cluster != nil {
		a.cluster.objects.Register(pod)
	}
}

// ended is told of pods of which nothing is left.
func (a *Agent) ended(pod *v1.Pod) {
	if a.cluster != nil {
		a.cluster.objects.Unregister(pod.UID)
		a.cluster.report.Forget(pod.UID)
		a.exclusive.Poke()
	}
	a.counts.Forget(pod)
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

// leftovers are what pods hold outside the runtime.
func (a *Agent) leftovers() []dispatch.Leftovers {
	list := []dispatch.Leftovers{a.volumes, leftoverCgroups{a.cgroups}}
	if a.exclusive != nil {
		list = append(list, a.exclusive.claims)
	}
	return list
}

// leftoverCgroups finds pods that only have a cgroup left.
type leftoverCgroups struct{ tree *qos.Tree }

func (l leftoverCgroups) Orphans() ([]string, error) { return l.tree.Pods() }
