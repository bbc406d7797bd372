package stats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// layerAge is how old a measurement may be that is given again. The
	// kubelet asks every ten seconds, for evictions.
	layerAge = 8 * time.Second
	// layerPause makes a large layer be measured for at most a fiftieth of the
	// time: a measurement that took long is given for so many times as long.
	layerPause = 50
	// inlineEntries is how much of a layer a caller waits for. The rest is
	// measured in the background, from the start.
	inlineEntries = 2000
	// layerTimeout ends a measurement in the background.
	layerTimeout = 10 * time.Minute
	// maxDepth bounds the descriptors that are open at once. What lies deeper is
	// not counted.
	maxDepth = 500
)

// LayerUsage is what a writable layer takes on disk.
type LayerUsage struct {
	At            time.Time
	Bytes, Inodes uint64
}

// Layers measures writable layers. One large layer is measured at a time. Make
// it with NewLayers; what it does in the background ends with the context.
type Layers struct {
	ctx  context.Context
	slot chan struct{} // held by the measurement in the background
	wait *sync.WaitGroup
}

// NewLayers returns the measurements of one daemon. What they do in the
// background is counted in wait.
func NewLayers(ctx context.Context, wait *sync.WaitGroup) *Layers {
	return &Layers{ctx: ctx, slot: make(chan struct{}, 1), wait: wait}
}

// Layer remembers the last measurement of one layer. The zero value is one
// that was never measured.
type Layer struct {
	mu      sync.Mutex
	last    LayerUsage // of the last measurement that succeeded
	err     error      // of the last one
	asked   time.Time  // when it began
	took    time.Duration
	running bool
}

// Usage returns what a directory takes, as of at most some seconds ago; of a
// large one it may be older, and it is not known while the first measurement
// is under way. With an error it is the last that succeeded.
func (l *Layers) Usage(layer *Layer, dir string) (u LayerUsage, known bool, err error) {
	layer.mu.Lock()
	defer layer.mu.Unlock()
	if !layer.running && time.Since(layer.asked) >= max(layerAge, layerPause*layer.took) {
		began := time.Now()
		u, err := measure(l.ctx, dir, inlineEntries)
		if errors.Is(err, errLarge) {
			layer.running = true
			l.wait.Add(1)
			go l.measure(layer, dir)
		} else {
			layer.set(u, err, began)
		}
	}
	return layer.last, !layer.last.At.IsZero(), layer.err
}

// measure measures a large layer.
func (l *Layers) measure(layer *Layer, dir string) {
	defer l.wait.Done()
	done := func(u LayerUsage, err error, began time.Time) {
		layer.mu.Lock()
		defer layer.mu.Unlock()
		layer.running = false
		layer.set(u, err, began)
	}
	select {
	case l.slot <- struct{}{}:
	case <-l.ctx.Done():
		done(LayerUsage{}, l.ctx.Err(), time.Now())
		return
	}
	defer func() { <-l.slot }()
	ctx, cancel := context.WithTimeout(l.ctx, layerTimeout)
	defer cancel()
	began := time.Now()
	u, err := measure(ctx, dir, math.MaxInt)
	done(u, err, began)
}

// set takes a result; the caller holds the lock.
func (l *Layer) set(u LayerUsage, err error, began time.Time) {
	l.asked, l.took, l.err = began, time.Since(began), err
	if err == nil {
		l.last = u
	}
}

// errLarge means that there are more entries than asked for.
var errLarge = errors.New("more entries")

// measure adds up what is below dir. A container changes it meanwhile: what
// disappears is not counted, symbolic links are not followed, and a directory
// that becomes one is skipped.
func measure(ctx context.Context, dir string, entries int) (LayerUsage, error) {
	w := walk{ctx: ctx, left: entries}
	at := time.Now()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return LayerUsage{}, ErrGone
	}
	if err == nil {
		err = w.dir(fd, 0)
	}
	if err != nil {
		return LayerUsage{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	return LayerUsage{At: at, Bytes: uint64(math.Round(w.bytes)), Inodes: uint64(math.Round(w.inodes))}, nil
}

// walk sums up. Each name of a file counts for its share, so that files with
// several need no list of those that were seen.
type walk struct {
	ctx           context.Context
	left          int
	bytes, inodes float64
}

func (w *walk) dir(fd, depth int) error {
	d := os.NewFile(uintptr(fd), "")
	defer d.Close()
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if err := w.entry(fd, name, depth); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (w *walk) entry(parent int, name string, depth int) error {
	if w.left--; w.left < 0 {
		return errLarge
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	const blockSize = 512 // of st_blocks, whatever the file system's
	names := float64(1)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		names = float64(max(st.Nlink, 1))
	}
	w.bytes += float64(st.Blocks*blockSize) / names
	w.inodes += 1 / names
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || depth == maxDepth {
		return nil
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil
	case err != nil:
		return fmt.Errorf("open %s: %w", name, err)
	}
	return w.dir(fd, depth+1)
}
