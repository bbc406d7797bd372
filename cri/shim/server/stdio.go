package server

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/crilog"
	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/stream"
	"github.com/berth-io/berth/cri/shim/internal/wire"
)

// consoleSocket is where the runtime hands over a terminal, in the bundle.
const consoleSocket = "console.sock"

// consoleTimeout bounds the wait for a terminal that the runtime says it sent.
const consoleTimeout = 10 * time.Second

// errNoTerminal is the answer to a resize where there is nothing to resize.
var errNoTerminal = errors.New("the process has no terminal")

// stdio are the shim's ends of a container's standard streams.
type stdio struct {
	spec    wire.Container
	buffers *stream.Buffers // of the shim
	log     *crilog.File    // nil: output is discarded

	// childEnds are for the runtime and closed once it has them.
	childEnds [3]int
	console   *console

	mu      sync.Mutex
	stdin   int // write end; with a terminal, the pty master; -1: none
	outputs []*stream.Output
}

func newStdio(spec wire.Container, buffers *stream.Buffers) (_ *stdio, err error) {
	s := &stdio{spec: spec, buffers: buffers, stdin: -1, childEnds: [3]int{-1, -1, -1}}
	defer func() {
		if err != nil {
			s.closeChild()
			s.close()
		}
	}()
	if spec.LogPath != "" {
		if s.log, err = crilog.Open(spec.LogPath); err != nil {
			// A bad log path does not keep a container from running; what it
			// says until the path is mended is counted.
			logf("container %s: %v", spec.ID, err)
		}
	}
	if spec.Terminal {
		if s.childEnds, err = nullStdio(); err != nil {
			return s, err
		}
		return s, nil
	}
	null, err := nullStdio()
	if err != nil {
		return s, err
	}
	s.childEnds[0] = null[0]
	_ = unix.Close(null[1])
	_ = unix.Close(null[2])
	if spec.Stdin {
		p, err := makePipe(spec)
		if err != nil {
			return s, err
		}
		_ = unix.Close(s.childEnds[0])
		s.childEnds[0], s.stdin = p[0], p[1]
	}
	for i, name := range []string{"stdout", "stderr"} {
		p, err := makePipe(spec)
		if err != nil {
			return s, err
		}
		s.childEnds[i+1] = p[1]
		if err := s.listenTo(name, p[0]); err != nil {
			return s, err
		}
	}
	return s, nil
}

// nullStdio opens /dev/null three times.
func nullStdio() (fds [3]int, err error) {
	for i := range fds {
		if fds[i], err = unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			for _, fd := range fds[:i] {
				_ = unix.Close(fd)
			}
			return [3]int{-1, -1, -1}, fmt.Errorf("open %s: %w", os.DevNull, err)
		}
	}
	return fds, nil
}

// makePipe makes a pipe that belongs to the root user of the container.
func makePipe(spec wire.Container) (p [2]int, err error) {
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return p, fmt.Errorf("make pipe: %w", err)
	}
	if spec.UID == 0 && spec.GID == 0 {
		return p, nil
	}
	if err := unix.Fchown(p[0], spec.UID, spec.GID); err != nil {
		_, _ = unix.Close(p[0]), unix.Close(p[1])
		return p, fmt.Errorf("give a pipe to user %d: %w", spec.UID, err)
	}
	return p, nil
}

// listenTo copies what comes out of fd, which it takes over.
func (s *stdio) listenTo(name string, fd int) error {
	file, err := wire.Pollable(fd, name)
	if err != nil {
		return err
	}
	out, err := stream.New(name, file, s.log, s.buffers)
	if err != nil {
		_ = file.Close()
		return err
	}
	s.mu.Lock()
	s.outputs = append(s.outputs, out)
	s.mu.Unlock()
	go out.Run()
	return nil
}

// child is what the runtime is started with.
func (s *stdio) child(bundle string) (oci.Stdio, error) {
	c := oci.Stdio{Stdin: uintptr(s.childEnds[0]), Stdout: uintptr(s.childEnds[1]), Stderr: uintptr(s.childEnds[2])}
	if !s.spec.Terminal {
		return c, nil
	}
	var err error
	s.console, err = newConsole(filepath.Join(bundle, consoleSocket))
	c.Console = consoleSocket
	return c, err
}

