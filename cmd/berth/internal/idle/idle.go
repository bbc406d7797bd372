// Package idle gives memory back to the host once the daemon has become quiet.
//
// Go's runtime keeps what a burst of pods needed: it collects when the heap has
// grown by half again, or after two minutes, and even then gives back slowly and
// not all. On a node that is quiet after a burst that is a third of the daemon's
// memory, which pods could have. The daemon calls Run.
package idle

import (
	"context"
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
)

// Run gives memory back whenever that is due, until ctx ends, and returns its
// error.
func Run(ctx context.Context) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	var w watch
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		metrics.Read(sample)
		if w.due(sample[0].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}

// watch decides when memory is given back.
type watch struct{ last, given uint64 }

// due takes the bytes that were allocated since the daemon started, and tells
// whether memory is to be given back now.
func (w *watch) due(allocated uint64) bool {
	busy := allocated-w.last > quiet
	w.last = allocated
	if busy || allocated-w.given < worthwhile {
		return false
	}
	w.given = allocated
	return true
}
