// Package idle decides how much memory the daemon keeps for itself: more while
// it is busy, and none that it does not use once it has become quiet.
//
// Go's runtime collects garbage whenever the heap has grown by a part of itself.
// A small part keeps the heap small, which is what pods can have; but while a
// hundred pods start, a sixth of the daemon's CPU time would go into that. And
// what a burst needed the runtime keeps: it collects after two minutes, and even
// then gives back slowly and not all. On a node that is quiet after a burst that
// is a third of the daemon's memory. The daemon calls Run.
package idle

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// interval between two looks. One costs microseconds.
	interval = 10 * time.Second
	// quiet is what a daemon allocates at most in an interval in which nothing
	// happens, probes aside.
	quiet = 4 << 20
	// worthwhile is how much must have been allocated since the last time: giving
	// back costs a garbage collection.
	worthwhile = 16 << 20

	// calmPercent is by how much the heap of a daemon that is not busy may grow
	// before it is collected: its garbage is short-lived, and its memory is what
	// pods cannot have.
	calmPercent = 30
	// busyPercent is the same for one that is. The heap of a burst of 100 pods has
	// 35 MB instead of 23 then, for seconds.
	busyPercent = 100
	// soon is when a collection follows another because the daemon is busy.
	soon = time.Second
)

// Run sets when garbage is collected and gives memory back whenever that is due,
// until ctx ends, and returns its error.
func Run(ctx context.Context) error {
	debug.SetGCPercent(calmPercent)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	collected := collections(ctx)
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var w watch
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-collected:
			if w.collected(time.Now()) {
				debug.SetGCPercent(busyPercent)
			}
			continue
		case <-tick.C:
		}
		metrics.Read(sample)
		due, calm := w.look(sample[0].Value.Uint64())
		if calm {
			debug.SetGCPercent(calmPercent)
		}
		if due {
			debug.FreeOSMemory()
		}
	}
}

// collections tells of garbage collections until ctx ends: a marker that nobody
// refers to is cleaned up by each.
func collections(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	var place func()
	place = func() {
		type marker struct{ _ *byte } // objects without pointers may be kept by others
		runtime.AddCleanup(new(marker), func(struct{}) {
			if ctx.Err() != nil {
				return
			}
			select {
			case c <- struct{}{}:
			default:
			}
			place()
		}, struct{}{})
	}
	place()
	return c
}

// watch decides.
type watch struct {
	last, given uint64 // bytes that had been allocated
	collection  time.Time
	busy        bool
}

// collected takes when garbage was collected, and tells whether the daemon is
// busy since.
func (w *watch) collected(at time.Time) (begins bool) {
	begins = !w.busy && at.Sub(w.collection) < soon
	w.collection, w.busy = at, w.busy || begins
	return begins
}

// look takes the bytes that were allocated since the daemon started, and tells
// whether memory is to be given back now, and whether the daemon is not busy any
// more.
func (w *watch) look(allocated uint64) (due, calm bool) {
	active := allocated-w.last > quiet
	w.last = allocated
	if active {
		return false, false
	}
	calm, w.busy = w.busy, false
	if allocated-w.given < worthwhile {
		return false, calm
	}
	w.given = allocated
	return true, calm
}
