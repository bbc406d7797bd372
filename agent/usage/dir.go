package usage

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/berth-io/berth/agent/dirsize"
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
	size, err := dirsize.Of(ctx, path)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, fs.ErrNotExist) {
		return Disk{}, err
	}
	s.disk, s.at, s.took = Disk(size), began, d.now().Sub(began)
	return s.disk, nil
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

// file is what one file takes; nothing if there is none.
func file(ctx context.Context, path string) (Disk, error) {
	size, err := dirsize.Of(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return Disk{}, nil
	}
	return Disk(size), err
}
