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
// know how to do, it refuses. The one thing to be careful of is not to start a
// program twice: Report says when there is no way back.
//
// Order matters, and follows runc's (libcontainer/setns_init_linux.go and
// nsexec.c of 1.5):
//
//	enter.go    the process, in the host's namespaces
//	prepare.go  all that the child needs, made before there is one
//	cgroups.go  which cgroups those of the container are
//	account.go  what the container's files say of the user, and where programs are
//	child.go    the fork: it enters the rest, and becomes the program
//	seal.go     what the process is executed from
//
// The process runs from a sealed copy of its file, made for it alone (Seal): a
// program that is executed through /proc/self/exe in the container finds that,
// not the host's file (CVE-2019-5736), and nothing that another container's
// processes are executed from. It cannot be dumped or traced by users, and is in
// the container's pid namespace only from the fork to the execution, some 100 µs.
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
	"unsafe"

	"golang.org/x/sys/unix"
)

// Argument makes berth-shim be this process.
const Argument = "enter"

// Descriptors that the process is started with. Its standard streams are not the
// program's: what Go says when it has to give up is not the program's output.
const (
	LockFD   = 3 // held, not used
	InputFD  = 4 // a Place and a Spec as JSON
	ReportFD = 5 // takes Reports as JSON
	InitFD   = 6 // pidfd of the container's first process
	SelfFD   = 7 // what the process is executed from
	StdioFD  = 8 // and the next two: the program's standard streams
)

// Path is what to execute: the descriptor SelfFD.
const Path = "/proc/self/fd/7"

// Place is where the container is, as the shim knows.
type Place struct {
	Init   int    `json:"init"`             // process ID of the container's first process
	Cgroup string `json:"cgroup,omitempty"` // directory of the exec's own cgroup, if it has one
}

// Spec is the program, and what it may do, as the daemon knows. A field that the
// shim's version does not know is refused.
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
	// Namespaces are the clone flags of those that the container has of its own.
	Namespaces      uintptr      `json:"namespaces"`
	Capabilities    Capabilities `json:"capabilities"`
	NoNewPrivileges bool         `json:"noNewPrivileges,omitempty"`
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

// Capabilities are the five sets of capabilities(7), a bit for each capability
// by the kernel's numbers.
type Capabilities struct {
	Bounding    uint64 `json:"bounding,omitempty"`
	Effective   uint64 `json:"effective,omitempty"`
	Permitted   uint64 `json:"permitted,omitempty"`
	Inheritable uint64 `json:"inheritable,omitempty"`
	Ambient     uint64 `json:"ambient,omitempty"`
}

// Report says how far it has come. From Forking on the program may have been
// started, unless an Error follows. What has an Error has done nothing.
type Report struct {
	Forking bool   `json:"forking,omitempty"`
	Pid     int    `json:"pid,omitempty"` // of the program, in the host's pid namespace
	Error   string `json:"error,omitempty"`
}

// Run is the process. The program that it leaves behind is to be adopted by
// the subreaper it was started by.
func Run() error {
	runtime.LockOSThread() // what is set for the program is set for a thread
	pid, err := run()
	if err != nil {
		return report(Report{Error: err.Error()})
	}
	return report(Report{Pid: pid})
}

// report is shorter than what a pipe takes at once.
func report(r Report) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := unix.Write(ReportFD, text); err != nil {
		return fmt.Errorf("report to the shim: %w", err)
	}
	return nil
}

func run() (pid int, err error) {
	if err := hide(); err != nil {
		return 0, err
	}
	place, s, err := readInput(os.NewFile(InputFD, "input"))
	if err != nil {
		return 0, err
	}
	cgroups, err := cgroupsOf(place)
	if err != nil {
		return 0, err
	}
	defer cgroups.close()
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
	files, err := openDescriptors()
	if err != nil {
		return 0, err
	}
	defer files.close()
	if err := enterNamespaces(s.Namespaces); err != nil {
		return 0, err
	}
	c, err := prepare(s, cgroups, files)
	if err != nil {
		return 0, err
	}
	return start(c)
}

// hide keeps others from looking into the process, and its descriptors from the
// program.
func hide() error {
	for fd := LockFD; fd < StdioFD+3; fd++ {
		unix.CloseOnExec(fd)
	}
	name := [16]byte{'b', 'e', 'r', 't', 'h', '-', 'e', 'n', 't', 'e', 'r'} // in place of the descriptor's number
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0, 0, 0)
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide from other processes: %w", err)
	}
	return nil
}

func readInput(from io.Reader) (place Place, s Spec, err error) {
	input := json.NewDecoder(from)
	input.DisallowUnknownFields()
	if err = input.Decode(&place); err == nil {
		err = input.Decode(&s)
	}
	if err != nil {
		return place, s, fmt.Errorf("read what to start: %w", err)
	}
	return place, s, nil
}

// later are namespaces that the child enters: a user namespace only a process
// with one thread may enter, and who has entered a cgroup namespace cannot make a
// process in a cgroup outside of it any more.
const later = unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP

// enterNamespaces is about the calling thread, and of the pid namespace about
// the processes that it makes.
func enterNamespaces(own uintptr) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("have a root directory of the thread's own: %w", err)
	}
	if own&^later == 0 {
		return errors.New("the container has no namespaces of its own")
	}
	if err := unix.Setns(InitFD, int(own&^later)); err != nil {
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
	if err := report(Report{Forking: true}); err != nil {
		_ = unix.Close(p[1])
		return 0, err
	}
	pid, errno := c.fork()
	_ = unix.Close(p[1])
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", errno)
	}
	text, err := io.ReadAll(failed)
	if err != nil {
		return 0, fmt.Errorf("wait for the program to be executed: %w", err)
	}
	if len(text) == 0 {
		return pid, nil
	}
	_, _ = unix.Wait4(pid, nil, 0, nil)
	var said failure
	if err := said.decode(text); err != nil {
		return 0, err
	}
	return 0, said
}
