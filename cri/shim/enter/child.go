package enter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is what the child was doing when it failed.
type step uint32

const (
	stepSession step = iota
	stepStreams
	stepCgroup
	stepCgroupNamespace
	stepRlimit
	stepUserNamespace
	stepKeyring
	stepNoNewPrivileges
	stepClose
	stepStdio
	stepBounding
	stepKeepCaps
	stepCwd
	stepSeccomp
	stepGroups
	stepGID
	stepUID
	stepWhere
	stepCapabilities
	stepSignals
	stepExecute
)

var steps = [...]string{
	"make a session", "take the streams", "join the container's cgroups", "enter the cgroup namespace", "set resource limits", "enter the user namespace", "join the session keyring",
	"set no_new_privs", "close descriptors", "give the streams to the user", "drop capabilities", "keep capabilities",
	"change the working directory", "install the seccomp filter", "set the groups", "set the group", "set the user",
	"see whether the working directory is in the container", "set the capabilities", "unblock signals", "execute the program",
}

// failure is what the child writes to its pipe. It is an error too.
type failure struct {
	step  uint32
	errno uint32
}

const failureSize = 8

func (f *failure) decode(text []byte) error {
	if len(text) != failureSize {
		return fmt.Errorf("the child said %d bytes, not %d", len(text), failureSize)
	}
	f.step, f.errno = binary.NativeEndian.Uint32(text), binary.NativeEndian.Uint32(text[4:])
	if int(f.step) >= len(steps) {
		return errors.New("the child did not say what it failed at")
	}
	return nil
}

func (f failure) Error() string { return steps[f.step] + ": " + f.Unwrap().Error() }

func (f failure) Unwrap() error { return syscall.Errno(f.errno) }

// fork makes the child, which becomes the program or says to c.report why not.
//
// The child is a copy of this process with this one thread. Go's runtime cannot
// work in it: it runs nothing but system calls, which may neither split the
// stack nor allocate nor be preempted. That is how package syscall forks, too.
func (c *child) fork() (pid int, errno syscall.Errno) {
	all := [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	var before [8]byte
	// No handler of the runtime's may run in the child.
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&before)), uintptr(len(all)), 0, 0)
	pid, errno = c.forkBlocked()
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&before)), 0, uintptr(len(all)), 0, 0)
	runtime.KeepAlive(c)
	return pid, errno
}

//go:norace
//go:nosplit
//go:noinline
func (c *child) forkBlocked() (pid int, errno syscall.Errno) {
	r, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&c.clone)), unsafe.Sizeof(c.clone), 0)
	if errno != 0 || r != 0 {
		return int(r), errno
	}
	errno = c.enter()
	if errno == 0 {
		errno = c.drop()
	}
	if errno == 0 {
		errno = c.execute()
	}
	c.said.step, c.said.errno = uint32(c.step), uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.report), uintptr(unsafe.Pointer(&c.said)), failureSize)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
	}
}

// enter is what takes the privileges of the host.
//
//go:norace
//go:nosplit
func (c *child) enter() syscall.Errno {
	// Without its parent nobody would know of the program.
	c.prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0)
	c.step = stepSession
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return errno
	}
	c.step = stepStreams
	for fd := uintptr(0); fd < 3; fd++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_DUP3, StdioFD+fd, fd, 0); errno != 0 {
			return errno
		}
	}
	// No handler is to run when signals are unblocked. What is ignored stays so, as
	// for what the runtime starts.
	for sig := uintptr(1); sig <= 64; sig++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&c.action)), 8, 0, 0)
		if c.action[0] != sigIgnore { // SIGKILL and SIGSTOP refuse
			syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&c.none)), 0, 8, 0, 0)
		}
	}
	c.step = stepCgroup
	zero := byte('0')
	for i := 0; i < len(c.tasks); i++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.tasks[i]), uintptr(unsafe.Pointer(&zero)), 1); errno != 0 {
			return errno
		}
	}
	// The container's CPUs are those of its cgroup, not what the shim may be pinned
	// to. The kernel leaves out what is too much, and runc takes a refusal.
	syscall.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(c.all), uintptr(unsafe.Pointer(&c.all)))
	if c.later&unix.CLONE_NEWCGROUP != 0 {
		c.step = stepCgroupNamespace
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, InitFD, unix.CLONE_NEWCGROUP, 0); errno != 0 {
			return errno
		}
	}
	c.step = stepRlimit
	for i := 0; i < len(c.rlimits); i++ {
		limit := &c.rlimits[i]
		if _, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(limit.Resource), uintptr(unsafe.Pointer(&limit.Soft)), 0, 0, 0); errno != 0 {
			return errno
		}
	}
	if c.later&unix.CLONE_NEWUSER != 0 {
		c.step = stepUserNamespace
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, InitFD, unix.CLONE_NEWUSER, 0); errno != 0 {
			return errno
		}
		// Until it is somebody in there it owns nothing.
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
			return errno
		}
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
			return errno
		}
	}
	c.step = stepKeyring
	_, _, errno := syscall.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, uintptr(unsafe.Pointer(c.keyring)), 0)
	if errno != 0 && errno != unix.ENOSYS {
		return errno
	}
	if c.nnp {
		c.step = stepNoNewPrivileges
		if errno := c.prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); errno != 0 {
			return errno
		}
	}
	if c.umask >= 0 {
		syscall.RawSyscall(unix.SYS_UMASK, uintptr(c.umask), 0, 0)
	}
	return c.closeOthers()
}

