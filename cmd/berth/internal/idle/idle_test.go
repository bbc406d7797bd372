package idle

import (
	"context"
	"runtime"
	"testing"
	"time"
)

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
		if got, _ := w.look(step.allocated); got != step.due {
			t.Errorf("step %d, at %d MB: due is %v", i, step.allocated/mb, got)
		}
	}
}

func TestADaemonIsBusyFromOneCollectionSoonAfterAnotherUntilItIsQuiet(t *testing.T) {
	const mb = 1 << 20
	var w watch
	start := time.Unix(1_000_000, 0)
	collected := func(after time.Duration, begins bool) {
		t.Helper()
		if got := w.collected(start.Add(after)); got != begins {
			t.Errorf("a collection after %v: busy begins is %v", after, got)
		}
	}
	look := func(allocated uint64, calm bool) {
		t.Helper()
		if _, got := w.look(allocated * mb); got != calm {
			t.Errorf("at %d MB: calm is %v", allocated, got)
		}
	}
	collected(0, false)
	collected(2*time.Second, false)
	look(10, false)
	look(11, false) // it was not busy
	collected(20*time.Second, false)
	collected(20*time.Second+900*time.Millisecond, true)
	collected(21*time.Second, false) // it is
	look(100, false)
	look(101, true)
	look(102, false)
	collected(60*time.Second, false)
	collected(60*time.Second+100*time.Millisecond, true)
}

func TestCollectionsAreToldUntilTheEnd(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	told := collections(ctx)
	for range 3 {
		runtime.GC()
		<-told
	}
	end()
	runtime.GC()
}
