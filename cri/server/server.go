// Package server implements the CRI's runtime and image services. It owns
// sandboxes and containers: their records, the order in which their parts are
// made and unmade, and the events that tell of it. The parts themselves are
// other packages'.
//
// Every change is recorded before it is made (cri/store), and every part is
// found again from the record alone, so that a daemon which is killed at any
// line finds out, in restart.go, what to finish and what to undo.
package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sync/singleflight"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/cgroup"
	"github.com/berth-io/berth/cri/events"
	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/network"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/selinux"
	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/spec"
	"github.com/berth-io/berth/cri/stats"
	"github.com/berth-io/berth/cri/store"
	"github.com/berth-io/berth/cri/streaming"
)

const (
	// operationTimeout bounds a creation and a clean-up that nobody waits for
	// any more. The kubelet gives a sandbox four minutes.
	operationTimeout = 4 * time.Minute
	// shimTimeout bounds a call that a healthy shim answers at once.
	shimTimeout = 10 * time.Second
	// recoveryTimeout bounds how long a restart waits for one shim.
	recoveryTimeout = 5 * time.Second
	// killTimeout is how long a process may take to end after SIGKILL.
	killTimeout = time.Minute
	// eventBacklog is how many events a reader may be behind: some 2 MB of
	// them, or the starts of 200 pods.
	eventBacklog = 1024
)

// Config says where things are and what the host is like.
type Config struct {
	RunDir     string // state of this boot: records, bundles, namespaces, sockets
	StateDir   string // writable layers
	ShimBinary string
	// Sealed is the shim's program in a file that nobody can change, and Filters
	// are the seccomp filters of containers: with both, the shim starts processes
	// in containers by itself. nil: the OCI runtime does.
	Sealed   *os.File
	Filters  Filters
	Handlers *handler.Set
	// NoIDMap says why the host cannot map the IDs of root file systems, which
	// pods with user namespaces need; nil: it can.
	NoIDMap error
	Host    spec.Host
	// CDISpecDirs have the files of CDI vendors; empty: no CDI devices.
	CDISpecDirs []string
	Cgroups     *cgroup.Tree
	// Labels are SELinux's; nil where nothing is labelled.
	Labels  *selinux.Labels
	BootID  string
	Version string // of the build
	// Plugins is NRI; nil where there is none.
	Plugins Plugins
	// StreamAddr is where StreamHandler is served, host:port.
	StreamAddr string
	// PodCIDRs may be nil: then what the kubelet assigns is checked, and no more.
	PodCIDRs PodCIDRs
	Logger   *slog.Logger
}

// Server is the CRI runtime and image service.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	cfg     Config
	log     *slog.Logger
	images  Images
	network Network
	shims   Shims
	plugins Plugins

	sandboxes  *store.Table[store.Sandbox]
	containers *store.Table[store.Container]
	events     *events.Broadcaster
	streams    *streaming.Server
	reader     *stats.Reader
	layers     *stats.Layers
	// endMeasuring ends what layers measures in the background.
	endMeasuring context.CancelFunc
	// layerDevice is what the writable layers are on, found once.
	layerDevice func() (string, error)

	flights    singleflight.Group // creations by name
	background sync.WaitGroup     // goroutines that outlive their request
	closing    chan struct{}
	ended      context.Context // of the event streams
	endEvents  context.CancelFunc
	warnOOM    sync.Once

	mu    sync.Mutex
	pods  map[string]*pod  // by sandbox ID
	tasks map[string]*task // by container ID
	// samples are by either ID.
	samples map[string]*sample
}

// New opens the records. Restart must be called before the server serves.
func New(cfg Config, images Images, network Network, shims Shims) (*Server, error) {
	s := &Server{
		cfg: cfg, log: cfg.Logger, images: images, network: network, shims: shims,
		events:  events.New(eventBacklog),
		closing: make(chan struct{}),
		pods:    map[string]*pod{},
		tasks:   map[string]*task{},
		samples: map[string]*sample{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.plugins = cfg.Plugins; s.plugins == nil {
		s.plugins = noPlugins{}
	}
	s.ended, s.endEvents = context.WithCancel(context.Background())
	s.streams = streaming.New(cfg.StreamAddr, streamRuntime{s})
	measuring, endMeasuring := context.WithCancel(context.Background())
	s.endMeasuring = endMeasuring
	s.reader = stats.NewReader(stats.Hierarchies{
		Unified: cfg.Cgroups.Unified, Mount: cfg.Cgroups.Mount, HugePageSizes: cgroups.HugePageSizes(),
	})
	s.layers = stats.NewLayers(measuring, &s.background)
	s.layerDevice = sync.OnceValues(func() (string, error) { return mountSource(s.layersDir()) })
	var err error
	var badSandboxes, badContainers []store.Bad
	if s.sandboxes, badSandboxes, err = store.Open[store.Sandbox](filepath.Join(cfg.RunDir, "sandboxes"), store.SandboxFile); err != nil {
		return nil, err
	}
	if s.containers, badContainers, err = store.Open[store.Container](filepath.Join(cfg.RunDir, "containers"), store.ContainerFile); err != nil {
		return nil, err
	}
	for _, b := range append(badSandboxes, badContainers...) {
		s.log.Error("record is unreadable, what it names is removed", "id", b.ID, "moved", b.Moved, "error", b.Err)
	}
	for _, sb := range s.sandboxes.List() {
		s.cfg.Labels.Retain(sb.SELinux)
	}
	for _, c := range s.containers.List() {
		s.cfg.Labels.Retain(c.SELinux)
	}
	return s, nil
}

// pod is what the running daemon holds of a sandbox beside its record.
type pod struct {
	op lock // of stop and remove

	mu   sync.Mutex
	shim Shim // nil while there is none
}

func (p *pod) setShim(c Shim) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shim = c
}

func (p *pod) client() Shim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shim
}

