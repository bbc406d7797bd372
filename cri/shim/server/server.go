// Package server is the shim: the subreaper and parent of one sandbox's
// containers, the owner of their stdio, logs, exit codes and exec sessions.
// Daemons come and go; the shim ends when it is told to and nothing runs.
//
//	server.go     connections and requests
//	container.go  one container's life
//	stdio.go      pipes, ptys and attached readers
//	exec.go       processes beside a container's first one
//	enter.go      how they start without the OCI runtime
//	init.go       the first process of a pid namespace that containers share
//
// It is kept small on purpose: there is one on a node for every pod.
package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/reap"
	"github.com/berth-io/berth/cri/shim/internal/stream"
	"github.com/berth-io/berth/cri/shim/internal/wire"
)

// Config of a shim.
type Config struct {
	ID            string // of the sandbox
	Dir           string // of the sandbox's state; short-lived files go here
	Runtime       string // path of the OCI runtime
	RuntimeRoot   string
	RuntimeArgs   []string // more global flags
	SystemdCgroup bool
	Timeout       time.Duration // of one runtime command
}

// quiet is how long after its last work the shim gives memory back.
const quiet = 2 * time.Second

// server is a running shim.
type server struct {
	reaper  *reap.Reaper
	runtime *oci.Runtime
	buffers stream.Buffers
	rest    *time.Timer // until the memory of the last work is given back

	mu         sync.Mutex
	conns      map[*wire.Conn]bool
	containers map[string]*container
	execs      map[execKey]*execution
	refused    string        // why the last exec was left to the runtime
	initPid    int           // of the sandbox's shared pid namespace; 0: none
	initEnded  chan struct{} // closed when that process has ended

	starting sync.Mutex // serialises init
}

// Run serves on the listening socket listenFD until it is shut down.
func Run(cfg Config, listenFD int) error {
	unix.CloseOnExec(listenFD) // the shim lives as long as somebody holds it, and nobody else may
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	protect()
	s := &server{
		reaper: reap.New(),
		conns:  map[*wire.Conn]bool{}, containers: map[string]*container{}, execs: map[execKey]*execution{},
		rest: time.AfterFunc(quiet, debug.FreeOSMemory),
	}
	lock, err := holdLock(cfg.Dir)
	if err != nil {
		return err
	}
	s.runtime = &oci.Runtime{
		Binary: cfg.Runtime, Root: cfg.RuntimeRoot, Args: cfg.RuntimeArgs, SystemdCgroup: cfg.SystemdCgroup,
		Timeout: cfg.Timeout, Dir: cfg.Dir, Env: runtimeEnvironment(os.Environ()), Reaper: s.reaper,
		Lock: lock,
	}
	children := make(chan os.Signal, 32)
	signal.Notify(children, unix.SIGCHLD)
	go s.reaper.Run(children)
	// Whoever ends the daemon's process group or session does not mean the
	// containers: only Shutdown ends a shim. The signals are caught and not
	// ignored, because a process hands on what it ignores to the programs it
	// executes. runc happens to undo that for the container; others may not.
	unwanted := make(chan os.Signal, 1)
	signal.Notify(unwanted, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	go func() {
		refuse(unwanted, pid1)
		os.Exit(0)
	}()
	return s.accept(listenFD)
}

// runtimeEnvironment is the shim's without what the daemon set for the shim
// alone (shim.Start): the runtime may use what processors there are.
func runtimeEnvironment(shim []string) []string {
	return slices.DeleteFunc(shim, func(variable string) bool {
		return strings.HasPrefix(variable, "GOMAXPROCS=") || strings.HasPrefix(variable, "GOGC=")
	})
}

// holdLock locks wire.LockFile for as long as this process or a command that
// inherits the descriptor lives.
func holdLock(dir string) (fd uintptr, err error) {
	path := filepath.Join(dir, wire.LockFile)
	lock, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	if err := unix.Flock(lock, unix.LOCK_SH|unix.LOCK_NB); err != nil {
		return 0, fmt.Errorf("lock %s: %w", path, err)
	}
	return uintptr(lock), nil
}

// pid1 names the program that runs the host.
const pid1 = "/proc/1/comm"

// refuse says once why the shim is still there. It returns when a signal is the
// last one: systemd's final program has taken its place as process 1, has stopped
// every unit, the containers with them, and waits up to 90 seconds for who stays.
func refuse(signals <-chan os.Signal, pid1 string) {
	said := false
	for sig := range signals {
		// The kernel keeps 15 bytes of a name.
		if comm, err := os.ReadFile(pid1); err == nil && strings.TrimSpace(string(comm)) == "systemd-shutdown"[:15] {
			return
		}
		if !said {
			logf("got signal %v and stay: a shim ends when the daemon shuts it down", sig)
			said = true
		}
	}
}

// protect makes the kernel choose another victim when memory runs out, where
// the shim may ask for that.
func protect() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0) // refused without CAP_SYS_RESOURCE
}

