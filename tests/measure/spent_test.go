package measure

import (
	"math"
	"testing"
)

func TestSpentIsWhatProgramsAndTheirChildrenUsed(t *testing.T) {
	read := func(user, idle, softirq string) Spent {
		s := Spent{}
		s.process("12 (a (b) c) S 1 12 12 0 -1 4194560 1 2 3 4 " + user + " 20 30 40 20 0 1 0 100 0 0")
		s.process("13 (a (b) c) S 1 13 13 0 -1 4194560 1 2 3 4 5 5 0 0 20 0 1 0 100 0 0")
		s.process("15 (kworker/0:" + idle + "-mm) S 1 14 14 0 -1 4194560 1 2 3 4 0 " + softirq + " 0 0 20 0 1 0 100 0 0")
		s.process("14 (small) S 1 14 14 0 -1 4194560 1 2 3 4 1 1 1 1 20 0 1 0 100 0 0")
		s.machine("cpu  " + user + " 1 20 " + idle + " 500 6 " + softirq + " 0 0 0\ncpu0 1 2 3")
		return s
	}
	before, after := read("100", "1000", "7"), read("250", "9000", "107")
	if got := after["a (b) c"]; math.Abs(got-3.5) > 1e-9 {
		t.Errorf("the program used %v s", got)
	}
	if got, want := after.Since(before), "all 2.5, a (b) c 1.5, kworker 1.0"; got != want {
		t.Errorf("since then %q, want %q", got, want)
	}
}
