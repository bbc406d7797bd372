package server

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/reap"
	"github.com/berth-io/berth/cri/shim/internal/wire"
	"github.com/berth-io/berth/cri/shim/podinit"
)

// initTimeout bounds how long an init process may take to be ready.
const initTimeout = 10 * time.Second

// init starts the first process of a pid namespace that containers share, and
// puts it into the pod's cgroups. It returns when that process is ready.
func (s *server) init(b wire.Init) (int, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	s.mu.Lock()
	pid := s.initPid
	s.mu.Unlock()
	if pid != 0 {
		return pid, nil
	}
	pid, exit, err := s.startInit(b)
	if err != nil {
		return 0, fmt.Errorf("start the pod's init process: %w", err)
	}
	ended := make(chan struct{})
	s.mu.Lock()
	s.initPid, s.initEnded = pid, ended
	s.mu.Unlock()
	go func() {
		e := <-exit
		logf("the pod's init process ended with code %d", e.Code())
		s.mu.Lock()
		s.initPid = 0
		s.mu.Unlock()
		close(ended)
	}()
	return pid, nil
}

// endInit returns when the process is gone.
func (s *server) endInit() error {
	s.mu.Lock()
	err, ended := s.killInit(), s.initEnded
	s.mu.Unlock()
	if err != nil || ended == nil {
		return err
	}
	select {
	case <-ended:
		return nil
	case <-time.After(initTimeout):
		return fmt.Errorf("end the pod's init process: it did not end within %v", initTimeout)
	}
}

// killInit is for who holds the lock.
func (s *server) killInit() error {
	if s.initPid == 0 {
		return nil
	}
	if err := s.reaper.Signal(s.initPid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("end the pod's init process: %w", err)
	}
	return nil
}

func (s *server) startInit(b wire.Init) (pid int, exit <-chan reap.Exit, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	input := null
	if len(b.SetUp) > 0 {
		if input, err = filled(b.SetUp); err != nil {
			return 0, nil, err
		}
		defer input.Close()
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, fmt.Errorf("make pipe: %w", err)
	}
	ready, err := wire.Pollable(p[0], "pipe of the init process")
	if err != nil {
		_ = unix.Close(p[1])
		return 0, nil, err
	}
	defer ready.Close()
	fd := null.Fd()
	pid, exit, err = s.reaper.Fork([]string{"/proc/self/exe", podinit.Argument}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{input.Fd(), fd, fd, uintptr(p[1])}, // podinit.ReadyFD
		Sys:   podinit.Attributes(b.UIDs, b.GIDs),
	})
	_ = unix.Close(p[1])
	if err != nil {
		return 0, nil, err
	}
	if err := errors.Join(join(b.CgroupDirs, pid), await(ready)); err != nil {
		_ = s.reaper.Signal(pid, syscall.SIGKILL) // it may have ended by itself
		<-exit
		return 0, nil, err
	}
	return pid, exit, nil
}

// filled is a file with content, to be read from its start: a pipe would have to
// be written beside the process, in case the content does not fit.
func filled(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("setup", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file for what the init process sets up: %w", err)
	}
	f := os.NewFile(uintptr(fd), "setup")
	if _, err = f.Write(content); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write what the init process sets up: %w", err), f.Close())
	}
	return f, nil
}

// join moves a process into cgroups.
func join(dirs []string, pid int) error {
	for _, dir := range dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("join the pod's cgroup: %w", err)
		}
	}
	return nil
}

// await returns when the init process has closed its end of the pipe, with
// what it had to complain about.
func await(ready *os.File) error {
	if err := ready.SetReadDeadline(time.Now().Add(initTimeout)); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(ready, 4096))
	if err != nil {
		return fmt.Errorf("wait for it to be ready: %w", err)
	}
	if string(text) != podinit.Ready {
		return fmt.Errorf("it ended: %s", text)
	}
	return nil
}
