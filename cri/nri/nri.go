// Package nri lets plugins take part in the life of pods and containers, by
// the Node Resource Interface (github.com/containerd/nri): plugins connect to
// a socket, or are started from a directory, are told of what happens, adjust
// a container's specification before it is made, and change limits.
//
//	nri.go         starting, stopping, synchronizing
//	pods.go        what plugins are told of pods
//	containers.go  what they are told and asked of containers
//	adjust.go      their adjustments, on the OCI specification
//	updates.go     limits and evictions that they ask for
//	message.go     records as NRI messages
//
// cri/server calls it through an interface of its own. Plugins are asked one
// after the other, each with a deadline; one that does not keep it is dropped,
// and the request goes on without it. Without plugins a call costs next to
// nothing.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/store"
)

// Defaults, which are those of containerd.
const (
	DefaultSocket              = adaptation.DefaultSocketPath
	DefaultPluginDir           = adaptation.DefaultPluginPath
	DefaultConfigDir           = adaptation.DefaultPluginConfigPath
	DefaultRegistrationTimeout = adaptation.DefaultPluginRegistrationTimeout
	DefaultRequestTimeout      = adaptation.DefaultPluginRequestTimeout
)

// updateTimeout bounds what a plugin wants done once it is synchronized.
const updateTimeout = 2 * time.Minute

// ErrSocketTaken means that another runtime serves the socket.
var ErrSocketTaken = errors.New("another runtime serves it")

// Config of the interface to plugins.
type Config struct {
	Socket              string        // where plugins connect
	PluginDir           string        // plugins to start, NN-NAME
	ConfigDir           string        // their configuration, NN-NAME.conf or NAME.conf
	RegistrationTimeout time.Duration // for a plugin that was started, or has connected
	RequestTimeout      time.Duration // for one answer of one plugin
	Version             string        // of the build
	Host                spec.Host
	// ContainerDir has the bundles by container ID, NamespaceDir the pinned
	// namespaces by sandbox ID.
	ContainerDir, NamespaceDir string
	// CDI injects devices by their qualified names; nil where that cannot be.
	CDI    func(s *specs.Spec, devices []string) error
	Logger *slog.Logger
}

// State is the runtime's, for plugins to be synchronized with and to change.
type State interface {
	// Sandboxes lists those that have been shown, Containers those that have
	// been and have not ended.
	Sandboxes() []store.Sandbox
	Containers() []store.Container
	// ChangeLimits overlays limits of a container.
	ChangeLimits(ctx context.Context, containerID string, change *runtimeapi.LinuxContainerResources) error
	// Evict ends a container.
	Evict(ctx context.Context, containerID, reason string) error
}

// NRI is the interface to plugins. Make it with New, Open it once the records
// are in order.
type NRI struct {
	cfg Config
	log *slog.Logger

	adaptation atomic.Pointer[adaptation.Adaptation] // nil before Open
	plugins    atomic.Int64                          // that are connected
	state      State                                 // set by Open

	background sync.WaitGroup // updates that a synchronized plugin wants

	mu   sync.Mutex
	told map[string]*told // by sandbox and container ID
}

// told is what plugins know of a pod or container: they are told of its end
// and removal once, and of none that they never heard of.
type told struct {
	stopped bool
	// What was sent of one that the state may not list yet.
	pod       *api.PodSandbox
	container *api.Container
}

// New makes the interface and touches nothing.
func New(cfg Config) *NRI {
	n := &NRI{cfg: cfg, log: cfg.Logger, told: map[string]*told{}}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	return n
}

