// Package reap owns the children of a subreaper: it forks them, adopts the
// daemonised ones, and is the only caller of wait4, so that no exit status is
// lost to another waiter and no signal reaches a pid that was used again.
package reap

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how and when a process ended.
type Exit struct {
	Status syscall.WaitStatus
	At     time.Time
}

// Code is the exit code as a shell tells it: 128+signal for a process that a
// signal ended.
func (e Exit) Code() int {
	if e.Status.Signaled() {
		return 128 + int(e.Status.Signal())
	}
	return e.Status.ExitStatus()
}

// Reaper knows every child of this process that somebody waits for.
type Reaper struct {
	// mu is held across every fork and every wait4: between the two no pid
	// can be reaped unnoticed, and none that is in waiting can be re-used.
	mu       sync.Mutex
	waiting  map[int]chan Exit
	adopting int          // calls to Adopt not yet done
	orphans  map[int]Exit // ended before they were claimed; kept while adopting
}

// New returns a Reaper without children.
func New() *Reaper {
	return &Reaper{waiting: map[int]chan Exit{}, orphans: map[int]Exit{}}
}

// Run reaps on every tick of sigchld until it is closed.
func (r *Reaper) Run(sigchld <-chan os.Signal) {
	for range sigchld {
		r.reap()
	}
}

func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return // ECHILD: none left; 0: none has ended
		}
		exit := Exit{Status: status, At: time.Now()}
		if ch, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			ch <- exit // buffered: one exit per pid
		} else if r.adopting > 0 {
			r.orphans[pid] = exit
		}
	}
}

// Fork starts a child. Its exit arrives on the channel, once.
func (r *Reaper) Fork(argv []string, attr *syscall.ProcAttr) (pid int, exit <-chan Exit, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err = syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return pid, r.wait(pid), nil
}

func (r *Reaper) wait(pid int) <-chan Exit {
	ch := make(chan Exit, 1)
	r.waiting[pid] = ch
	return ch
}

// Adopt keeps the exits of processes that nobody waits for yet, until done is
// called: a process whose pid is read from a file may have ended by then.
func (r *Reaper) Adopt() (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.adopting++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.adopting--; r.adopting == 0 {
			clear(r.orphans)
		}
	}
}

// adoptPatience bounds how long the process that forked a child may live on
// after its own parent has: crun's is gone a moment after crun, runc's before.
const adoptPatience = time.Second

// Claim waits for a child that somebody else forked, and is about to leave to
// this subreaper. Call it between Adopt and done.
func (r *Reaper) Claim(pid int) (<-chan Exit, error) {
	deadline := time.Now().Add(adoptPatience)
	for {
		exit, err := r.claim(pid)
		if !errors.Is(err, syscall.ECHILD) || time.Now().After(deadline) {
			return exit, err
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *Reaper) claim(pid int) (<-chan Exit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if exit, ok := r.orphans[pid]; ok {
		delete(r.orphans, pid)
		ch := make(chan Exit, 1)
		ch <- exit
		return ch, nil
	}
	if _, ok := r.waiting[pid]; ok {
		return nil, fmt.Errorf("process %d is waited for already", pid)
	}
	// A process that is not our child would be waited for forever.
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil {
		return nil, fmt.Errorf("process %d is not a child of the shim: %w", pid, err)
	}
	return r.wait(pid), nil
}

// Open returns a descriptor of a child that is waited for (pidfd_open(2)), which
// is the caller's to close; ESRCH once it was reaped.
func (r *Reaper) Open(pid int) (fd int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; !ok {
		return -1, syscall.ESRCH
	}
	return unix.PidfdOpen(pid, 0)
}

// Signal sends sig to a child that is waited for; ESRCH once it was reaped.
func (r *Reaper) Signal(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; !ok {
		return syscall.ESRCH
	}
	return syscall.Kill(pid, sig)
}

// SignalGroup sends sig to the process group that a child leads.
func (r *Reaper) SignalGroup(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; !ok {
		return syscall.ESRCH
	}
	return syscall.Kill(-pid, sig)
}
