package usage

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	// fresh is how long a size is given again.
	fresh = 8 * time.Second
	// pause makes a large directory be measured for at most a fiftieth of the
	// time, but longestPause is the end of patience.
	pause        = 50
	longestPause = 5 * time.Minute
	// budget of one measurement. What was not counted by then is left out.
	budget = 5 * time.Second
	// forget sizes that nobody asked for so long.
	forget = time.Hour
	// sectors are what Stat_t.Blocks counts.
	sector = 512
)

// dirs remembers the sizes of directories.
type dirs struct {
	mu    sync.Mutex
	known map[string]*size
	now   func() time.Time
}

type size struct {
	disk        Disk
	at, asked   time.Time
	took        time.Duration
	measurement sync.Mutex // one at a time
}

func newDirs() *dirs { return &dirs{known: map[string]*size{}, now: time.Now} }

// of is what a directory takes, as of some seconds ago, of a large one as of
// some minutes ago. Of one that takes longer to count than there is time for
// it is what could be counted: it takes at least so much. What does not exist
// takes nothing.
func (d *dirs) of(ctx context.Context, path string) (Disk, error) {
	s := d.entry(path)
	s.measurement.Lock()
	defer s.measurement.Unlock()
	began := d.now()
	if !s.at.IsZero() && began.Sub(s.at) < max(fresh, min(pause*s.took, longestPause)) {
		return s.disk, nil
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	disk, err := measure(ctx, path)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return Disk{}, err
	}
	s.disk, s.at, s.took = disk, began, d.now().Sub(began)
	return disk, nil
}

func (d *dirs) entry(path string) *size {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	s := d.known[path]
	if s == nil {
		for p, old := range d.known {
			if now.Sub(old.asked) > forget {
				delete(d.known, p)
			}
		}
		s = &size{}
		d.known[path] = s
	}
	s.asked = now
	return s
}

// measure adds up what is below a directory, on its file system. A file with
// several names counts once. What disappears meanwhile does not count. With an
// error it returns what it has.
func measure(ctx context.Context, path string) (Disk, error) {
	var total Disk
	var device uint64
	seen := map[uint64]bool{} // inodes with several names
	err := filepath.WalkDir(path, func(at string, e fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, isStat := info.Sys().(*syscall.Stat_t)
		if !isStat {
			return nil
		}
		if at == path {
			device = st.Dev
		}
		if st.Dev != device {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !e.IsDir() && st.Nlink > 1 {
			if seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total = total.Plus(Disk{Bytes: uint64(st.Blocks) * sector, Inodes: 1})
		return nil
	})
	return total, err
}

// file is what one file takes; nothing if there is none.
func file(path string) (Disk, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Disk{}, nil
	}
	if err != nil {
		return Disk{}, err
	}
	st, isStat := info.Sys().(*syscall.Stat_t)
	if !isStat {
		return Disk{}, nil
	}
	return Disk{Bytes: uint64(st.Blocks) * sector, Inodes: 1}, nil
}
