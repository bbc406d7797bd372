package image

import (
	"context"
	"sync"
)

// keylock serialises work on the same key, such as the fetch of one blob that
// several pulls want.
type keylock struct {
	mu   sync.Mutex
	held map[string]*keyholder
}

type keyholder struct {
	free  chan struct{} // holds one token while nobody has the lock
	users int           // who has the lock or waits for it
}

// lock waits for the key until ctx ends. The caller calls unlock once.
func (l *keylock) lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*keyholder{}
	}
	h, ok := l.held[key]
	if !ok {
		h = &keyholder{free: make(chan struct{}, 1)}
		h.free <- struct{}{}
		l.held[key] = h
	}
	h.users++
	l.mu.Unlock()

	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case <-h.free:
		return func() {
			h.free <- struct{}{}
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
