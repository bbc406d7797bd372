package act

import (
	"context"
	"slices"
	"sync"
	"time"
)

// stage is how far a pod has come when it waits for its turn.
type stage int

const (
	sandboxStage stage = iota
	createStage
	startStage
	stages
)

// slow is when a call is no longer thought to be busy with the machine's cores
// but to wait for something else.
const slow = 5 * time.Second

// turns bounds how many sandboxes and containers are being made at once. Of
// those who wait, the one that is furthest on is next: of a hundred pods the
// first are Ready when the last have not begun, where all would be Ready at the
// end if each stage were done for all of them before the next.
type turns struct {
	mu      sync.Mutex
	free    int
	atOnce  int
	waiting [stages][]chan struct{} // the oldest first; closed when it is their turn
}

func newTurns(atOnce int) *turns { return &turns{free: atOnce, atOnce: atOnce} }

func (t *turns) busy() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.free < t.atOnce
}

// enter waits for a turn. Who is slow loses it: a few calls that hang must not
// keep all other pods waiting.
func (t *turns) enter(ctx context.Context, s stage) (leave func(), err error) {
	if err := t.wait(ctx, s); err != nil {
		return nil, err
	}
	release := sync.OnceFunc(t.release)
	timer := time.AfterFunc(slow, release)
	return func() { timer.Stop(); release() }, nil
}

func (t *turns) wait(ctx context.Context, s stage) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	t.waiting[s] = append(t.waiting[s], turn)
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	i := slices.Index(t.waiting[s], turn)
	if i >= 0 {
		t.waiting[s] = slices.Delete(t.waiting[s], i, i+1)
	}
	t.mu.Unlock()
	if i < 0 { // it came at the same time, and is another's now
		t.release()
	}
	return ctx.Err()
}

func (t *turns) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s := stages - 1; s >= 0; s-- {
		if len(t.waiting[s]) > 0 {
			close(t.waiting[s][0])
			t.waiting[s] = slices.Delete(t.waiting[s], 0, 1)
			return
		}
	}
	t.free++
}
