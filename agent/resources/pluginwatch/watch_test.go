package pluginwatch

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// fakePlugin registers through a real socket.
type fakePlugin struct {
	registerapi.UnimplementedRegistrationServer
	info   *registerapi.PluginInfo
	status chan *registerapi.RegistrationStatus
	server *grpc.Server
}

func (f *fakePlugin) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return f.info, nil
}

func (f *fakePlugin) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	f.status <- s
	return &registerapi.RegistrationStatusResponse{}, nil
}

func startPlugin(t *testing.T, socket string, info *registerapi.PluginInfo) *fakePlugin {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakePlugin{info: info, status: make(chan *registerapi.RegistrationStatus, 10), server: grpc.NewServer()}
	registerapi.RegisterRegistrationServer(f.server, f)
	go func() { _ = f.server.Serve(listener) }()
	t.Cleanup(f.server.Stop)
	return f
}

func (f *fakePlugin) told(t *testing.T) *registerapi.RegistrationStatus {
	t.Helper()
	select {
	case s := <-f.status:
		return s
	case <-time.After(30 * time.Second):
		t.Fatal("the plugin was told nothing")
		return nil
	}
}

// recorder is a handler that remembers.
type recorder struct {
	mu     sync.Mutex
	refuse int // registrations to refuse
	events chan string
}

func (r *recorder) Validate(name, _ string, _ []string) error {
	if name == "bad" {
		return errors.New("bad name")
	}
	return nil
}

func (r *recorder) Register(_ context.Context, name, endpoint string, versions []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse > 0 {
		r.refuse--
		return errors.New("not now")
	}
	r.events <- "+" + name + " " + filepath.Base(endpoint) + " " + versions[0]
	return nil
}

func (r *recorder) Deregister(name, endpoint string) {
	r.events <- "-" + name + " " + filepath.Base(endpoint)
}

func (r *recorder) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-r.events:
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%s did not come", want)
	}
}

func run(t *testing.T, dir string, r *recorder) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w := New(dir, map[string]Handler{"DevicePlugin": r}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func info(name string) *registerapi.PluginInfo {
	return &registerapi.PluginInfo{Type: "DevicePlugin", Name: name, SupportedVersions: []string{"v1beta1"}}
}

func TestPluginsRegisterWhenTheirSocketsAppearAndLeaveWithThem(t *testing.T) {
	dir, r := t.TempDir(), &recorder{events: make(chan string, 10)}
	startPlugin(t, filepath.Join(dir, "early.sock"), info("early"))
	run(t, dir, r)
	r.expect(t, "+early early.sock v1beta1")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	late := info("late")
	late.Endpoint = "/elsewhere/service.sock"
	path := filepath.Join(dir, "sub", "late.sock")
	f := startPlugin(t, path, late)
	r.expect(t, "+late service.sock v1beta1")
	if s := f.told(t); !s.GetPluginRegistered() {
		t.Errorf("told %v", s)
	}
	f.server.Stop() // removes its socket
	r.expect(t, "-late service.sock")
	startPlugin(t, path, late)
	r.expect(t, "+late service.sock v1beta1")
}

func TestAPluginThatCannotBeUsedIsToldWhy(t *testing.T) {
	dir, r := t.TempDir(), &recorder{events: make(chan string, 10)}
	run(t, dir, r)
	unknown := info("x")
	unknown.Type = "Toaster"
	for _, test := range []struct {
		socket string
		info   *registerapi.PluginInfo
		want   string
	}{
		{"a.sock", unknown, "RegisterPlugin error -- no handler registered for plugin type: Toaster at socket " + filepath.Join(dir, "a.sock")},
		{"b.sock", info("bad"), "RegisterPlugin error -- plugin validation failed with err: bad name"},
	} {
		f := startPlugin(t, filepath.Join(dir, test.socket), test.info)
		if s := f.told(t); s.GetPluginRegistered() || s.GetError() != test.want {
			t.Errorf("told %v, want %s", s, test.want)
		}
	}
}

func TestARegistrationThatFailsIsTriedAgain(t *testing.T) {
	dir, r := t.TempDir(), &recorder{refuse: 1, events: make(chan string, 10)}
	run(t, dir, r)
	f := startPlugin(t, filepath.Join(dir, "p.sock"), info("p"))
	if s := f.told(t); s.GetError() != "RegisterPlugin error -- plugin registration failed with err: not now" {
		t.Errorf("told %v", s)
	}
	r.expect(t, "+p p.sock v1beta1")
	if s := f.told(t); !s.GetPluginRegistered() {
		t.Errorf("told %v", s)
	}
}