// started takes over the terminal that the runtime has made.
func (s *stdio) started() error {
	if !s.spec.Terminal {
		return nil
	}
	master, err := s.console.receive()
	if err != nil {
		return err
	}
	keep, err := unix.FcntlInt(uintptr(master), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(master)
		return err
	}
	s.mu.Lock()
	s.stdin = keep
	s.mu.Unlock()
	return s.listenTo("stdout", master)
}

// closeChild closes what was for the runtime.
func (s *stdio) closeChild() {
	for i, fd := range s.childEnds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
		s.childEnds[i] = -1
	}
	if s.console != nil {
		s.console.close()
		s.console = nil
	}
}

// attach returns the ends of a reader and writer that joins in. A container
// with StdinOnce hands its only write end over: when that client goes, the
// container reads the end of its input.
func (s *stdio) attach(stdin bool) (which wire.Attached, files []int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stdin && s.stdin >= 0 {
		fd := s.stdin
		if s.spec.StdinOnce && !s.spec.Terminal {
			s.stdin = -1
		} else if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return which, nil, fmt.Errorf("share stdin: %w", err)
		}
		which.Stdin = true
		files = append(files, fd)
	}
	for i, out := range s.outputs {
		fd, err := out.Attach()
		if err != nil {
			for _, fd := range files {
				_ = unix.Close(fd)
			}
			return wire.Attached{}, nil, err
		}
		files = append(files, fd)
		which.Stdout, which.Stderr = true, which.Stderr || i == 1
	}
	return which, files, nil
}

func (s *stdio) resize(width, height uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.spec.Terminal || s.stdin < 0 {
		return errNoTerminal
	}
	return setSize(s.stdin, width, height)
}

func setSize(fd int, width, height uint16) error {
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	return nil
}

func (s *stdio) reopenLog() error {
	if s.log == nil {
		return nil
	}
	return s.log.Reopen()
}

func (s *stdio) dropped() int64 {
	if s.log == nil {
		return 0
	}
	return s.log.Dropped()
}

// drain returns when what the container wrote before its end is in the log.
func (s *stdio) drain(patience time.Duration) {
	s.mu.Lock()
	outputs := s.outputs
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, out := range outputs {
		wg.Go(func() { out.Drain(patience) })
	}
	wg.Wait()
}

// close lets go of everything; attached readers read the end.
func (s *stdio) close() {
	s.mu.Lock()
	outputs := s.outputs
	s.outputs = nil
	if s.stdin >= 0 {
		_ = unix.Close(s.stdin)
		s.stdin = -1
	}
	s.mu.Unlock()
	for _, out := range outputs {
		out.Close()
	}
	if s.log != nil {
		s.log.Close()
	}
}

// console is the socket over which a runtime sends a pty master.
type console struct {
	path string
	fd   int
}

func newConsole(path string) (*console, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	defer unix.Close(dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	// A socket's path has 108 bytes at the most; through the directory's
	// descriptor it is always short enough.
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: short}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &console{path: path, fd: fd}, nil
}

// receive takes the master from a runtime that has sent it already, or will
// within consoleTimeout.
func (c *console) receive() (master int, err error) {
	conn, err := c.wait(func() (int, error) {
		fd, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC)
		return fd, err
	}, c.fd)
	if err != nil {
		return -1, fmt.Errorf("wait for the runtime's console: %w", err)
	}
	defer unix.Close(conn)
	return c.wait(func() (int, error) { return receiveFD(conn) }, conn)
}

func (c *console) wait(then func() (int, error), fd int) (int, error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(consoleTimeout/time.Millisecond))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return -1, err
		case n == 0:
			return -1, fmt.Errorf("the runtime sent no terminal within %v", consoleTimeout)
		default:
			return then()
		}
	}
}

func receiveFD(conn int) (int, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, name, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, fmt.Errorf("receive the terminal: %w", err)
	}
	for i := range messages {
		if fds, err := unix.ParseUnixRights(&messages[i]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("the runtime sent no terminal")
}

func (c *console) close() {
	_ = unix.Close(c.fd)
	_ = os.Remove(c.path)
}
