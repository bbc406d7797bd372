package objects

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/csi/volume"
)

// polled keeps the objects of one kind for a time and then asks again: the
// strategies Cache, and with no time at all, Get
// (pkg/kubelet/util/manager/cache_based_manager.go).
type polled[T object] struct {
	kind kind[T]
	ttl  func() time.Duration

	mu    sync.Mutex
	items map[key]*copied[T]
}

// copied is one object as it was last seen.
type copied[T object] struct {
	users map[types.UID]bool // guarded by polled.mu
	renew bool               // ask before the next use; guarded by polled.mu

	asking sync.Mutex // one question at a time; guards the rest
	state  T
	err    error // of volume.ErrNotFound; nil with a state
	known  bool
	at     time.Time
}

func newPolled[T object](k kind[T], ttl func() time.Duration) *polled[T] {
	return &polled[T]{kind: k, ttl: ttl, items: map[key]*copied[T]{}}
}

func (p *polled[T]) run(ctx context.Context) { <-ctx.Done() }

func (p *polled[T]) closeIdle(time.Time) {}

// refer makes the next question go to the API server: a new pod must not start
// with what was there before it.
func (p *polled[T]) refer(at key, pod types.UID, _ bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := p.items[at]
	if last == nil {
		last = &copied[T]{users: map[types.UID]bool{}}
		p.items[at] = last
	}
	last.users[pod], last.renew = true, true
}

func (p *polled[T]) release(at key, pod types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.items[at]; c != nil {
		if delete(c.users, pod); len(c.users) == 0 {
			delete(p.items, at)
		}
	}
}

func (p *polled[T]) get(ctx context.Context, at key) (T, error) {
	p.mu.Lock()
	c := p.items[at]
	renew := c != nil && c.renew
	if renew {
		c.renew = false
	}
	p.mu.Unlock()
	if c == nil {
		var none T
		return none, fmt.Errorf("object %q/%q %w", at.namespace, at.name, volume.ErrNotRegistered)
	}
	c.asking.Lock()
	defer c.asking.Unlock()
	if c.known && !renew && time.Since(c.at) < p.ttl() {
		return c.state, c.err
	}
	var options metav1.GetOptions
	if c.known && c.err == nil && !renew {
		options.ResourceVersion = "0" // from the API server's cache: this is only a refresh
	}
	got, err := p.kind.get(ctx, at, options)
	if err == nil {
		c.state, c.err, c.known, c.at = got, nil, true, time.Now()
		return got, nil
	}
	var none T
	err = asError(p.kind.name, at.name, err)
	switch {
	case errors.Is(err, volume.ErrNotFound):
		c.state, c.err, c.known, c.at = none, err, true, time.Now()
	case c.known:
		return c.state, c.err // what was last seen
	}
	return none, err
}
