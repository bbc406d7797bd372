package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/cgroup"
	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/host"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/network"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/selinux"
	"github.com/berth-io/berth/cri/shim"
)

// The fakes keep their state outside the server, as shims and plugins do, so
// that a test can put another server in the place of one that "died".

type fakeImages struct {
	Images
	img image.Image

	mu       sync.Mutex
	retained map[string]string
}

func (f *fakeImages) Get(ref string) (image.Image, bool) { return f.img, ref == "busybox" }
func (f *fakeImages) List() []image.Image                { return []image.Image{f.img} }

func (f *fakeImages) Retain(chainID, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.retained[id] = chainID
	return nil
}

func (f *fakeImages) Release(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.retained, id)
	return nil
}

type fakeNetwork struct {
	mu   sync.Mutex
	up   map[string]bool
	seen []string
	fail error
	wait chan struct{} // when set, Setup waits for it
}

func (f *fakeNetwork) Setup(_ context.Context, s network.Sandbox) (network.Result, error) {
	if f.wait != nil {
		<-f.wait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, s.ID)
	if f.fail != nil {
		return network.Result{}, f.fail
	}
	f.up[s.ID] = true
	return network.Result{Interface: "eth0"}, nil
}

func (f *fakeNetwork) Teardown(_ context.Context, s network.Sandbox) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.up, s.ID)
	return nil
}

func (f *fakeNetwork) Status(context.Context) error { return nil }
func (f *fakeNetwork) Name() string                 { return "fake" }

func (f *fakeNetwork) GC(_ context.Context, live []network.Sandbox) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.up {
		if !slices.ContainsFunc(live, func(s network.Sandbox) bool { return s.ID == id }) {
			delete(f.up, id)
		}
	}
	return nil
}

// fakeShims are shims by sandbox directory.
type fakeShims struct {
	mu    sync.Mutex
	alive map[string]*fakeShim
	asked int   // calls of AwaitOrphans
	held  error // what they return
	// together, if there is one, holds them until so many are waiting.
	together *barrier
}

// barrier lets nobody through before so many have come.
type barrier struct {
	missing atomic.Int32
	open    chan struct{}
}

func newBarrier(n int32) *barrier {
	b := &barrier{open: make(chan struct{})}
	b.missing.Store(n)
	return b
}

func (b *barrier) wait(ctx context.Context) error {
	if b.missing.Add(-1) == 0 {
		close(b.open)
	}
	select {
	case <-b.open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *fakeShims) Start(_ context.Context, s shim.Sandbox) (Shim, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sh := &fakeShim{shims: f, dir: s.Dir, states: map[string]*shim.ContainerState{}}
	f.alive[s.Dir] = sh
	return sh.connect(), nil
}

func (f *fakeShims) Connect(_ context.Context, dir string) (Shim, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if sh := f.alive[dir]; sh != nil {
		return sh.connect(), nil
	}
	return nil, shim.ErrGone
}

func (f *fakeShims) AwaitOrphans(ctx context.Context, _ string) error {
	f.mu.Lock()
	f.asked++
	held, together := f.held, f.together
	f.mu.Unlock()
	if held == nil && together != nil {
		return together.wait(ctx)
	}
	return held
}

// hold makes AwaitOrphans fail, or with nil succeed, and tells how often it was asked.
func (f *fakeShims) hold(err error) (asked int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = err
	return f.asked
}

func (f *fakeShims) of(t *testing.T, s *Server, sandboxID string) *fakeShim {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	sh := f.alive[s.sandboxes.Dir(sandboxID)]
	if sh == nil {
		t.Fatal("the sandbox has no shim")
	}
	return sh
}

// fakeShim is a shim whose containers end by SIGKILL, and by signals in obeys.
type fakeShim struct {
	shims *fakeShims
	dir   string

	mu      sync.Mutex
	states  map[string]*shim.ContainerState
	obeys   []unix.Signal
	signals []unix.Signal
	runErr  error
	hang    chan struct{} // when set, Delete waits for it
	conn    *fakeConn
}

// fakeConn is a daemon's connection to it.
type fakeConn struct {
	Sessions
	*fakeShim
	events chan *shim.Event
	closed bool // guarded by fakeShim.mu
}

func (f *fakeShim) connect() *fakeConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conn = &fakeConn{fakeShim: f, events: make(chan *shim.Event, 100)}
	return f.conn
}

func (c *fakeConn) Events() <-chan *shim.Event { return c.events }

func (c *fakeConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.closed = true
		c.events <- &shim.Event{Kind: shim.EventGone}
		close(c.events)
	}
	return nil
}

func (f *fakeShim) Run(_ context.Context, c shim.Container) (shim.ContainerState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.runErr != nil {
		return shim.ContainerState{}, f.runErr
	}
	st := &shim.ContainerState{ID: c.ID, Pid: 1 << 30, StartedAt: time.Now()}
	f.states[c.ID] = st
	return *st, nil
}

func (f *fakeShim) exit(id string, code int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.states[id]
	if st == nil || st.Exited {
		return
	}
	st.Exited, st.ExitedAt, st.ExitCode = true, time.Now(), code
	if !f.conn.closed {
		f.conn.events <- &shim.Event{Kind: shim.EventExit, State: *st}
	}
}

