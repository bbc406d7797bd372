package idle

import "testing"

func TestMemoryIsGivenBackOnceAfterEachBurst(t *testing.T) {
	const mb = 1 << 20
	var w watch
	for i, step := range []struct {
		allocated uint64
		due       bool
	}{
		{100 * mb, false}, // it starts
		{200 * mb, false},
		{201 * mb, true}, // quiet again
		{202 * mb, false},
		{203 * mb, false},
		{300 * mb, false}, // a burst
		{303 * mb, true},
		{306 * mb, false}, // the probes of many pods
		{309 * mb, false},
		{312 * mb, false},
		{315 * mb, false},
		{318 * mb, false},
		{320 * mb, true},
		{330 * mb, false}, // busy, but not for long
		{331 * mb, false},
	} {
		if got := w.due(step.allocated); got != step.due {
			t.Errorf("step %d, at %d MB: due is %v", i, step.allocated/mb, got)
		}
	}
}
