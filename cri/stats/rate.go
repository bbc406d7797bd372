package stats

import (
	"sync"
	"time"
)

// rateWindow is the shortest time that CPU use is averaged over: two readers
// that ask at nearly the same moment are given the same number.
const rateWindow = time.Second

// Rate turns readings of a growing CPU time into the use of CPU between them.
// The window is the time between two readings, at least one second; the
// kubelet reads every ten. The zero value is ready to use, also concurrently.
type Rate struct {
	mu    sync.Mutex
	at    time.Time
	total time.Duration
	nano  uint64
	known bool
}

// Update takes a reading and returns the cores in use, in billionths. There is
// none before the second reading.
func (r *Rate) Update(at time.Time, total time.Duration) (nanoCores uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	window := at.Sub(r.at)
	switch {
	case r.at.IsZero() || total < r.total:
		// The first reading of this cgroup.
		r.known = false
	case window < rateWindow:
		return r.nano, r.known
	default:
		r.nano, r.known = uint64(float64(total-r.total)/window.Seconds()), true
	}
	r.at, r.total = at, total
	return r.nano, r.known
}