func (f *fakeShim) Kill(_ context.Context, id string, sig unix.Signal, _ bool) error {
	f.mu.Lock()
	st := f.states[id]
	f.signals = append(f.signals, sig)
	ends := sig == unix.SIGKILL || slices.Contains(f.obeys, sig)
	gone := st == nil || st.Exited
	f.mu.Unlock()
	if gone {
		return shim.ErrNotFound
	}
	if ends {
		f.exit(id, 128+int(sig))
	}
	return nil
}

func (f *fakeShim) Delete(ctx context.Context, id string) error {
	if f.hang != nil {
		select {
		case <-f.hang:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.states, id)
	return nil
}

func (f *fakeShim) State(context.Context) ([]shim.ContainerState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []shim.ContainerState
	for _, st := range f.states {
		list = append(list, *st)
	}
	return list, nil
}

func (f *fakeShim) Init(context.Context, shim.Init) (int, error) { return os.Getpid(), nil }
func (f *fakeShim) EndInit(context.Context) error                { return nil }
func (f *fakeShim) Pid() int                                     { return 1 << 30 }

func (f *fakeShim) Shutdown(context.Context) error {
	f.die()
	return nil
}

// die ends the shim, and its connection.
func (f *fakeShim) die() {
	f.shims.mu.Lock()
	delete(f.shims.alive, f.dir)
	f.shims.mu.Unlock()
	f.conn.Close()
}

// world is what outlives a daemon.
type world struct {
	dir     string
	bootID  string
	images  *fakeImages
	network *fakeNetwork
	shims   *fakeShims
	labels  *selinux.Labels
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts and makes namespaces")
	}
	dir := t.TempDir()
	// An overlay cannot stand on an overlay, which the temporary directory may be.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rootfs.Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	layer := filepath.Join(dir, "image")
	if err := os.MkdirAll(filepath.Join(layer, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "runtime"), []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	img := image.Image{ID: "sha256:1", ChainID: "sha256:2", Layers: []string{layer}}
	img.Config.Cmd = []string{"/bin/sleep"}
	return &world{
		dir: dir, bootID: "boot-1",
		images:  &fakeImages{img: img, retained: map[string]string{}},
		network: &fakeNetwork{up: map[string]bool{}},
		shims:   &fakeShims{alive: map[string]*fakeShim{}},
	}
}

// start is a daemon on the world; it is closed with the test, or before.
func (w *world) start(t *testing.T) *Server {
	t.Helper()
	cgroups, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	probed, err := host.Probe(cgroups.Unified, false)
	if err != nil {
		t.Fatal(err)
	}
	handlers, err := handler.NewSet(map[string]handler.Config{
		"runc": {Path: filepath.Join(w.dir, "runtime"), Root: filepath.Join(w.dir, "runc")},
	}, "runc")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Config{
		RunDir: filepath.Join(w.dir, "run"), StateDir: filepath.Join(w.dir, "state"),
		Handlers: handlers,
		Host:     probed, Labels: w.labels, Cgroups: cgroups, BootID: w.bootID, StreamAddr: "127.0.0.1:1",
	}, w.images, w.network, w.shims)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// checkEmpty fails the test if anything of a sandbox or container is left.
func (w *world) checkEmpty(t *testing.T) {
	t.Helper()
	for _, sub := range []string{"run/sandboxes", "run/containers", "run/ns", "state/containers"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left: %s/%s", sub, e.Name())
		}
	}
	for _, id := range w.network.seen {
		left, err := filepath.Glob("/sys/fs/cgroup/*/berth/" + id)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left: cgroups %s", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, w.dir+"/") {
			t.Errorf("left: mount %s", line)
		}
	}
	if len(w.network.up) > 0 || len(w.images.retained) > 0 || len(w.shims.alive) > 0 {
		t.Errorf("left: networks %v, image users %v, shims %v", w.network.up, w.images.retained, w.shims.alive)
	}
}

func sandboxRequest(name string) *runtimeapi.RunPodSandboxRequest {
	return &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Labels:   map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}}
}

func containerRequest(sandboxID, name string) *runtimeapi.CreateContainerRequest {
	return &runtimeapi.CreateContainerRequest{PodSandboxId: sandboxID, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: "busybox"},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}}
}

func runSandbox(t *testing.T, s *Server, name string) string {
	t.Helper()
	resp, err := s.RunPodSandbox(t.Context(), sandboxRequest(name))
	if err != nil {
		t.Fatal(err)
	}
	return resp.PodSandboxId
}

func createContainer(t *testing.T, s *Server, sandboxID, name string) string {
	t.Helper()
	resp, err := s.CreateContainer(t.Context(), containerRequest(sandboxID, name))
	if err != nil {
		t.Fatal(err)
	}
	return resp.ContainerId
}

func startContainer(t *testing.T, s *Server, id string) {
	t.Helper()
	if _, err := s.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
}

func removeSandbox(t *testing.T, s *Server, id string) {
	t.Helper()
	if _, err := s.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		t.Fatal(err)
	}
}

func containerState(t *testing.T, s *Server, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := s.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status
}

func (w *world) writeExit(t *testing.T, s *Server, st shim.ContainerState) {
	t.Helper()
	data, err := json.Marshal(st)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.containers.Dir(st.ID), "exit.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *fakeShim) sent() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprint(f.signals)
}
