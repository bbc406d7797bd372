package evict

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/usage"
)

// Policy is what decides; it does not change while the agent runs.
type Policy struct {
	// Thresholds as of Settings, with those of containerfs put in place.
	thresholds []Threshold
	layout     usage.Layout
	// transition is how long a condition stays after it was last seen.
	transition time.Duration
	// maxGrace, in seconds, is what a soft threshold leaves a pod at most.
	maxGrace int64
	spared   func(pod *v1.Pod) bool
}

func newPolicy(thresholds []Threshold, layout usage.Layout, transition time.Duration, maxGrace int64) Policy {
	return Policy{
		thresholds: forLayout(thresholds, layout), layout: layout, transition: transition, maxGrace: maxGrace,
		spared: disruption.Critical,
	}
}

// State is what one round of decisions leaves for the next. The zero State is
// that of a node that was never observed.
type State struct {
	// since when thresholds are met, by their index in the policy.
	since map[int]time.Time
	// seen is when each condition was last observed.
	seen map[v1.NodeConditionType]time.Time
	// due are the thresholds that pods must end for.
	due []int
}

// Conditions are the node's conditions that are true, sorted.
func (p Policy) Conditions(s State, now time.Time) []v1.NodeConditionType {
	var conditions []v1.NodeConditionType
	for c, at := range s.seen {
		if now.Sub(at) < p.transition || at.Equal(now) {
			conditions = append(conditions, c)
		}
	}
	return sorted(conditions)
}

// Next takes new observations into the state.
func (p Policy) Next(s State, o Observations, now time.Time) State {
	next := State{since: map[int]time.Time{}, seen: map[v1.NodeConditionType]time.Time{}}
	for c, at := range s.seen {
		next.seen[c] = at
	}
	for i, t := range p.thresholds {
		// One that pods had to end for is resolved only when the minimum is
		// reclaimed.
		if !met(t, o, false) && !(slices.Contains(s.due, i) && met(t, o, true)) {
			continue
		}
		since, found := s.since[i]
		if !found {
			since = now
		}
		next.since[i] = since
		next.seen[meanings[t.Signal].condition] = now
		if now.Sub(since) >= t.Grace {
			next.due = append(next.due, i)
		}
	}
	return next
}

// met tells whether less is available than the threshold says, or than it says
// and the minimum to reclaim together.
func met(t Threshold, o Observations, withMinimum bool) bool {
	seen, found := o[t.Signal]
	if !found {
		return false
	}
	least := t.Value.of(seen.Capacity)
	if withMinimum {
		least += t.MinReclaim.of(seen.Capacity)
	}
	return seen.Available < least
}

// Due are the thresholds that something must be done for, the most urgent
// first: memory, then as configured, which is hard before soft.
func (p Policy) Due(s State) []Threshold {
	var due []Threshold
	for _, i := range s.due {
		due = append(due, p.thresholds[i])
	}
	slices.SortStableFunc(due, func(a, b Threshold) int {
		if a.Signal.memory() != b.Signal.memory() {
			return cmp.Compare(index(b.Signal.memory()), index(a.Signal.memory()))
		}
		return cmp.Compare(index(!a.hard()), index(!b.hard()))
	})
	return due
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Relieved tells whether, after something was reclaimed, no threshold of
// whatever grace is met any more, with the minimum to reclaim.
func (p Policy) Relieved(o Observations) bool {
	return !slices.ContainsFunc(p.thresholds, func(t Threshold) bool { return met(t, o, true) })
}
