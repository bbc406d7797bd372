// Package events hands the runtime's container events to whoever watches them.
package events

import (
	"context"
	"errors"
	"sync"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrSlow ends a reader that fell too far behind. Its picture has a hole now:
// it must list everything again before it watches on.
var ErrSlow = errors.New("the reader is too slow and events were lost: list again, then watch again")

// Broadcaster sends every event to every reader. The zero value is not usable;
// call New.
type Broadcaster struct {
	backlog int

	mu      sync.Mutex
	readers map[*Reader]struct{}
}

// New returns a broadcaster that keeps at most backlog events for a reader.
func New(backlog int) *Broadcaster {
	return &Broadcaster{backlog: backlog, readers: map[*Reader]struct{}{}}
}

// Reader receives the events from its subscription on.
type Reader struct {
	from   *Broadcaster
	events chan *runtimeapi.ContainerEventResponse // closed when the reader is too slow
}

// Subscribe starts a reader; the caller must Close it.
func (b *Broadcaster) Subscribe() *Reader {
	r := &Reader{from: b, events: make(chan *runtimeapi.ContainerEventResponse, b.backlog)}
	b.mu.Lock()
	b.readers[r] = struct{}{}
	b.mu.Unlock()
	return r
}

// Watched tells whether anybody would receive an event, so that one that
// nobody waits for need not be put together.
func (b *Broadcaster) Watched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.readers) > 0
}

// Publish never blocks: a reader whose backlog is full is dropped, and learns
// so with ErrSlow after what it had been sent. The readers share the event and
// must not change it.
func (b *Broadcaster) Publish(e *runtimeapi.ContainerEventResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.readers {
		select {
		case r.events <- e:
		default:
			delete(b.readers, r)
			close(r.events)
		}
	}
}

// Next waits for an event.
func (r *Reader) Next(ctx context.Context) (*runtimeapi.ContainerEventResponse, error) {
	select {
	case e, ok := <-r.events:
		if !ok {
			return nil, ErrSlow
		}
		return e, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the subscription.
func (r *Reader) Close() {
	r.from.mu.Lock()
	defer r.from.mu.Unlock()
	delete(r.from.readers, r)
}
