package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/enter"
	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/reap"
	"github.com/berth-io/berth/cri/shim/internal/wire"
)

const (
	// enterTimeout bounds what takes some milliseconds.
	enterTimeout = 30 * time.Second
	// killPatience is how long a process may take to die. One that waits for a
	// file system may take for ever.
	killPatience = 2 * time.Second
)

// errDeclined is in the chain where nothing has happened in the container, so
// that the runtime may try: it has the better errors, and can do more.
var errDeclined = errors.New("left to the runtime")

// launch starts the process of an exec: without the OCI runtime, if the daemon has
// said how and it works, or else by the runtime.
func (s *server) launch(e *execution, b wire.Exec, stdio oci.Stdio) (oci.Started, error) {
	if len(b.Enter) > 0 && !b.Terminal {
		started, err := s.enter(e, b.Enter, stdio)
		if !errors.Is(err, errDeclined) {
			if err != nil {
				err = fmt.Errorf("exec in container %s: %w", b.ContainerID, err)
			}
			return started, err
		}
		s.mu.Lock()
		again, killed := s.declined == err.Error(), e.killed
		s.declined = err.Error()
		s.mu.Unlock()
		if killed {
			return oci.Started{}, fmt.Errorf("exec in container %s: it was killed before it started", b.ContainerID)
		}
		if !again {
			logf("exec in container %s: %v", b.ContainerID, err)
		}
	}
	return s.runtime.Exec(b.ContainerID, b.Process, stdio, e.group.Argument())
}

// enter runs the process that becomes the program, see package enter.
func (s *server) enter(e *execution, spec []byte, stdio oci.Stdio) (started oci.Started, err error) {
	done := s.reaper.Adopt()
	defer done()
	pid, exited, report, err := s.forkEnter(e, spec, stdio)
	if err != nil {
		return started, fmt.Errorf("%w: %w", errDeclined, err)
	}
	defer report.Close()
	s.mu.Lock()
	e.helper = pid
	killed := e.killed
	s.mu.Unlock()
	if killed {
		s.killExec(e)
	}
	program, err := follow(report)
	s.mu.Lock()
	e.helper = 0
	s.mu.Unlock()
	if err != nil {
		_ = s.reaper.Signal(pid, unix.SIGKILL) // it may have ended by itself
		e.group.Kill()
	}
	select {
	case <-exited:
	case <-time.After(killPatience): // the reaper takes it when it ends
	}
	if err != nil {
		return started, err
	}
	exit, err := s.reaper.Claim(program)
	if err != nil {
		e.group.Kill()
		return started, err
	}
	return oci.Started{Pid: program, Exit: exit}, nil
}

// forkEnter starts the process. The report is the caller's to close.
func (s *server) forkEnter(e *execution, spec []byte, stdio oci.Stdio) (pid int, exited <-chan reap.Exit, report *os.File, err error) {
	place, err := json.Marshal(enter.Place{Init: e.container.snapshot().Pid, Cgroup: e.group.Dir()})
	if err != nil {
		return 0, nil, nil, err
	}
	input, err := filled(append(place, spec...))
	if err != nil {
		return 0, nil, nil, err
	}
	defer input.Close()
	init, err := s.reaper.Open(e.container.snapshot().Pid)
	if err != nil {
		return 0, nil, nil, fmt.Errorf("open the container's first process: %w", err)
	}
	defer unix.Close(init)
	sealed, err := enter.Seal()
	if err != nil {
		return 0, nil, nil, err
	}
	defer unix.Close(sealed)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, nil, err
	}
	defer null.Close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	defer unix.Close(p[1])
	if report, err = wire.Pollable(p[0], "report"); err != nil {
		return 0, nil, nil, err
	}
	pid, exited, err = s.reaper.Fork([]string{enter.Path, enter.Argument}, &syscall.ProcAttr{
		Dir: "/",
		Env: []string{"GOMAXPROCS=1", "GOGC=off"}, // it lives too short for either
		Files: []uintptr{
			null.Fd(), null.Fd(), null.Fd(),
			enter.LockFD: s.runtime.Lock, enter.InputFD: input.Fd(), enter.ReportFD: uintptr(p[1]), enter.InitFD: uintptr(init),
			enter.SelfFD: uintptr(sealed), enter.StdioFD: stdio.Stdin, enter.StdioFD + 1: stdio.Stdout, enter.StdioFD + 2: stdio.Stderr,
		},
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		_ = report.Close()
		return 0, nil, nil, err
	}
	return pid, exited, report, nil
}

// follow reads the reports of a process: it returns the program's process ID. The
// error is errDeclined where no program has been started.
func follow(from *os.File) (pid int, err error) {
	if err := from.SetReadDeadline(time.Now().Add(enterTimeout)); err != nil {
		return 0, err
	}
	reports := json.NewDecoder(io.LimitReader(from, 64<<10))
	forking := false
	for {
		var r enter.Report
		err := reports.Decode(&r)
		switch {
		case err == nil && r.Error != "":
			return 0, fmt.Errorf("%w: %s", errDeclined, r.Error)
		case err == nil && r.Pid != 0:
			return r.Pid, nil
		case err == nil:
			forking = true
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("the program was not started within %v", enterTimeout)
		case forking:
			return 0, fmt.Errorf("the process that starts the program was killed when it may have started it: %w", err)
		default:
			return 0, fmt.Errorf("%w: the process that starts the program has ended: %w", errDeclined, err)
		}
	}
}
