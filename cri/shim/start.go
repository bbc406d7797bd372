package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/wire"
	"github.com/berth-io/berth/internal/failpoint"
)

const (
	socketName = "shim.sock"
	logName    = "shim.log"
)

// Start starts a sandbox's shim and connects to it. The daemon makes the
// listening socket, so that there is nothing to wait for; and as long as any
// process holds that socket the shim lives, which is how a restarted daemon
// tells, without a record of a pid that may be another's by now.
func Start(ctx context.Context, s Sandbox) (*Client, error) {
	listener, err := listen(s.Dir)
	if err != nil {
		return nil, fmt.Errorf("start the shim of sandbox %s: %w", s.ID, err)
	}
	defer unix.Close(listener)
	failpoint.Hit("shim/socket-made")
	pid, err := spawn(s, listener)
	if err != nil {
		return nil, fmt.Errorf("start the shim of sandbox %s: %w", s.ID, err)
	}
	failpoint.Hit("shim/spawned")
	c, err := connect(s.Dir)
	if err != nil {
		_ = syscall.Kill(pid, syscall.SIGKILL)
		reap(pid)
		return nil, fmt.Errorf("connect to the new shim of sandbox %s: %w", s.ID, err)
	}
	c.pid, c.child = pid, true
	go c.read()
	return c, nil
}

// Connect finds the shim of an earlier daemon again. ErrGone means that there
// is none any more, os.ErrNotExist that there never was.
func Connect(ctx context.Context, dir string) (*Client, error) {
	c, err := connect(dir)
	if err != nil {
		return nil, err
	}
	go c.read()
	var info wire.Info
	if err := c.call(ctx, wire.MethodInfo, nil, &info); err != nil {
		return nil, errors.Join(fmt.Errorf("shim of %s: %w", dir, err), c.Close())
	}
	c.pid = info.Pid
	return c, nil
}

func spawn(s Sandbox, listener int) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	log, err := os.OpenFile(filepath.Join(s.Dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("open the shim's log: %w", err)
	}
	defer log.Close()
	argv := []string{s.Binary, "-id", s.ID, "-dir", s.Dir, "-runtime", s.Runtime.Binary, "-root", s.Runtime.Root, "-timeout", s.Runtime.Timeout.String()}
	if s.Runtime.SystemdCgroup {
		argv = append(argv, "-systemd-cgroup")
	}
	for _, arg := range s.Runtime.Args {
		argv = append(argv, "-runtime-arg="+arg)
	}
	pid, err = syscall.ForkExec(s.Binary, argv, &syscall.ProcAttr{
		Env:   environment(os.Environ()),
		Dir:   "/",
		Files: []uintptr{null.Fd(), null.Fd(), log.Fd(), uintptr(listener)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("execute %s: %w (install berth-shim beside berth, or set shimBinary)", s.Binary, err)
	}
	return pid, nil
}

// environment is the daemon's without what the service manager told the daemon
// alone. With NOTIFY_SOCKET above all runc would wait for the container to
// report that it is ready.
//
// It makes the shim small, as nothing in the shim itself can: before main, Go
// allocates for each processor of the host, and never gives that back.
func environment(daemon []string) []string {
	inherited := slices.DeleteFunc(daemon, func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		switch name {
		case "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "GOMAXPROCS", "GOGC":
			return true
		}
		return false
	})
	return append(inherited, "GOMAXPROCS=1", "GOGC=20")
}

// listen makes DIR/shim.sock.
func listen(dir string) (int, error) {
	if err := os.Remove(filepath.Join(dir, socketName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return -1, fmt.Errorf("remove an old socket: %w", err)
	}
	return withSocket(dir, func(fd int, address *unix.SockaddrUnix) error {
		if err := unix.Bind(fd, address); err != nil {
			return fmt.Errorf("bind %s in %s: %w", socketName, dir, err)
		}
		if err := unix.Listen(fd, 64); err != nil {
			return fmt.Errorf("listen on %s in %s: %w", socketName, dir, err)
		}
		return nil
	})
}

func connect(dir string) (*Client, error) {
	fd, err := withSocket(dir, func(fd int, address *unix.SockaddrUnix) error {
		err := unix.Connect(fd, address)
		if errors.Is(err, unix.ECONNREFUSED) {
			// Nobody holds the listening socket: what is left is a name.
			return errors.Join(fmt.Errorf("connect to %s in %s: %w", socketName, dir, ErrGone), os.Remove(filepath.Join(dir, socketName)))
		}
		if err != nil {
			return fmt.Errorf("connect to %s in %s: %w", socketName, dir, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	conn, err := wire.NewConn(fd)
	if err != nil {
		return nil, err
	}
	return newClient(conn), nil
}

// withSocket makes a unix socket and hands it on with the address of
// DIR/shim.sock. An address has 108 bytes at the most; through a descriptor of
// the directory it is short, whatever the directory's name.
func withSocket(dir string, use func(fd int, address *unix.SockaddrUnix) error) (int, error) {
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(at)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	address := &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", at, socketName)}
	if err := use(fd, address); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// reap waits for a shim of this daemon that has ended, or is about to.
func reap(pid int) {
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
			return
		}
	}
}
