package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/agent/dirsize"
)

// diskTimeout bounds what readers wait for a file system: an NFS server that
// is gone holds up one summary for so long, and then only its own volume's number.
const diskTimeout = 10 * time.Second

var errSlow = errors.New("the file system does not answer")

// space is what a file system has.
type space struct {
	at                    time.Time
	capacity, free, avail uint64 // bytes
	inodes, inodesFree    uint64
}

// size is what a directory takes.
type size struct {
	at            time.Time
	bytes, inodes uint64
}

// disk walks directories and asks file systems, each path at most once at a
// time and not again before its answer has become old.
type disk struct {
	maxAge time.Duration
	mu     sync.Mutex
	sizes  map[string]*measure[size]
	spaces map[string]*measure[space]
}

// measure is the last answer about a path, and the one under way.
type measure[T any] struct {
	value T
	err   error
	at    time.Time
	done  chan struct{} // closed when the answer is there; nil: nobody asked yet
}

func newDisk(maxAge time.Duration) *disk {
	return &disk{maxAge: maxAge, sizes: map[string]*measure[size]{}, spaces: map[string]*measure[space]{}}
}

// usage is what a directory tree takes on its own file system.
func (d *disk) usage(ctx context.Context, path string) (size, error) {
	return cached(ctx, d, d.sizes, path, d.maxAge, walk)
}

// fileSystem is the file system that path is on. Asking is cheap: the answer is
// shared for a second only.
func (d *disk) fileSystem(ctx context.Context, path string) (space, error) {
	return cached(ctx, d, d.spaces, path, time.Second, statfs)
}

func cached[T any](ctx context.Context, d *disk, all map[string]*measure[T], path string, maxAge time.Duration, ask func(string) (T, error)) (T, error) {
	d.mu.Lock()
	now := time.Now()
	m := all[path]
	if m == nil || finished(m) && now.Sub(m.at) >= maxAge {
		dropOld(all, now.Add(-10*max(maxAge, time.Minute)))
		next := &measure[T]{at: now, done: make(chan struct{})}
		all[path], m = next, next
		go func() {
			next.value, next.err = ask(path)
			close(next.done)
		}()
	}
	hung := !finished(m) && now.Sub(m.at) >= diskTimeout
	d.mu.Unlock()
	var zero T
	if hung { // it was waited for already
		return zero, fmt.Errorf("%s: %w", path, errSlow)
	}
	timer := time.NewTimer(diskTimeout)
	defer timer.Stop()
	select {
	case <-m.done:
		return m.value, m.err
	case <-timer.C:
		return zero, fmt.Errorf("%s: %w", path, errSlow)
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

func finished[T any](m *measure[T]) bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// dropOld forgets paths that nobody asks about any more.
func dropOld[T any](all map[string]*measure[T], before time.Time) {
	for path, m := range all {
		if m.at.Before(before) && finished(m) {
			delete(all, path)
		}
	}
}

func statfs(path string) (space, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := uint64(s.Bsize)
	return space{
		at: time.Now(), capacity: s.Blocks * unit, free: s.Bfree * unit, avail: s.Bavail * unit,
		inodes: s.Files, inodesFree: s.Ffree,
	}, nil
}

// walk measures a directory. It may take its time: who asked waits for so long
// as it likes.
func walk(path string) (size, error) {
	at := time.Now()
	s, err := dirsize.Of(context.Background(), path)
	return size{at: at, bytes: s.Bytes, inodes: s.Inodes}, err
}
