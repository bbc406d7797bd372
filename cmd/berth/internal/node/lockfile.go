package node

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lock waits until nobody else holds the file's lock (--lock-file), and takes it
// until release is called. With onContention (--exit-on-lock-contention) the
// returned context ends when another opens the file or removes it: the node then
// makes room, as the kubelet does (pkg/util/flock, cmd/kubelet/app,
// watchForLockfileContention).
func lock(ctx context.Context, path string, onContention bool) (until context.Context, release func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open the lock file: %w", err)
	}
	locked := make(chan error, 1)
	go func() {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		}
		locked <- err
	}()
	select {
	case err = <-locked:
	case <-ctx.Done():
		go func() { // nothing ends the wait but the lock
			<-locked
			f.Close()
		}()
		return nil, nil, ctx.Err()
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("lock %s: %w", path, err)
	}
	until, cancel := context.WithCancel(ctx)
	if !onContention {
		return until, func() { cancel(); f.Close() }, nil
	}
	watch, err := contention(path)
	if err != nil {
		cancel()
		f.Close()
		return nil, nil, err
	}
	go func() {
		_, _ = watch.Read(make([]byte, 4096)) // an event, or the end of the watch
		cancel()
	}()
	return until, func() { cancel(); watch.Close(); f.Close() }, nil
}

// contention can be read from once another opens the file, or removes it.
func contention(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch the lock file %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN|unix.IN_DELETE_SELF); err != nil {
		f.Close()
		return nil, fmt.Errorf("watch the lock file %s: %w", path, err)
	}
	return f, nil
}
