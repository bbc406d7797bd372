package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/enter"
	"github.com/berth-io/berth/cri/shim/internal/oci"
	"github.com/berth-io/berth/cri/shim/internal/wire"
)

// enterTimeout bounds what takes some milliseconds.
const enterTimeout = 30 * time.Second

// enter starts an exec without the OCI runtime, if the daemon has said how. When
// it does not work, nothing has happened in the container, and the runtime is to
// try: it has the better errors, and can do more.
func (s *server) enter(e *execution, b wire.Exec, stdio oci.Stdio, files []*os.File) (_ oci.Started, ok bool) {
	if len(b.Enter) == 0 || len(files) != 1 || b.Terminal {
		return oci.Started{}, false
	}
	started, err := s.enterContainer(e, b.Enter, stdio, files[0])
	if err == nil {
		return started, true
	}
	e.group.Kill() // what took too long
	s.mu.Lock()
	again := s.refused == err.Error()
	s.refused = err.Error()
	s.mu.Unlock()
	if !again {
		logf("exec in container %s is left to the runtime: %v", b.ContainerID, err)
	}
	return oci.Started{}, false
}

func (s *server) enterContainer(e *execution, spec []byte, stdio oci.Stdio, program *os.File) (started oci.Started, err error) {
	init := e.container.snapshot().Pid
	pidfd, err := s.reaper.Open(init)
	if err != nil {
		return started, fmt.Errorf("open process %d: %w", init, err)
	}
	defer unix.Close(pidfd)
	input, err := filled(spec)
	if err != nil {
		return started, err
	}
	defer input.Close()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return started, fmt.Errorf("make pipe: %w", err)
	}
	report, err := wire.Pollable(p[0], "report")
	if err != nil {
		_ = unix.Close(p[1])
		return started, err
	}
	defer report.Close()
	done := s.reaper.Adopt()
	defer done()
	pid, exited, err := s.reaper.Fork([]string{enter.Path, enter.Argument, e.group.Dir(), strconv.Itoa(init)}, &syscall.ProcAttr{
		Dir: s.runtime.Dir,
		Env: []string{"GOMAXPROCS=1", "GOGC=off"}, // it lives too short for either
		Files: []uintptr{
			stdio.Stdin, stdio.Stdout, stdio.Stderr,
			enter.LockFD: s.runtime.Lock, enter.SpecFD: input.Fd(), enter.ReportFD: uintptr(p[1]),
			enter.InitFD: uintptr(pidfd), enter.SelfFD: program.Fd(),
		},
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
	})
	_ = unix.Close(p[1])
	if err != nil {
		return started, err
	}
	said, err := reported(report)
	if err != nil {
		_ = s.reaper.Signal(pid, unix.SIGKILL) // it may have ended by itself
	}
	<-exited
	if err != nil {
		return started, err
	}
	exit, err := s.reaper.Claim(said)
	if err != nil {
		return started, err
	}
	return oci.Started{Pid: said, Exit: exit}, nil
}

// reported is the process ID of the program that was started.
func reported(from *os.File) (pid int, err error) {
	if err := from.SetReadDeadline(time.Now().Add(enterTimeout)); err != nil {
		return 0, err
	}
	text, err := io.ReadAll(io.LimitReader(from, 4096))
	if err != nil {
		return 0, fmt.Errorf("enter the container: %w", err)
	}
	var r enter.Report
	if err := json.Unmarshal(text, &r); err != nil {
		return 0, fmt.Errorf("enter the container: the process has ended without a report")
	}
	if r.Error != "" {
		return 0, errors.New(r.Error)
	}
	return r.Pid, nil
}
