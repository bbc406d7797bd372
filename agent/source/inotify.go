package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// fileEvents are those after which a file is whole: its writer closed it,
	// or it was renamed into place. This is why there is no fsnotify here: it
	// reports every write and hides the close, so that its users read files
	// half-written or wait for a silence.
	fileEvents = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE
	dirEvents  = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
	// parentEvents show that another directory takes the place of the watched one.
	parentEvents = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_ONLYDIR

	eventBuffer = 16 << 10
)

// event is one inotify event.
type event struct {
	wd   int32
	mask uint32
	name string
}

func (e event) gone() bool { return e.mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0 }

// watcher delivers the events of a directory. The descriptor is non-blocking
// and known to Go's poller, so that waiting for events holds no thread.
type watcher struct {
	dir      string
	file     *os.File
	wd       int // of dir; -1 when it is not watched
	parentWD int
	batches  chan []event
}

func newWatcher(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch %s: make inotify instance (sysctl fs.inotify.max_user_instances limits them): %w", dir, err)
	}
	return &watcher{dir: dir, file: os.NewFile(uintptr(fd), "inotify"), wd: -1, parentWD: -1, batches: make(chan []event)}, nil
}

// control runs a call on the inotify descriptor without taking it out of the poller.
func (w *watcher) control(call func(fd int) (int, error)) (int, error) {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return -1, err
	}
	result := -1
	var callErr error
	if err := raw.Control(func(fd uintptr) { result, callErr = call(int(fd)) }); err != nil {
		return -1, err
	}
	return result, callErr
}

// watch makes sure that the directory of that name is watched, whichever it
// is by now. Asking again for the one already watched changes nothing.
func (w *watcher) watch() error {
	parent := filepath.Dir(w.dir)
	parentWD, err := w.control(func(fd int) (int, error) { return unix.InotifyAddWatch(fd, parent, parentEvents) })
	if err == nil { // else the slow rescan has to notice
		w.parentWD = parentWD
	}
	wd, err := w.control(func(fd int) (int, error) { return unix.InotifyAddWatch(fd, w.dir, fileEvents|dirEvents) })
	if err != nil {
		wd = -1
	}
	if w.wd >= 0 && w.wd != wd { // it is on a directory that was moved away or is gone
		_, _ = w.control(func(fd int) (int, error) { return unix.InotifyRmWatch(fd, uint32(w.wd)) })
	}
	w.wd = wd
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	return nil
}

// isFile says whether an event is about a file in the directory.
func (w *watcher) isFile(e event) bool {
	return int(e.wd) == w.wd && e.name != "" && e.mask&unix.IN_ISDIR == 0
}

// needsRescan: events were lost, or the directory is not the one it was.
func (w *watcher) needsRescan(e event) bool {
	switch {
	case e.mask&unix.IN_Q_OVERFLOW != 0:
		return true
	case int(e.wd) == w.wd:
		return e.mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT|unix.IN_IGNORED) != 0
	case int(e.wd) == w.parentWD:
		return e.name == filepath.Base(w.dir)
	}
	return false
}

// run delivers events until ctx is done.
func (w *watcher) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { w.file.Close() })
	defer stop()
	buf := make([]byte, eventBuffer)
	for {
		n, err := w.file.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read inotify events of %s: %w", w.dir, err)
		}
		select {
		case w.batches <- parseEvents(buf[:n]):
		case <-ctx.Done():
		}
	}
}

// parseEvents splits what a read of an inotify descriptor returned (inotify(7)).
func parseEvents(buf []byte) []event {
	var events []event
	for len(buf) >= unix.SizeofInotifyEvent {
		raw := (*unix.InotifyEvent)(unsafe.Pointer(&buf[0]))
		end := unix.SizeofInotifyEvent + int(raw.Len)
		if end > len(buf) {
			break
		}
		name, _, _ := bytes.Cut(buf[unix.SizeofInotifyEvent:end], []byte{0})
		events = append(events, event{wd: raw.Wd, mask: raw.Mask, name: string(name)})
		buf = buf[end:]
	}
	return events
}