// task is what the running daemon holds of a container beside its record.
type task struct {
	op     lock          // of start, exit and remove
	exited chan struct{} // closed when the record says so

	mu       sync.Mutex
	ended    bool // exited is closed
	signaled bool // the stop signal was sent
}

func (t *task) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.ended = true
		close(t.exited)
	}
}

// signal tells the first caller, and only it, to send the stop signal.
func (t *task) signal() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	first := !t.signaled
	t.signaled = true
	return first
}

func (s *Server) pod(id string) *pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pods[id]
	if p == nil {
		p = &pod{op: newLock()}
		s.pods[id] = p
	}
	return p
}

func (s *Server) task(id string) *task {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tasks[id]
	if t == nil {
		t = &task{op: newLock(), exited: make(chan struct{})}
		s.tasks[id] = t
	}
	return t
}

func (s *Server) forget(sandboxID, containerID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, sandboxID)
	delete(s.tasks, containerID)
	delete(s.samples, sandboxID)
	delete(s.samples, containerID)
}

// lock is a mutex that one can stop waiting for.
type lock chan struct{}

func newLock() lock { return make(lock, 1) }

func (l lock) acquire(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another operation on it: %w", context.Cause(ctx))
	}
}

func (l lock) release() { <-l }

// join runs f once for all concurrent callers with the same key. It goes on
// when a caller gives up, and the next one with that key waits for the same
// run: a retried creation never makes a second one.
func (s *Server) join(ctx context.Context, key string, f func(context.Context) (string, error)) (string, error) {
	done := s.flights.DoChan(key, func() (any, error) {
		s.background.Add(1)
		defer s.background.Done()
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
		defer cancel()
		return f(detached)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return "", r.Err
		}
		return r.Val.(string), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// goBackground runs f beside the requests, with a time limit.
func (s *Server) goBackground(f func(ctx context.Context)) {
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		ctx, cancel := context.WithTimeout(context.Background(), operationTimeout)
		defer cancel()
		f(ctx)
	}()
}

// Close lets the shims go, which live on, and waits for what is under way.
func (s *Server) Close() {
	close(s.closing)
	s.endMeasuring()
	s.mu.Lock()
	pods := make([]*pod, 0, len(s.pods))
	for _, p := range s.pods {
		pods = append(pods, p)
	}
	s.mu.Unlock()
	for _, p := range pods {
		if c := p.client(); c != nil {
			_ = c.Close() // nothing is lost with the connection
		}
	}
	s.background.Wait()
}

func (s *Server) isClosing() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}

func (s *Server) nsDir(sandboxID string) string {
	return filepath.Join(s.cfg.RunDir, "ns", sandboxID)
}

func (s *Server) layer(containerID string) rootfs.Layer {
	return rootfs.Layer{
		Dir:   filepath.Join(s.layersDir(), containerID),
		Mount: filepath.Join(s.containers.Dir(containerID), "rootfs"),
	}
}

func (s *Server) layersDir() string { return filepath.Join(s.cfg.StateDir, "containers") }

func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, by its documentation
	return hex.EncodeToString(b)
}

// timeline measures the steps of one request.
type timeline struct {
	began time.Time
	mu    sync.Mutex
	steps []store.Step
}

func newTimeline() *timeline { return &timeline{began: time.Now()} }

// step starts a step and returns what ends it.
func (t *timeline) step(name string) func() {
	from := time.Now()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.steps = append(t.steps, store.Step{Name: name, Offset: from.Sub(t.began), Duration: time.Since(from)})
	}
}

func (t *timeline) done() []store.Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.steps
}

// Interfaces of what the server stands on, as much of it as the server uses.

// Images is the image store.
type Images interface {
	Get(refOrID string) (image.Image, bool)
	List() []image.Image
	Describe(ctx context.Context, id string) (image.Description, error)
	Pull(ctx context.Context, ref string, auth image.Auth, progress func(image.Progress)) (image.Image, error)
	Remove(ctx context.Context, refOrID string) error
	ImageUse
}

// ImageUse is what keeps image layers while containers stand on them.
type ImageUse interface {
	Retain(chainID, containerID string) error
	Release(ctx context.Context, containerID string) error
	Usage(ctx context.Context) (image.Usage, error)
}

// Network attaches sandboxes to the pod network.
type Network interface {
	Setup(ctx context.Context, s network.Sandbox) (network.Result, error)
	Teardown(ctx context.Context, s network.Sandbox) error
	Status(ctx context.Context) error
	GC(ctx context.Context, live []network.Sandbox) error
	Name() string
}

// Shims starts shims and finds them again.
type Shims interface {
	Start(ctx context.Context, s shim.Sandbox) (Shim, error)
	Connect(ctx context.Context, dir string) (Shim, error)
	// AwaitOrphans returns once nothing that a shim which is gone has started
	// can still make a container.
	AwaitOrphans(ctx context.Context, dir string) error
}

// PodCIDRs keeps the pod subnets that the kubelet assigns to this node.
type PodCIDRs interface {
	// Assign keeps them for good and configures the pod network with them
	// where that is its business. It is idempotent.
	Assign(cidrs []netip.Prefix) error
	// Assigned returns what is kept, and for people what came of it.
	Assigned() (cidrs []netip.Prefix, use string)
}