// closeOthers closes all but the standard streams and the report before any path
// of the container's is followed: one could lead through them (CVE-2024-21626).
//
//go:norace
//go:nosplit
func (c *child) closeOthers() syscall.Errno {
	c.step = stepClose
	if c.report > 3 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, 3, uintptr(c.report-1), 0); errno != 0 {
			return errno
		}
	}
	_, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, uintptr(c.report+1), uintptr(^uint32(0)), 0)
	return errno
}

// drop leaves the program's user with what is his.
//
//go:norace
//go:nosplit
func (c *child) drop() syscall.Errno {
	if errno := c.giveStdio(); errno != 0 {
		return errno
	}
	c.step = stepBounding
	for capability := uintptr(0); capability < 64; capability++ {
		if c.bounding&(1<<capability) != 0 {
			continue
		}
		errno := c.prctl(unix.PR_CAPBSET_DROP, capability, 0)
		if errno == unix.EINVAL {
			break // past the last that the kernel knows
		}
		if errno != 0 {
			return errno
		}
	}
	c.step = stepKeepCaps
	if errno := c.prctl(unix.PR_SET_KEEPCAPS, 1, 0); errno != 0 {
		return errno
	}
	// Without no_new_privs a filter takes CAP_SYS_ADMIN, with it it comes last.
	if !c.nnp {
		if errno := c.install(); errno != 0 {
			return errno
		}
	}
	c.step = stepCwd
	_, _, cwd := syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(c.cwd)), 0, 0)
	if cwd != 0 && cwd != unix.EACCES && cwd != unix.EPERM {
		return cwd
	}
	if errno := c.setUser(); errno != 0 {
		return errno
	}
	if cwd != 0 { // the user may be allowed what root is not
		c.step = stepCwd
		if _, _, errno := syscall.RawSyscall(unix.SYS_CHDIR, uintptr(unsafe.Pointer(c.cwd)), 0, 0); errno != 0 {
			return errno
		}
	}
	c.step = stepWhere
	if _, _, errno := syscall.RawSyscall(unix.SYS_GETCWD, uintptr(unsafe.Pointer(&c.where)), unix.PathMax, 0); errno != 0 {
		return errno
	}
	if c.where[0] != '/' { // "(unreachable)..."
		return unix.ENOENT
	}
	return c.setCapabilities()
}

// giveStdio makes the program's user the owner of its streams, so that it can
// open them again through /dev/stdout.
//
//go:norace
//go:nosplit
func (c *child) giveStdio() syscall.Errno {
	c.step = stepStdio
	for fd := uintptr(0); fd < 3; fd++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_FSTAT, fd, uintptr(unsafe.Pointer(&c.stat)), 0); errno != 0 {
			return errno
		}
		if uintptr(c.stat.Uid) == c.uid || c.stat.Rdev == devNull {
			continue
		}
		_, _, errno := syscall.RawSyscall(unix.SYS_FCHOWN, fd, c.uid, ^uintptr(0))
		if errno != 0 && errno != unix.EPERM && errno != unix.EROFS {
			return errno
		}
	}
	return 0
}

// sigIgnore is SIG_IGN, the first word of the kernel's struct sigaction.
const sigIgnore = 1

// devNull is the number of /dev/null.
const devNull = 1<<8 | 3

//go:norace
//go:nosplit
func (c *child) setUser() syscall.Errno {
	var first uintptr
	if len(c.groups) > 0 {
		first = uintptr(unsafe.Pointer(&c.groups[0]))
	}
	c.step = stepGroups
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), first, 0); errno != 0 {
		return errno
	}
	c.step = stepGID
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGID, c.gid, 0, 0); errno != 0 {
		return errno
	}
	c.step = stepUID
	_, _, errno := syscall.RawSyscall(unix.SYS_SETUID, c.uid, 0, 0)
	return errno
}

//go:norace
//go:nosplit
func (c *child) setCapabilities() syscall.Errno {
	c.step = stepKeepCaps
	if errno := c.prctl(unix.PR_SET_KEEPCAPS, 0, 0); errno != 0 {
		return errno
	}
	c.step = stepCapabilities
	if _, _, errno := syscall.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.capHeader)), uintptr(unsafe.Pointer(&c.caps)), 0); errno != 0 {
		return errno
	}
	// A kernel that has none, or one that may not be raised, is no reason to
	// refuse, as for runc.
	c.prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	for capability := uintptr(0); capability < 64; capability++ {
		if c.ambient&(1<<capability) != 0 {
			c.prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, capability)
		}
	}
	return 0
}

//go:norace
//go:nosplit
func (c *child) execute() syscall.Errno {
	c.prctl(unix.PR_SET_PDEATHSIG, 0, 0)
	c.step = stepSignals
	if _, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&c.none)), 0, 8, 0, 0); errno != 0 {
		return errno
	}
	if c.nnp {
		if errno := c.install(); errno != 0 {
			return errno
		}
	}
	c.step = stepExecute
	_, _, errno := syscall.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(c.path)), uintptr(unsafe.Pointer(&c.argv[0])), uintptr(unsafe.Pointer(&c.env[0])))
	return errno
}

//go:norace
//go:nosplit
func (c *child) install() syscall.Errno {
	if c.filter.Len == 0 {
		return 0
	}
	c.step = stepSeccomp
	_, _, errno := syscall.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, c.filterFlags, uintptr(unsafe.Pointer(&c.filter)))
	return errno
}

//go:norace
//go:nosplit
func (c *child) prctl(option, a, b uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(unix.SYS_PRCTL, option, a, b, 0, 0, 0)
	return errno
}
