// Package enter is the process that starts a program in a running container: it
// enters the container's namespaces and cgroups, takes on the user,
// capabilities, limits and filters that the program is to have, and executes it.
//
// It does what an OCI runtime's exec does, in one short-lived process where runc
// needs two Go programs and three processes between them, and without reading
// the container's state or compiling its seccomp profile again. It is for
// containers of runc, whose processes are ordinary ones of the host.
//
// A failure here never reaches a user. Nothing has happened in the container
// until the program is executed, so the shim has the runtime do the same then,
// and the runtime's error is the answer. That makes it simple: what it does not
// know how to do, it refuses.
//
// Order matters, and follows runc's (libcontainer/setns_init_linux.go and
// nsexec.c of 1.5):
//
//	enter.go    the process, in the host's namespaces
//	prepare.go  all that the child needs, made before there is one
//	cgroups.go  which cgroups those of the container are
//	account.go  what the container's files say of the user, and where programs are
//	child.go    the fork: it enters the rest, and becomes the program
//
// The process runs from a sealed copy of its file (Seal): a program that is
// executed through /proc/self/exe in the container finds that, not the host's
// file (CVE-2019-5736). It cannot be dumped or traced by users, and is in the
// container's pid namespace only from the fork to the execution, some 100 µs.
package enter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Argument makes berth-shim be this process. Two more follow: the directory of
// the exec's own cgroup, or "", and the process ID of the container's first
// process.
const Argument = "enter"

// Descriptors that the process is started with, beside the program's stdio.
const (
	LockFD   = 3 // held, not used
	SpecFD   = 4 // a Spec as JSON
	ReportFD = 5 // takes a Report as JSON
	InitFD   = 6 // pidfd of the container's first process
	SelfFD   = 7 // what the process is executed from
)

// Path is what to execute: the descriptor SelfFD.
const Path = "/proc/self/fd/7"

// Spec is the program, and what it may do.
type Spec struct {
	Args     []string `json:"args"` // the first is looked for in the PATH of Env
	Env      []string `json:"env,omitempty"`
	Cwd      string   `json:"cwd"`
	UID      uint32   `json:"uid"`
	GID      uint32   `json:"gid"`
	Groups   []uint32 `json:"groups,omitempty"`
	Umask    *uint32  `json:"umask,omitempty"`
	Rlimits  []Rlimit `json:"rlimits,omitempty"`
	OOMScore *int     `json:"oomScore,omitempty"`
	Keyring  string   `json:"keyring"` // name of the session keyring
	// Capabilities, a bit each by the kernel's numbers.
	Capabilities    Capabilities `json:"capabilities"`
	NoNewPrivileges bool         `json:"noNewPrivileges,omitempty"`
	UserNamespace   bool         `json:"userNamespace,omitempty"` // the container has one of its own
	// SELinux and AppArmor are the label and profile to be executed with.
	SELinux  string `json:"selinux,omitempty"`
	AppArmor string `json:"appArmor,omitempty"`
	// Seccomp is a filter in the kernel's format, an array of struct
	// sock_filter, and SeccompFlags are those of seccomp(2).
	Seccomp      []byte  `json:"seccomp,omitempty"`
	SeccompFlags uintptr `json:"seccompFlags,omitempty"`
}

// Rlimit is a resource limit by the kernel's number of the resource.
type Rlimit struct {
	Resource int    `json:"resource"`
	Soft     uint64 `json:"soft"`
	Hard     uint64 `json:"hard"`
}

// Capabilities are the five sets of capabilities(7).
type Capabilities struct {
	Bounding    uint64 `json:"bounding,omitempty"`
	Effective   uint64 `json:"effective,omitempty"`
	Permitted   uint64 `json:"permitted,omitempty"`
	Inheritable uint64 `json:"inheritable,omitempty"`
	Ambient     uint64 `json:"ambient,omitempty"`
}

// Report says how it went: the program runs, or nothing has happened.
type Report struct {
	Pid   int    `json:"pid,omitempty"` // of the program, in the host's pid namespace
	Error string `json:"error,omitempty"`
}

