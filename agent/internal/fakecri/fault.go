package fakecri

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

var errRebooted = status.Error(codes.Unavailable, "the host boots")

// fault is how calls of a method misbehave.
type fault struct {
	method string
	match  string // the request's text must contain it
	err    error
	gate   chan struct{} // nil: the call does not hang
	deaf   bool          // it answers and does nothing
	goesOn bool          // it ends although its caller has left
}

// Fail lets calls of a method fail with err until the returned function is
// called. Only requests whose text contains match are concerned; an empty
// match concerns all.
func (r *Runtime) Fail(method, match string, err error) (mend func()) {
	return r.misbehave(&fault{method: method, match: match, err: err})
}

// Hang lets calls of a method wait until release is called or their caller
// leaves.
func (r *Runtime) Hang(method, match string) (release func()) {
	return r.misbehave(&fault{method: method, match: match, gate: make(chan struct{})})
}

// HangOn is Hang, but the runtime does not notice that its caller left: what
// was asked for happens on release.
func (r *Runtime) HangOn(method, match string) (release func()) {
	return r.misbehave(&fault{method: method, match: match, gate: make(chan struct{}), goesOn: true})
}

// Deaf lets calls of a method succeed without doing anything.
func (r *Runtime) Deaf(method string) (mend func()) {
	return r.misbehave(&fault{method: method, deaf: true})
}

func (r *Runtime) misbehave(f *fault) (mend func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i := slices.Index(r.faults, f); i >= 0 {
			r.faults = slices.Delete(r.faults, i, i+1)
			if f.gate != nil {
				close(f.gate)
			}
		}
	}
}

func (r *Runtime) faultOf(method string, req any) *fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.method == method && (f.match == "" || strings.Contains(fmt.Sprint(req), f.match)) {
			return f
		}
	}
	return nil
}

// do carries a call out, or lets it misbehave. work takes the lock itself.
func do[T any](ctx context.Context, r *Runtime, method string, req any, work func() (*T, error)) (*T, error) {
	if ctx.Err() != nil {
		return nil, left(ctx)
	}
	f := r.faultOf(method, req)
	switch {
	case f == nil:
		return work()
	case f.deaf:
		r.mu.Lock()
		defer r.mu.Unlock()
		r.log("%s in vain", method)
		return new(T), nil
	case f.err != nil:
		return nil, f.err
	case !f.goesOn:
		select {
		case <-f.gate:
			return work()
		case <-ctx.Done():
			return nil, left(ctx)
		}
	}
	type result struct {
		value *T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		<-f.gate
		value, err := work()
		done <- result{value, err}
	}()
	select {
	case res := <-done:
		return res.value, res.err
	case <-ctx.Done():
		return nil, left(ctx)
	}
}

// left is what gRPC gives a caller whose context has ended.
func left(ctx context.Context) error { return status.FromContextError(ctx.Err()).Err() }

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %q: not found", kind, id)
}
