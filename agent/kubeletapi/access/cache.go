package access

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// maxAnswers bounds what is remembered, so that made-up tokens fill no memory.
const maxAnswers = 4096

// cache remembers answers of the API server for a while. The same question
// asked by several at once is asked once.
type cache[T any] struct {
	now    func() time.Time
	flight singleflight.Group
	mu     sync.Mutex
	kept   map[string]answer[T]
}

type answer[T any] struct {
	value T
	until time.Time
}

func newCache[T any]() *cache[T] { return &cache[T]{now: time.Now, kept: map[string]answer[T]{}} }

// get returns the answer to a question; ask also says how long it holds.
// A failure is not kept. ask gets a context of its own: others may wait for it.
func (c *cache[T]) get(ctx context.Context, key string, ask func(context.Context) (T, time.Duration, error)) (T, error) {
	c.mu.Lock()
	a, ok := c.kept[key]
	c.mu.Unlock()
	if ok && c.now().Before(a.until) {
		return a.value, nil
	}
	ch := c.flight.DoChan(key, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
		defer cancel()
		value, ttl, err := ask(ctx)
		if err == nil && ttl > 0 {
			c.keep(key, answer[T]{value: value, until: c.now().Add(ttl)})
		}
		return value, err
	})
	var zero T
	select {
	case r := <-ch:
		if r.Err != nil {
			return zero, r.Err
		}
		return r.Val.(T), nil
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

func (c *cache[T]) keep(key string, a answer[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.kept) >= maxAnswers {
		now := c.now()
		for k, old := range c.kept {
			if !now.Before(old.until) {
				delete(c.kept, k)
			}
		}
		for k := range c.kept { // all of them still hold: any has to go
			if len(c.kept) < maxAnswers {
				break
			}
			delete(c.kept, k)
		}
	}
	c.kept[key] = a
}
