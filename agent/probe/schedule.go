package probe

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// schedule says when a probe is attempted.
//
// The attempts that count are a period apart, so that a failure threshold of N
// means N periods of failure, as it does in the kubelet. With an initial delay
// the first of them is at its end; without one it is a period after the start,
// which is when a kubelet, whose clock ticks independently of the container's
// start, has looked at the latest.
//
// Startup and readiness probes are what a pod's users wait for, so until their
// first success they are attempted in between as well: at once, and then after
// gaps that double until they reach the period. Such an early attempt can only
// make a success seen sooner. Its failure counts for nothing and makes no event.
type schedule struct {
	period time.Duration
	due    time.Time     // of the next attempt that counts
	early  time.Time     // of the next attempt that does not; zero: none
	gap    time.Duration // from an early attempt to the next
}

// The first gap. A command in a container costs some ten milliseconds of CPU,
// a connection next to nothing.
const (
	firstGap     = 10 * time.Millisecond
	firstExecGap = 100 * time.Millisecond
)

// newSchedule begins a schedule at from, which is when the container has
// started or the startup probe has succeeded.
func newSchedule(kind Kind, spec *v1.Probe, startedAt, from time.Time) schedule {
	s := schedule{period: period(spec)}
	if delayed := startedAt.Add(seconds(spec.InitialDelaySeconds)); spec.InitialDelaySeconds > 0 && delayed.After(from) {
		s.due = delayed
	} else {
		s.due = from.Add(s.period)
		if kind != Liveness {
			s.early = from
		}
	}
	if kind != Liveness {
		s.gap = firstGap
		if spec.Exec != nil {
			s.gap = firstExecGap
		}
	}
	return s
}

// resumedSchedule goes on with a probe whose container was there before the
// agent: after a part of the period between 0 and 1, so that a restart does
// not probe everything at once.
func resumedSchedule(spec *v1.Probe, now time.Time, part float64) schedule {
	p := period(spec)
	return schedule{period: p, due: now.Add(time.Duration(part * float64(p)))}
}

// next is when to attempt next, and whether that attempt counts.
func (s *schedule) next() (at time.Time, counts bool) {
	if !s.early.IsZero() && s.early.Before(s.due) {
		return s.early, false
	}
	return s.due, true
}

// attempted moves on from an attempt that began and ended at the given times.
func (s *schedule) attempted(began, ended time.Time, counts, success bool) {
	if counts || success {
		s.due = began.Add(s.period)
	}
	s.early = time.Time{}
	if success {
		s.gap = 0
	}
	if s.gap > 0 {
		s.early = ended.Add(s.gap)
		if s.gap *= 2; s.gap >= s.period {
			s.gap = 0
		}
	}
}

// history counts equal outcomes in a row.
type history struct {
	success bool
	run     int32
}

// add records an outcome and tells whether it has now been seen often enough
// in a row to be believed.
func (h *history) add(success bool, spec *v1.Probe) bool {
	if h.success != success {
		*h = history{success: success}
	}
	threshold := spec.SuccessThreshold
	if !success {
		threshold = spec.FailureThreshold
		if threshold <= 0 {
			threshold = 3 // the API's default
		}
	}
	if h.run < threshold {
		h.run++
	}
	return h.run >= threshold
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// period and timeout of a probe; the API's defaults where a spec was never defaulted.
func period(spec *v1.Probe) time.Duration {
	if spec.PeriodSeconds <= 0 {
		return 10 * time.Second
	}
	return seconds(spec.PeriodSeconds)
}

func timeout(spec *v1.Probe) time.Duration {
	if spec.TimeoutSeconds <= 0 {
		return time.Second
	}
	return seconds(spec.TimeoutSeconds)
}
