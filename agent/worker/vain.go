package worker

import (
	"fmt"
	"time"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
)

// vain remembers what was done last. A runtime that says done and shows no
// change would otherwise be asked for the same again, as fast as it answers.
type vain struct {
	actions string
	before  observed.Pod
	times   int // in a row
	at      time.Time
}

// inVain tells until when actions are to be put off because they have just been
// done and changed nothing; zero: they are not.
func (w *Worker) inVain(actions []plan.Action, obs *observed.Pod) (until time.Time) {
	v := &w.state.vain
	if v.times == 0 || v.actions != fmt.Sprint(actions) || !v.before.Same(*obs) {
		return time.Time{}
	}
	until = v.at.Add(min(time.Second<<min(v.times-1, 6), time.Minute))
	if !until.After(time.Now()) {
		return time.Time{}
	}
	return until
}

// did remembers that actions were done, as far as the one who did them knows.
func (w *Worker) did(actions []plan.Action, before *observed.Pod) {
	v := &w.state.vain
	what := fmt.Sprint(actions)
	if v.actions == what && v.before.Same(*before) {
		v.times++
		w.log().Warn("the runtime has done what it was asked for, and nothing has changed", "asked", what, "times", v.times)
	} else {
		v.times = 1
	}
	v.actions, v.before, v.at = what, *before, time.Now()
}