func (s *server) accept(fd int) error {
	file, err := wire.Pollable(fd, "listening socket")
	if err != nil {
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("listening socket: %w", err)
	}
	for {
		conn := -1
		var acceptErr error
		err := raw.Read(func(fd uintptr) bool {
			conn, _, acceptErr = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return acceptErr != unix.EAGAIN && acceptErr != unix.EINTR
		})
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		if acceptErr != nil {
			logf("accept: %v", acceptErr)
			time.Sleep(100 * time.Millisecond) // out of descriptors, or of memory: it will pass
			continue
		}
		c, err := wire.NewConn(conn)
		if err != nil {
			logf("connection: %v", err)
			continue
		}
		s.mu.Lock()
		s.conns[c] = true
		s.mu.Unlock()
		go s.serve(c)
	}
}

// serve answers the requests of one daemon until it goes.
func (s *server) serve(c *wire.Conn) {
	for {
		m, files, err := c.Read()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				logf("connection: %v", err)
			}
			break
		}
		go s.handle(c, m, files)
	}
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	_ = c.Close()
	s.dropExecs(c)
}

// reply is the answer to a request: a body, and files that are closed once
// they were sent.
type reply struct {
	body  any
	files []int
	then  func() // runs after the answer was sent
}

// handle answers a request. The files are those that came with it.
func (s *server) handle(c *wire.Conn, m wire.Message, files []*os.File) {
	defer s.rest.Reset(quiet)
	answer, err := s.do(c, m, files)
	for _, f := range files {
		_ = f.Close()
	}
	out := wire.Message{ID: m.ID}
	if err != nil {
		var known *wire.Error
		if !errors.As(err, &known) {
			known = &wire.Error{Text: err.Error()}
		}
		out.Error = known
	} else if answer.body != nil {
		if out.Body, err = json.Marshal(answer.body); err != nil {
			out.Error = &wire.Error{Text: err.Error()}
		}
	}
	if err := c.Write(out, answer.files...); err != nil {
		logf("answer to %s: %v", m.Method, err)
		_ = c.Close() // its reader notices and cleans up
	}
	for _, fd := range answer.files {
		_ = unix.Close(fd)
	}
	if err == nil && answer.then != nil {
		answer.then()
	}
}

func (s *server) do(c *wire.Conn, m wire.Message, files []*os.File) (reply, error) {
	switch m.Method {
	case wire.MethodInfo:
		return reply{body: wire.Info{Pid: os.Getpid()}}, nil
	case wire.MethodState:
		return reply{body: s.state()}, nil
	case wire.MethodShutdown:
		return reply{then: func() { os.Exit(0) }}, s.shutdown()
	case wire.MethodRun:
		return with(m, func(b wire.Container) (reply, error) {
			st, err := s.run(b)
			return reply{body: st}, err
		})
	case wire.MethodInit:
		return with(m, func(b wire.Init) (reply, error) {
			pid, err := s.init(b)
			return reply{body: wire.Info{Pid: pid}}, err
		})
	case wire.MethodEndInit:
		return reply{}, s.endInit()
	case wire.MethodKill:
		return with(m, func(b wire.Kill) (reply, error) { return reply{}, s.kill(b) })
	case wire.MethodDelete:
		return with(m, func(b wire.Target) (reply, error) { return reply{}, s.delete(b.ID) })
	case wire.MethodExec:
		return with(m, func(b wire.Exec) (reply, error) { return s.exec(execKey{c, m.ID}, b, files) })
	case wire.MethodExecKill:
		return with(m, func(b wire.ExecKill) (reply, error) { return reply{}, s.execKill(execKey{c, b.Exec}) })
	case wire.MethodAttach:
		return with(m, func(b wire.Attach) (reply, error) { return s.attach(b) })
	case wire.MethodResize:
		return with(m, func(b wire.Resize) (reply, error) { return reply{}, s.resize(b) })
	case wire.MethodReopenLog:
		return with(m, func(b wire.Target) (reply, error) { return reply{}, s.reopenLog(b.ID) })
	}
	return reply{}, fmt.Errorf("unknown request %q: daemon and shim are of different versions", m.Method)
}

// with decodes a request's body.
func with[B any](m wire.Message, do func(B) (reply, error)) (reply, error) {
	var body B
	if err := json.Unmarshal(m.Body, &body); err != nil {
		return reply{}, fmt.Errorf("decode %s request: %w", m.Method, err)
	}
	return do(body)
}

// broadcast sends an event to every daemon that listens. One that does not
// read finds the same in the state when it comes back.
func (s *server) broadcast(method wire.Method, body any) {
	text, err := json.Marshal(body)
	if err != nil {
		logf("encode %s: %v", method, err)
		return
	}
	s.mu.Lock()
	conns := make([]*wire.Conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		if err := c.Write(wire.Message{Method: method, Body: text}); err != nil {
			logf("%s: %v", method, err)
			_ = c.Close() // its reader notices and cleans up
		}
	}
}

// shutdown ends the shim, if nothing needs it any more.
func (s *server) shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, c := range s.containers {
		if !c.snapshot().Exited {
			return &wire.Error{Code: wire.CodeRunning, Text: "container " + id + " still runs"}
		}
	}
	return s.killInit()
}

// logf writes to shim.log, which is standard error.
func logf(format string, args ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format(time.RFC3339Nano)+" "+format+"\n", args...)
}
