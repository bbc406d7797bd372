package image

import (
	"context"
	"errors"
	"sync"
)

// errClosed answers pulls after Close.
var errClosed = errors.New("image store is closed")

// flightKey says which pulls are the same. Credentials are part of it: who
// brings none, or wrong ones, must not get the image on those of another.
type flightKey struct {
	ref  string
	auth Auth
}

// flights let concurrent pulls of one reference share one.
type flights struct {
	mu      sync.Mutex
	closed  bool
	running map[flightKey]*flight
	wg      sync.WaitGroup
}

type flight struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when img and err are set
	img    Image
	err    error

	mu       sync.Mutex
	watchers map[int]func(Progress) // one per waiting caller
	next     int
}

// do runs fly, or joins the one that runs. The flight goes on as long as one
// caller waits for it; the last to leave waits until it has cleaned up.
func (f *flights) do(ctx context.Context, key flightKey, progress func(Progress), fly func(context.Context, func(Progress)) (Image, error)) (Image, error) {
	if progress == nil {
		progress = func(Progress) {}
	}
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return Image{}, errClosed
	}
	fl, ok := f.running[key]
	if !ok {
		fl = f.start(ctx, key, fly)
	}
	seat := fl.join(progress)
	f.mu.Unlock()

	select {
	case <-fl.done:
		return fl.img, fl.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	last := fl.leave(seat) == 0
	if last && f.running[key] == fl {
		delete(f.running, key)
	}
	f.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
	return Image{}, context.Cause(ctx)
}

// start is called with f.mu held.
func (f *flights) start(ctx context.Context, key flightKey, fly func(context.Context, func(Progress)) (Image, error)) *flight {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pullDeadline)
	fl := &flight{cancel: cancel, done: make(chan struct{}), watchers: map[int]func(Progress){}}
	f.running[key] = fl
	f.wg.Go(func() {
		defer cancel()
		fl.img, fl.err = fly(ctx, fl.report)
		f.mu.Lock()
		if f.running[key] == fl {
			delete(f.running, key)
		}
		f.mu.Unlock()
		close(fl.done)
	})
	return fl
}

// close ends all flights and waits for them.
func (f *flights) close() {
	f.mu.Lock()
	f.closed = true
	for _, fl := range f.running {
		fl.cancel()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func (fl *flight) join(progress func(Progress)) (seat int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	fl.next++
	fl.watchers[fl.next] = progress
	return fl.next
}

func (fl *flight) leave(seat int) (left int) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	delete(fl.watchers, seat)
	return len(fl.watchers)
}

func (fl *flight) report(p Progress) {
	fl.mu.Lock()
	defer fl.mu.Unlock()
	for _, progress := range fl.watchers {
		progress(p)
	}
}