// Run is the process. The program that it leaves behind is to be adopted by
// the subreaper it was started by.
func Run(args []string) error {
	runtime.LockOSThread() // what is set for the program is set for a thread
	pid, err := run(args)
	r := Report{Pid: pid}
	if err != nil {
		r.Error = err.Error()
	}
	text, err := json.Marshal(r)
	if err == nil {
		_, err = unix.Write(ReportFD, text) // shorter than what a pipe takes at once
	}
	return err
}

func run(args []string) (pid int, err error) {
	if len(args) != 2 {
		return 0, errors.New("a cgroup and a process ID are needed: this program is started by the shim")
	}
	init, err := strconv.Atoi(args[1])
	if err != nil {
		return 0, fmt.Errorf("the container's process: %w", err)
	}
	for fd := LockFD; fd <= SelfFD; fd++ {
		unix.CloseOnExec(fd)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("hide from other processes: %w", err)
	}
	var s Spec
	if err := json.NewDecoder(os.NewFile(SpecFD, "spec")).Decode(&s); err != nil {
		return 0, fmt.Errorf("read what to start: %w", err)
	}
	places, err := cgroupsOf(init, args[0])
	if err != nil {
		return 0, err
	}
	defer places.close()
	// A process ID may have been used again by now, what the descriptor names not.
	if err := unix.PidfdSendSignal(InitFD, 0, nil, 0); err != nil {
		return 0, fmt.Errorf("the container's first process: %w", err)
	}
	if err := label(s); err != nil {
		return 0, err
	}
	if s.OOMScore != nil {
		// It is of the process, and goes on to the child.
		if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*s.OOMScore)), 0); err != nil {
			return 0, fmt.Errorf("set the OOM score: %w", err)
		}
	}
	restoreFileLimit()
	if err := enterNamespaces(); err != nil {
		return 0, err
	}
	c, err := prepare(s, places)
	if err != nil {
		return 0, err
	}
	return start(c)
}

// namespaces are those that any container may have of its own. Where it shares
// one with the host, entering it changes nothing.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// enterNamespaces is about the calling thread, and of the pid namespace about
// the processes that it makes. A user namespace has to wait: no thread of
// several may enter one.
func enterNamespaces() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("have a root directory of the thread's own: %w", err)
	}
	if err := unix.Setns(InitFD, namespaces); err != nil {
		return fmt.Errorf("enter the container's namespaces: %w", err)
	}
	return nil
}

// restoreFileLimit undoes what Go's runtime has done to the soft limit of open
// files when the process started. Only what executes another program does that,
// and an execution that fails does no more.
func restoreFileLimit() {
	_ = syscall.Exec("", []string{""}, nil) // ENOENT
}

// label has the security modules confine what this thread's child executes. The
// labels that a thread is given are handed on by fork(2).
func label(s Spec) error {
	type attribute struct{ file, value string }
	var all []attribute
	if s.SELinux != "" {
		all = append(all, attribute{"keycreate", s.SELinux}, attribute{"exec", s.SELinux})
	}
	if s.AppArmor != "" {
		all = append(all, attribute{"apparmor/exec", "exec " + s.AppArmor})
	}
	for _, a := range all {
		if err := os.WriteFile("/proc/thread-self/attr/"+a.file, []byte(a.value), 0); err != nil {
			return fmt.Errorf("confine the program: %w", err)
		}
	}
	return nil
}

// start forks, and tells when the program has been executed.
func start(c *child) (pid int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, fmt.Errorf("make a pipe: %w", err)
	}
	failed := os.NewFile(uintptr(p[0]), "pipe of the child")
	defer failed.Close()
	c.report = p[1]
	pid, errno := c.fork()
	_ = unix.Close(p[1])
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", errno)
	}
	var said failure
	text, err := io.ReadAll(failed)
	if err != nil {
		return 0, fmt.Errorf("wait for the program to be executed: %w", err)
	}
	if len(text) == 0 {
		return pid, nil
	}
	_, _ = unix.Wait4(pid, nil, 0, nil)
	if err := said.decode(text); err != nil {
		return 0, err
	}
	return 0, said
}
