package podlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// checkRunning is how often a quiet log's container is looked at while
// somebody follows. Its last lines do not wait for that: the kernel tells of
// every write.
const checkRunning = time.Second

// watcher wakes a follower when something happens in the log's directory.
type watcher struct{ file *os.File }

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the log: make an inotify instance (see fs.inotify.max_user_instances): %w", err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF); err != nil {
		file.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return &watcher{file}, nil
}

func (w *watcher) Close() error { return w.file.Close() }

// wait returns when something has happened, or it is time to see whether the
// container still runs. What happened is for the files to say.
func (w *watcher) wait(ctx context.Context) error {
	if err := w.file.SetReadDeadline(time.Now().Add(checkRunning)); err != nil {
		return fmt.Errorf("wait for the log: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var events [4096]byte
	_, err := w.file.Read(events[:])
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("wait for the log: %w", err)
	}
	return nil
}
