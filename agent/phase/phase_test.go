package phase

import "testing"

func TestEventsMoveAPodForward(t *testing.T) {
	for _, c := range []struct {
		from Phase
		e    Event
		to   Phase
	}{
		{Starting, Started, Running},
		{Starting, Stop, Terminating},
		{Starting, Completed, Terminating},
		{Running, Stop, Terminating},
		{Running, Completed, Terminating},
		{Terminating, Stopped, Terminated},
		{Terminated, Forgotten, Finished},
	} {
		if got := Next(c.from, c.e); got != c.to {
			t.Errorf("Next(%v, %v) = %v, want %v", c.from, c.e, got, c.to)
		}
	}
}

func TestEventsOutOfPlaceChangeNothing(t *testing.T) {
	for _, c := range []struct {
		from Phase
		e    Event
	}{
		{Running, Started},
		{Running, Stopped},
		{Running, Forgotten},
		{Terminating, Started},
		{Terminating, Stop},
		{Terminating, Completed},
		{Terminating, Forgotten},
		{Terminated, Stop},
		{Finished, Started},
		{Finished, Stop},
	} {
		if got := Next(c.from, c.e); got != c.from {
			t.Errorf("Next(%v, %v) = %v, want no change", c.from, c.e, got)
		}
	}
}

// FuzzPhaseNeverGoesBack feeds random event sequences.
func FuzzPhaseNeverGoesBack(f *testing.F) {
	f.Add([]byte{0, 1, 3, 4})
	f.Add([]byte{4, 3, 2, 1, 0})
	f.Fuzz(func(t *testing.T, events []byte) {
		p := Starting
		for _, b := range events {
			next := Next(p, Event(b%6))
			if next < p || next > p+2 {
				t.Fatalf("Next(%v, %v) = %v", p, Event(b%6), next)
			}
			p = next
		}
	})
}
