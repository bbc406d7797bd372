package crilog

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// retryOpen is how often a log that cannot be opened is tried again.
const retryOpen = time.Second

// File is the log of one container. Its writers never wait for a log that
// cannot be written: what it refuses is dropped in whole entries and counted.
type File struct {
	path string

	mu      sync.Mutex
	fd      int // -1: not open
	retryAt time.Time
	closed  bool

	dropped atomic.Int64 // not under mu, which a write to a hung disk holds
}

// Open returns the log at path, created with mode 0640. A path that cannot be
// opened is an error to report, not to stop for: the File is usable, and
// tries again once a second when there is something to write.
func Open(path string) (*File, error) {
	l := &File{path: path, fd: -1}
	return l, l.open()
}

// open is called with mu held, or before anybody else knows l. Non-blocking,
// so that neither a FIFO nor a device makes the container wait.
func (l *File) open() error {
	fd, err := unix.Open(l.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o640)
	if err != nil {
		l.retryAt = time.Now().Add(retryOpen)
		return fmt.Errorf("open log %s: %w", l.path, err)
	}
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
	}
	l.fd = fd
	return nil
}

// Reopen goes on in a new file at the same path, after the old one was
// renamed. On error the old file stays in use, so that nothing is lost.
func (l *File) Reopen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	return l.open()
}

// Write appends whole entries.
func (l *File) Write(entries []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd < 0 && (l.closed || time.Now().Before(l.retryAt) || l.open() != nil) {
		l.drop(entries)
		return
	}
	for len(entries) > 0 {
		n, err := unix.Write(l.fd, entries)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			l.refused(entries, err)
			return
		}
		if whole := bytes.LastIndexByte(entries[:n], '\n') + 1; whole < n && l.takeBack(n-whole) == nil {
			// A torn entry: the disk is full. Without it the log is still
			// whole, and the next entries find out whether there is room.
			l.drop(entries[whole:])
			return
		}
		entries = entries[n:]
	}
}

// takeBack shortens the file by its last n bytes. This process is its only writer.
func (l *File) takeBack(n int) error {
	var st unix.Stat_t
	if err := unix.Fstat(l.fd, &st); err != nil {
		return err
	}
	return unix.Ftruncate(l.fd, st.Size-int64(n))
}

// refused drops entries. A file that is broken is opened anew later; one that
// is merely full is tried again with the next entries.
func (l *File) refused(entries []byte, err error) {
	l.drop(entries)
	if err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EAGAIN {
		return
	}
	_ = unix.Close(l.fd)
	l.fd = -1
	l.retryAt = time.Now().Add(retryOpen)
}

func (l *File) drop(entries []byte) {
	l.dropped.Add(int64(bytes.Count(entries, []byte{'\n'})))
}

// Dropped is how many entries were lost.
func (l *File) Dropped() int64 { return l.dropped.Load() }

// Close closes the file; what is written later is dropped.
func (l *File) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.fd >= 0 {
		_ = unix.Close(l.fd)
		l.fd = -1
	}
}
