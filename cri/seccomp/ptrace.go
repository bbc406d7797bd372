package seccomp

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// stopTimeout is how long a process may take to stop.
	stopTimeout = 5 * time.Second
	// instructionSize is that of struct sock_filter in bytes.
	instructionSize = int(unsafe.Sizeof(unix.SockFilter{}))
)

// filterOf is the seccomp filter of a process, which must have one and no more.
// The process is stopped for a moment. Nothing but the kernel's say takes part:
// it is Linux 4.4 with CONFIG_CHECKPOINT_RESTORE that says it, to root without a
// filter of its own.
func filterOf(pid int) (program []byte, err error) {
	runtime.LockOSThread() // a process is traced by a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("trace process %d: %w", pid, err)
	}
	defer func() {
		// It has to be stopped for that; if it is not, it is about to be killed.
		err = errors.Join(err, ignore(unix.PtraceDetach(pid), unix.ESRCH))
	}()
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("stop process %d: %w", pid, err)
	}
	if err := awaitStop(pid); err != nil {
		return nil, err
	}
	switch _, err := getFilter(pid, 1, nil); {
	case err == nil:
		return nil, fmt.Errorf("process %d has more than one filter", pid)
	case !errors.Is(err, unix.ENOENT):
		return nil, fmt.Errorf("read the second filter of process %d: %w", pid, err)
	}
	n, err := getFilter(pid, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("read the filter of process %d: %w", pid, err)
	}
	program = make([]byte, n*instructionSize)
	if _, err := getFilter(pid, 0, program); err != nil {
		return nil, fmt.Errorf("read the filter of process %d: %w", pid, err)
	}
	return program, nil
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

func awaitStop(pid int) error {
	for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d to stop: %w", pid, err)
		case got == pid && status.Stopped():
			return nil
		case got == pid:
			return fmt.Errorf("process %d has ended", pid)
		case time.Now().After(deadline):
			return fmt.Errorf("process %d has not stopped within %v", pid, stopTimeout)
		}
	}
}

// getFilter is PTRACE_SECCOMP_GET_FILTER of ptrace(2): filter index of a process,
// the oldest first. It returns the number of instructions, which buf, if there is
// one, has to have room for.
func getFilter(pid, index int, buf []byte) (instructions int, err error) {
	var to unsafe.Pointer
	if len(buf) > 0 {
		to = unsafe.Pointer(&buf[0])
	}
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(index), uintptr(to), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
