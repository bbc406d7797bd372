// Package ns owns the pinned namespaces of sandboxes. A namespace lives as
// long as something refers to it; here that is a bind mount of its nsfs file
// on DIR/KIND, so that a sandbox needs no process to keep its namespaces.
//
// The package keeps no state: what exists is what is mounted.
package ns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// Kind is a kind of namespace, named as in /proc/PID/ns.
type Kind string

// The kinds that a sandbox can have of its own.
const (
	Net Kind = "net"
	IPC Kind = "ipc"
	UTS Kind = "uts"
	PID Kind = "pid"
	// User owns the others of its sandbox, and has to be made by a process
	// that enters it (cri/shim/podinit): a thread cannot.
	User Kind = "user"
)

var cloneFlags = map[Kind]int{Net: unix.CLONE_NEWNET, IPC: unix.CLONE_NEWIPC, UTS: unix.CLONE_NEWUTS}

// Spec says which namespaces to create and what to set up inside them.
type Spec struct {
	Kinds    []Kind            `json:"kinds,omitempty"`    // Net, IPC, UTS; PID and User are pinned from a process
	Hostname string            `json:"hostname,omitempty"` // set when UTS is among the kinds and this is not empty
	Sysctls  map[string]string `json:"sysctls,omitempty"`
}

// Path is where a namespace of a sandbox is pinned.
func Path(dir string, kind Kind) string { return filepath.Join(dir, string(kind)) }

// Create makes the namespaces and pins them below dir, which it creates. The
// loopback interface of a new network namespace is up. When it fails, nothing
// is left behind.
func Create(dir string, spec Spec) error {
	if err := Check(spec); err != nil {
		return err
	}
	if len(spec.Kinds) == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("create the namespace directory: %w", err)
	}
	err := onOwnThread(func() error { return create(dir, spec) })
	if err != nil {
		return errors.Join(err, Remove(dir))
	}
	return nil
}

// create runs on a thread that ends afterwards: it cannot leave its new
// namespaces again.
func create(dir string, spec Spec) error {
	flags := 0
	for _, k := range spec.Kinds {
		flag, ok := cloneFlags[k]
		if !ok {
			return fmt.Errorf("create a %s namespace: only net, ipc and uts can be created", k)
		}
		flags |= flag
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare %v: %w", spec.Kinds, err)
	}
	for _, k := range spec.Kinds {
		if err := pin(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), k), Path(dir, k)); err != nil {
			return err
		}
		failpoint.Hit("cri/ns-pinned-" + string(k))
	}
	return SetUp(spec)
}

// SetUp brings the namespaces that the calling thread is in, which must be new
// ones, to what spec says.
func SetUp(spec Spec) error {
	if slices.Contains(spec.Kinds, Net) {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if slices.Contains(spec.Kinds, UTS) && spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set the hostname to %q: %w", spec.Hostname, err)
		}
	}
	return writeSysctls(spec.Sysctls)
}

// Pin keeps a namespace of a process at dir/kind after the process ends.
func Pin(dir string, kind Kind, pid int) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("create the namespace directory: %w", err)
	}
	if err := pin(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), Path(dir, kind)); err != nil {
		return err
	}
	failpoint.Hit("cri/ns-pinned-" + string(kind))
	return nil
}

func pin(source, target string) error {
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("create the mount point of a namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	return nil
}

// Remove unpins every namespace below dir and removes dir. A namespace whose
// last process has ended is gone then. It is idempotent.
func Remove(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the namespace directory: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unpin(filepath.Join(dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the namespace directory: %w", err)
	}
	return nil
}

func unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not, or no longer, a mount point
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		failpoint.Hit("cri/ns-unpinned")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// Pinned tells whether path is a pinned namespace. The empty file that a crash
// leaves before the mount, or after the unmount, is not.
func Pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Do runs f on a thread inside the network namespace pinned at path. f must
// stay on its goroutine.
func Do(path string, f func() error) error {
	return DoEach([]string{path}, func(int) error { return f() })[0]
}

// DoEach runs f on one thread inside each of the network namespaces pinned at
// paths in turn, and returns each one's error. f must stay on its goroutine.
func DoEach(paths []string, f func(i int) error) []error {
	errs := make([]error, len(paths))
	enter := func(path string) error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the network namespace %s: %w", path, err)
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace %s: %w", path, err)
		}
		return nil
	}
	_ = onOwnThread(func() error {
		for i, path := range paths {
			if errs[i] = enter(path); errs[i] == nil {
				errs[i] = f(i)
			}
		}
		return nil // the errors are in errs
	})
	return errs
}

// onOwnThread runs f on an operating system thread of its own, which the Go
// runtime ends with the goroutine because it is never unlocked. The main
// thread is not ended but parked for ever, and it is what /proc/PID shows of
// the whole process: f must not run there.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		done <- onOwnThread(f) // on another one, while this one is held
		runtime.UnlockOSThread()
	}()
	return <-done
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("open a socket to bring lo up: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
