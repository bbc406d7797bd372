package stats

import (
	"sync"
	"time"
)

const (
	// minWindow is the shortest time over which CPU use is averaged: two
	// readers that ask right after each other get the same answer.
	minWindow = time.Second
	// keepSamples is how long a sample is of use, as the kubelet's
	// defaultCachePeriod.
	keepSamples = 10 * time.Minute
)

// rates turn cumulative CPU time into cores in use between two readings.
type rates struct {
	mu      sync.Mutex
	samples map[string]sample
}

type sample struct {
	at    time.Time
	total uint64
	rate  *uint64
}

func newRates() *rates { return &rates{samples: map[string]sample{}} }

// next takes a reading of nanoseconds and returns nanocores, nil with the
// first one.
func (r *rates) next(key string, at time.Time, total uint64) *uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.samples[key]
	elapsed := at.Sub(last.at)
	if !ok || total < last.total || elapsed > keepSamples || elapsed < 0 { // new, made anew, or the clock was set
		r.samples[key] = sample{at: at, total: total}
		return nil
	}
	if elapsed < minWindow {
		return last.rate
	}
	rate := uint64(float64(total-last.total) / elapsed.Seconds())
	r.samples[key] = sample{at: at, total: total, rate: &rate}
	return &rate
}

// forget drops what nobody has read for a while.
func (r *rates) forget(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, s := range r.samples {
		if now.Sub(s.at) > keepSamples {
			delete(r.samples, key)
		}
	}
}
