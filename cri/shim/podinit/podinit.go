// Package podinit is the first process of a pid namespace that the containers
// of a pod share: it reaps what they leave behind and does nothing else. When
// it ends, the kernel ends every process of the namespace.
//
// The pod's containers see it as process 1, and one with CAP_SYS_PTRACE, which
// is what people share a pid namespace for, can read its memory, follow
// /proc/1/root and make it run other code. So it gives away all it could be
// robbed of: it has no capabilities, an empty root and namespaces of its own.
//
// Of a pod with a user namespace it is the first process too, and the pod's
// other namespaces are its own: a namespace belongs to the user namespace of
// the process that made it. It sets them up before it gives its capabilities
// away. Where the pod shares no pid namespace, it is ended as soon as the
// namespaces are pinned.
package podinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/ns"
)

const (
	// Argument makes berth-shim be an init process. It reads an ns.Spec as
	// JSON from its standard input: what to set up in its namespaces, which is
	// nothing where the input is empty.
	Argument = "init"
	// ReadyFD is a pipe on which the process writes Ready, or what went wrong,
	// and which it closes then.
	ReadyFD = 3
	Ready   = "ready"
	// Namespaces are the clone flags that the process is to be started with.
	Namespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
)

// Attributes of the process. With ID mappings it gets a user namespace, and is
// root in it.
func Attributes(uids, gids []syscall.SysProcIDMap) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Cloneflags: Namespaces, Setsid: true}
	if len(uids) > 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings, attr.GidMappings = uids, gids
		attr.GidMappingsEnableSetgroups = true
		// To become root in it before the program is executed, which would
		// cost another user the capabilities.
		attr.Credential = &syscall.Credential{}
	}
	return attr
}

// Run is the process. It returns on SIGTERM.
func Run() error {
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(10)
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	signal.Ignore(unix.SIGINT, unix.SIGHUP)
	if err := prepare(); err != nil {
		return err
	}
	debug.FreeOSMemory()
	for sig := range signals {
		if sig == unix.SIGTERM {
			return nil
		}
		reap()
	}
	return nil
}

// prepare gives everything away and says so to the shim.
func prepare() error {
	ready := os.NewFile(ReadyFD, "ready pipe")
	defer ready.Close()
	err := setUpNamespaces()
	if err == nil {
		err = emptyRoot()
	}
	if err == nil {
		err = dropPrivileges()
	}
	if err != nil {
		_, writeErr := ready.WriteString(err.Error())
		if writeErr != nil {
			return writeErr // the shim has gone
		}
		return err
	}
	_, err = ready.WriteString(Ready)
	return err
}

// setUpNamespaces needs the host's /proc, as namespaces are seen through it.
func setUpNamespaces() error {
	var spec ns.Spec
	err := json.NewDecoder(os.Stdin).Decode(&spec)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what to set up: %w", err)
	}
	return ns.SetUp(spec)
}

// emptyRoot leaves the host's mounts. That they are gone from this mount
// namespace also means that it keeps none of them busy.
func emptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Any directory will do as the mount point; this one is everywhere.
	const dir = "/proc"
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", dir, "tmpfs", flags|unix.MS_RDONLY, "size=4k,nr_inodes=1,mode=0555"); err != nil {
		return fmt.Errorf("mount an empty root: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter the empty root: %w", err)
	}
	// The old root ends up on top of the new one, where it is taken away.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot to the empty root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the empty root: %w", err)
	}
	return nil
}

// dropPrivileges takes all capabilities from all threads.
func dropPrivileges() error {
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", errno)
	}
	for capability := uintptr(0); ; capability++ {
		_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, capability, 0, 0, 0, 0)
		if errno == unix.EINVAL {
			break // past the last one that the kernel knows
		}
		if errno != 0 {
			return fmt.Errorf("drop capability %d: %w", capability, errno)
		}
	}
	if err := setNoCapabilities(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("hide from other processes: %w", err)
	}
	return nil
}

func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
