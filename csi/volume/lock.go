package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// step is what a pod's work is at, for the error of a call that gives up. It
// is set by the worker and read by those who wait.
type step struct {
	now atomic.Pointer[stepAt]
}

type stepAt struct {
	format string
	args   []any
	since  time.Time
}

// set formats nothing: a step is read only when somebody gives up.
func (s *step) set(format string, args ...any) {
	s.now.Store(&stepAt{format, args, time.Now()})
}

func (s *step) stuck(cause error) error {
	at := s.now.Load()
	if at == nil {
		return cause
	}
	return fmt.Errorf("%s: has not returned for %s: %w", fmt.Sprintf(at.format, at.args...), time.Since(at.since).Round(time.Millisecond), cause)
}

// podLocks has a lock for each pod that is being worked on.
type podLocks struct {
	mu   sync.Mutex
	pods map[string]*podLock
}

type podLock struct {
	held  chan struct{} // capacity one
	users int           // guarded by podLocks.mu
	at    step
}

func newPodLocks() *podLocks { return &podLocks{pods: map[string]*podLock{}} }

func (l *podLocks) acquire(ctx context.Context, uid string) (*podLock, error) {
	l.mu.Lock()
	p := l.pods[uid]
	if p == nil {
		p = &podLock{held: make(chan struct{}, 1)}
		l.pods[uid] = p
	}
	p.users++
	l.mu.Unlock()
	select {
	case p.held <- struct{}{}:
		return p, nil
	case <-ctx.Done():
		l.leave(uid, p)
		return nil, fmt.Errorf("wait for an earlier call: %w", p.at.stuck(context.Cause(ctx)))
	}
}

func (l *podLocks) release(uid string, p *podLock) {
	<-p.held
	l.leave(uid, p)
}

func (l *podLocks) leave(uid string, p *podLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(l.pods, uid)
	}
}

// serialized does work while no other work is done for the pod. The work is in
// system calls that no context can end, so it has a goroutine that may outlive
// the call; it keeps the pod's lock until it returns.
func serialized[T any](ctx context.Context, m *Manager, uid string, work func(at *step) (T, error)) (T, error) {
	var none T
	if err := checkName(uid); err != nil {
		return none, fmt.Errorf("pod UID: %w", err)
	}
	lock, err := m.pods.acquire(ctx, uid)
	if err != nil {
		return none, err
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := work(&lock.at)
		m.pods.release(uid, lock)
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, lock.at.stuck(context.Cause(ctx))
	}
}
