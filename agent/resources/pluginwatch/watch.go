// Package pluginwatch registers the plugins whose sockets appear below
// KUBELETDIR/plugins_registry: device plugins, CSI drivers, DRA drivers. Each
// kind has a handler, which whoever wires the node gives.
//
// It is level driven: whatever the file system tells, the directory is looked at
// as a whole, and what is registered is compared with what is there.
package pluginwatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const (
	dialTimeout = 10 * time.Second
	// answerTimeout is for GetInfo and NotifyRegistrationStatus.
	answerTimeout = 5 * time.Second
	// A registration that failed is tried again after a pause that doubles.
	firstRetry = 500 * time.Millisecond
	lastRetry  = 2 * time.Minute
)

// Handler takes the plugins of one kind. Name is what the plugin calls itself,
// endpoint the socket of its service.
type Handler interface {
	// Validate says why a plugin cannot be used. It asks nobody.
	Validate(name, endpoint string, versions []string) error
	// Register takes the plugin; ctx lives as long as the Watcher.
	Register(ctx context.Context, name, endpoint string, versions []string) error
	// Deregister is told when the plugin's socket is gone.
	Deregister(name, endpoint string)
}

// Watcher watches one directory.
type Watcher struct {
	dir      string
	handlers map[string]Handler
	log      *slog.Logger
	done     chan outcome
	sockets  map[string]*socket
}

// socket is one that was seen.
type socket struct {
	identity identity
	// busy: it is being registered, by a goroutine that sends an outcome.
	busy       bool
	registered *registered
	retry      time.Duration
	due        time.Time
}

// identity tells a socket from one that took its place.
type identity struct {
	inode uint64
	at    time.Time
}

type registered struct {
	handler        Handler
	name, endpoint string
}

type outcome struct {
	path       string
	identity   identity
	registered *registered
	err        error
}

// New is for a directory, made where it is missing, and handlers by the plugin's
// type (CSIPlugin, DevicePlugin, DRAPlugin).
func New(dir string, handlers map[string]Handler, log *slog.Logger) *Watcher {
	return &Watcher{dir: dir, handlers: handlers, log: log, done: make(chan outcome), sockets: map[string]*socket{}}
}

// Run watches until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	if err := os.MkdirAll(w.dir, 0o755); err != nil {
		return fmt.Errorf("make the directory where plugins register: %w", err)
	}
	events, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", w.dir, err)
	}
	defer func() { _ = events.Close() }()
	defer w.wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // before wait
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events.Events:
		case err := <-events.Errors:
			w.log.Warn("what happens where plugins register may have been missed", "error", err)
		case o := <-w.done:
			w.take(o)
		case <-timer.C:
		}
		next, err := w.look(ctx, events)
		if err != nil {
			w.log.Warn("cannot look for plugins", "error", err)
			next = lastRetry
		}
		timer.Reset(next)
	}
}

// wait lets registrations that are under way end.
func (w *Watcher) wait() {
	for _, s := range w.sockets {
		if s.busy {
			w.take(<-w.done)
		}
	}
}

// look compares what is there with what is registered, and says when to look
// again whatever happens.
func (w *Watcher) look(ctx context.Context, events *fsnotify.Watcher) (time.Duration, error) {
	present, err := w.scan(events)
	if err != nil {
		return 0, err
	}
	for path, s := range w.sockets {
		if id, found := present[path]; (!found || id != s.identity) && !s.busy {
			w.forget(s)
			delete(w.sockets, path)
		}
	}
	next := lastRetry
	for path, id := range present {
		s := w.sockets[path]
		if s == nil {
			s = &socket{identity: id, retry: firstRetry}
			w.sockets[path] = s
		}
		if s.busy || s.registered != nil {
			continue
		}
		if wait := time.Until(s.due); wait > 0 {
			next = min(next, wait)
			continue
		}
		s.busy = true
		go func() {
			r, err := w.register(ctx, path)
			w.done <- outcome{path, id, r, err}
		}()
	}
	return next, nil
}

// scan finds the sockets in the directory and below, watching directories
// before they are read.
func (w *Watcher) scan(events *fsnotify.Watcher) (map[string]identity, error) {
	present := map[string]identity{}
	err := filepath.WalkDir(w.dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // went while it was looked at
		}
		if err != nil {
			return err
		}
		if path != w.dir && strings.HasPrefix(entry.Name(), ".") {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if entry.IsDir() {
			if err := events.Add(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("watch %s: %w", path, err)
			}
			return nil
		}
		info, err := entry.Info()
		if err == nil && info.Mode()&fs.ModeSocket != 0 {
			present[path] = identityOf(info)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for plugins: %w", err)
	}
	return present, nil
}

func identityOf(info fs.FileInfo) identity {
	id := identity{at: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		id.inode = stat.Ino
	}
	return id
}

func (w *Watcher) forget(s *socket) {
	if s.registered != nil {
		s.registered.handler.Deregister(s.registered.name, s.registered.endpoint)
	}
}

func (w *Watcher) take(o outcome) {
	s := w.sockets[o.path]
	s.busy, s.registered = false, o.registered
	if o.err != nil {
		w.log.Warn("a plugin could not register", "socket", o.path, "error", o.err)
		s.due = time.Now().Add(s.retry)
		s.retry = min(2*s.retry, lastRetry)
	}
}

// register asks the plugin what it is, hands it to its handler and tells it how
// that went (kubelet: pluginmanager/operationexecutor/operation_generator.go).
func (w *Watcher) register(ctx context.Context, path string) (*registered, error) {
	conn, err := grpc.NewClient("passthrough:///"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := registerapi.NewRegistrationClient(conn)
	info, err := getInfo(ctx, client)
	if err != nil {
		return nil, fmt.Errorf("ask the plugin what it is: %w", err)
	}
	endpoint := info.GetEndpoint()
	if endpoint == "" {
		endpoint = path
	}
	handler, found := w.handlers[info.GetType()]
	if !found {
		return nil, notify(ctx, client, fmt.Errorf("RegisterPlugin error -- no handler registered for plugin type: %s at socket %s", info.GetType(), path))
	}
	if err := handler.Validate(info.GetName(), endpoint, info.GetSupportedVersions()); err != nil {
		return nil, notify(ctx, client, fmt.Errorf("RegisterPlugin error -- plugin validation failed with err: %w", err))
	}
	if err := handler.Register(ctx, info.GetName(), endpoint, info.GetSupportedVersions()); err != nil {
		return nil, notify(ctx, client, fmt.Errorf("RegisterPlugin error -- plugin registration failed with err: %w", err))
	}
	if err := notify(ctx, client, nil); err != nil {
		handler.Deregister(info.GetName(), endpoint)
		return nil, err
	}
	w.log.Info("a plugin registered", "type", info.GetType(), "name", info.GetName(), "socket", path)
	return &registered{handler, info.GetName(), endpoint}, nil
}

func getInfo(ctx context.Context, client registerapi.RegistrationClient) (*registerapi.PluginInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return client.GetInfo(ctx, &registerapi.InfoRequest{}, grpc.WaitForReady(true))
}

// notify tells the plugin, and gives back why it was refused.
func notify(ctx context.Context, client registerapi.RegistrationClient, refused error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	status := &registerapi.RegistrationStatus{PluginRegistered: refused == nil}
	if refused != nil {
		status.Error = refused.Error()
	}
	if _, err := client.NotifyRegistrationStatus(ctx, status); err != nil {
		return errors.Join(refused, fmt.Errorf("tell the plugin how its registration went: %w", err))
	}
	return refused
}