// Open starts the plugins of the directory and listens for others. When it
// returns, those that were started know all there is. ErrSocketTaken says that
// the socket is another runtime's; nothing was changed then.
func (n *NRI) Open(state State) error {
	if conn, err := net.DialTimeout("unix", n.cfg.Socket, time.Second); err == nil {
		_ = conn.Close()
		return fmt.Errorf("listen for NRI plugins on %s: %w", n.cfg.Socket, ErrSocketTaken)
	}
	n.state = state
	adaptation.SetPluginRegistrationTimeout(n.cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(n.cfg.RequestTimeout)
	// The library reports, as an error, that it was built without
	// WebAssembly, which is on purpose.
	nrilog.Set(logger{slog.New(slog.DiscardHandler)})
	a, err := adaptation.New("berth", n.cfg.Version, n.synchronize, n.update,
		adaptation.WithSocketPath(n.cfg.Socket), adaptation.WithPluginPath(n.cfg.PluginDir),
		adaptation.WithPluginConfigPath(n.cfg.ConfigDir), adaptation.WithMetrics(counter{&n.plugins}))
	nrilog.Set(logger{n.log})
	if err != nil {
		return fmt.Errorf("prepare for NRI plugins: %w", err)
	}
	if err := a.Start(); err != nil {
		a.Stop()
		return fmt.Errorf("start the NRI plugins: %w", err)
	}
	n.adaptation.Store(a)
	n.log.Info("NRI plugins are served", "socket", n.cfg.Socket, "plugins", n.plugins.Load())
	return nil
}

// Close lets all plugins go and removes the socket.
func (n *NRI) Close() {
	if a := n.adaptation.Swap(nil); a != nil {
		a.Stop()
	}
	n.background.Wait()
}

// ask calls f where plugins listen. A plugin that connects meanwhile has been
// synchronized before, or is after: it misses nothing. f must wait for nothing
// but plugins.
func (n *NRI) ask(f func(*adaptation.Adaptation) error) error {
	a := n.adaptation.Load()
	if a == nil {
		return nil
	}
	block := a.BlockPluginSync()
	defer block.Unblock()
	if n.plugins.Load() == 0 {
		return nil
	}
	return f(a)
}

// synchronize tells a plugin that has registered all there is, also what is
// being made and was told to others, and does the updates it wants.
func (n *NRI) synchronize(ctx context.Context, send adaptation.SyncCB) error {
	var pods []*api.PodSandbox
	var containers []*api.Container
	listed := map[string]bool{}
	for _, sb := range n.state.Sandboxes() {
		listed[sb.ID] = true
		pods = append(pods, n.pod(sb))
	}
	for _, c := range n.state.Containers() {
		listed[c.ID] = true
		m, err := n.recorded(c)
		if err != nil {
			n.log.Warn("container is not shown to an NRI plugin", "container", c.ID, "error", err)
			continue
		}
		containers = append(containers, m)
	}
	n.mu.Lock()
	for id, t := range n.told {
		switch {
		case listed[id] || t.stopped:
		case t.pod != nil:
			pods = append(pods, t.pod)
		case t.container != nil:
			containers = append(containers, t.container)
		}
	}
	for id := range listed {
		if n.told[id] == nil {
			n.told[id] = &told{}
		}
	}
	n.mu.Unlock()
	updates, err := send(ctx, pods, containers)
	if err != nil {
		return err
	}
	// Not here: whoever holds a container's lock may be waiting for this to
	// end.
	n.background.Add(1)
	go func() {
		defer n.background.Done()
		ctx, cancel := context.WithTimeout(context.Background(), updateTimeout)
		defer cancel()
		n.apply(ctx, updates)
	}()
	return nil
}

// tell remembers that plugins hear of something.
func (n *NRI) tell(id string, what told) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told[id] = &what
}

// stop tells whether an end is news to plugins, and remembers it.
func (n *NRI) stop(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.told[id]
	if t == nil || t.stopped {
		return false
	}
	t.stopped = true
	return true
}

// knows tells whether plugins have heard of it.
func (n *NRI) knows(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told[id] != nil
}

func (n *NRI) forget(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.told, id)
}

// counter keeps the number of plugins, which the library reports as a metric.
type counter struct{ plugins *atomic.Int64 }

func (c counter) UpdatePluginCount(count int) { c.plugins.Store(int64(count)) }

func (counter) RecordPluginInvocation(string, string, error)                                      {}
func (counter) RecordPluginLatency(string, string, time.Duration)                                 {}
func (counter) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {}

// logger is the library's log in ours. What it tells of its own progress is
// for those who look for a mistake.
type logger struct{ to *slog.Logger }

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.Infof(ctx, format, args...)
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.to.DebugContext(ctx, "NRI: "+fmt.Sprintf(format, args...))
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.to.WarnContext(ctx, "NRI: "+fmt.Sprintf(format, args...))
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	l.to.ErrorContext(ctx, "NRI: "+fmt.Sprintf(format, args...))
}
