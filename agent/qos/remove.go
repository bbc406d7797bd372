package qos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// RemovePod kills every process that is left in the pod's cgroups and removes
// them, below and including the pod's own, whatever class the pod was in. A
// pod without cgroups is no error. It waits for the processes to exit until ctx
// ends; the error then names those that did not.
func (t *Tree) RemovePod(ctx context.Context, podUID string) error {
	if err := checkLevel(podUID); err != nil {
		return fmt.Errorf("pod UID: %w", err)
	}
	for _, parent := range t.podParents() {
		n := parent.child(podPrefix + podUID)
		places := slices.DeleteFunc(t.host.places(n.path(t.config.Driver)), func(dir string) bool {
			_, err := os.Stat(dir)
			return errors.Is(err, os.ErrNotExist)
		})
		if len(places) == 0 {
			continue
		}
		began := time.Now()
		err := t.removeNode(ctx, n, places)
		t.changed("destroy", began)
		if err != nil {
			return fmt.Errorf("remove cgroup %s: %w", n.path(t.config.Driver), err)
		}
	}
	return nil
}

func (t *Tree) removeNode(ctx context.Context, n node, places []string) error {
	if err := killAll(ctx, places); err != nil {
		return err
	}
	failpoint.Hit("qos/killed")
	if t.config.Driver == Systemd {
		// systemd forgets the slice and removes its cgroup; what it does not know
		// of is removed below.
		m, err := t.manager(n, Settings{})
		if err != nil {
			return err
		}
		if err := m.Destroy(); err != nil {
			return fmt.Errorf("stop the slice: %w", err)
		}
	}
	for _, dir := range places {
		if err := removeTree(ctx, dir); err != nil {
			return err
		}
		failpoint.Hit("qos/removed")
	}
	return nil
}

// killAll kills until no process is left in the cgroups. One pass is not
// enough where the kernel cannot kill a whole cgroup, since processes fork.
func killAll(ctx context.Context, places []string) error {
	for {
		victims, err := openProcesses(places)
		if err != nil {
			return err
		}
		if len(victims) == 0 {
			return nil
		}
		err = kill(places, victims)
		if err == nil {
			err = waitExit(ctx, victims)
		}
		for _, v := range victims {
			_ = unix.Close(v.pidfd)
		}
		if err != nil {
			return err
		}
	}
}

type process struct{ pid, pidfd int }

// openProcesses opens what the cgroups hold. A descriptor is kept only if its
// pid is still listed after it was opened: then it is a process of the cgroup,
// not one that was given the same number later.
func openProcesses(places []string) ([]process, error) {
	before, err := listPIDs(places)
	if err != nil || len(before) == 0 {
		return nil, err
	}
	var opened []process
	for pid := range before {
		if pid == os.Getpid() {
			return nil, fmt.Errorf("the daemon itself (pid %d) is in it", pid)
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if errors.Is(err, unix.ESRCH) {
			continue // exited meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("open process %d: %w", pid, err)
		}
		opened = append(opened, process{pid, pidfd})
	}
	after, err := listPIDs(places)
	return slices.DeleteFunc(opened, func(p process) bool {
		gone := err != nil || !after[p.pid]
		if gone {
			_ = unix.Close(p.pidfd)
		}
		return gone
	}), err
}

func listPIDs(places []string) (map[int]bool, error) {
	pids := map[int]bool{}
	for _, place := range places {
		err := eachCgroup(place, func(dir string) error {
			content, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
				return nil // removed meanwhile, or a threaded cgroup: its domain lists the processes
			}
			for _, field := range strings.Fields(string(content)) {
				pid, convErr := strconv.Atoi(field)
				if convErr != nil {
					return fmt.Errorf("read %s: unexpected %q", filepath.Join(dir, "cgroup.procs"), field)
				}
				if pid > 0 { // zero is a process of a pid namespace that is not below ours
					pids[pid] = true
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return pids, nil
}

// kill freezes where there is a v1 freezer, so that nothing forks away, and
// uses cgroup.kill where there is one.
func kill(places []string, victims []process) (err error) {
	for _, place := range places {
		writeErr := write(filepath.Join(place, "cgroup.kill"), "1")
		if writeErr != nil && !errors.Is(writeErr, os.ErrNotExist) && !errors.Is(writeErr, unix.EOPNOTSUPP) {
			return writeErr
		}
		freezer := filepath.Join(place, "freezer.state")
		if freezeErr := write(freezer, "FROZEN"); freezeErr == nil {
			defer func() { err = errors.Join(err, write(freezer, "THAWED")) }()
		} else if !errors.Is(freezeErr, os.ErrNotExist) {
			return freezeErr
		}
	}
	for _, v := range victims {
		if err := unix.PidfdSendSignal(v.pidfd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d: %w", v.pid, err)
		}
	}
	return nil
}

func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}

// waitExit returns when all are dead; a pidfd becomes readable then.
func waitExit(ctx context.Context, victims []process) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	defer unix.Close(wake)
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-woken // the descriptor must outlive the write
		}
	}()
	for i, v := range victims {
		fds := []unix.PollFd{{Fd: int32(v.pidfd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		for fds[0].Revents == 0 {
			if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for process %d to exit: %w", v.pid, err)
			}
			if fds[0].Revents == 0 && fds[1].Revents != 0 {
				var stuck []string
				for _, v := range victims[i:] {
					stuck = append(stuck, strconv.Itoa(v.pid))
				}
				return fmt.Errorf("processes %s were killed but have not exited: %w", strings.Join(stuck, ", "), context.Cause(ctx))
			}
		}
	}
	return nil
}

// removeTree removes cgroups bottom-up. A cgroup is busy for a moment after
// its last process has exited.
func removeTree(ctx context.Context, top string) error {
	var dirs []string
	if err := eachCgroup(top, func(dir string) error { dirs = append(dirs, dir); return nil }); err != nil {
		return err
	}
	for _, dir := range slices.Backward(dirs) {
		for delay := 100 * time.Microsecond; ; delay = min(2*delay, 100*time.Millisecond) {
			err := unix.Rmdir(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove %s: %w", dir, err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("remove %s: %w: %w", dir, err, context.Cause(ctx))
			case <-time.After(delay):
			}
		}
	}
	return nil
}

// eachCgroup visits a cgroup and those below it, parents first. One that is
// gone is skipped. The many control files of a cgroup are not listed where its
// link count says that it has no children.
func eachCgroup(dir string, visit func(dir string) error) error {
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at cgroup %s: %w", dir, err)
	}
	if err := visit(dir); err != nil {
		return err
	}
	if st.Nlink == 2 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("list the cgroups in %s: %w", dir, err)
	}
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		if err := eachCgroup(filepath.Join(dir, entry.Name()), visit); err != nil {
			return err
		}
	}
	return nil
}
