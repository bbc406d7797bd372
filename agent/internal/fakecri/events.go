package fakecri

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reader is one event stream. It never loses an event.
type reader struct {
	ctx    context.Context
	header metadata.MD // nil: the stream ended before it began

	mu     sync.Mutex
	events []*runtimeapi.ContainerEventResponse
	err    error         // ends the stream once events are read
	more   chan struct{} // capacity one
}

// Silence drops all events until sound is called.
func (r *Runtime) Silence() (sound func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.silent = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.silent = false
	}
}

// WithoutEvents makes a runtime of before there were event streams: asked for
// one it answers Unimplemented, and a sandbox's status tells nothing of its
// containers.
func (r *Runtime) WithoutEvents() *Runtime {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.eventless = true
	return r
}

// SetEvents makes the runtime one that has events, or none, as if it had been
// replaced: streams break.
func (r *Runtime) SetEvents(there bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.eventless = !there
	r.cut(status.Error(codes.Unavailable, "the runtime is restarted"))
}

// Cut breaks all event streams with err.
func (r *Runtime) Cut(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut(err)
}

func (r *Runtime) cut(err error) {
	for reader := range r.readers {
		reader.send(nil, err)
	}
	clear(r.readers)
}

// Streams is how many event streams are open.
func (r *Runtime) Streams() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.readers)
}

// Event returns what an event would say of a container's sandbox now: to be
// kept, and sent with Send when it is out of date.
func (r *Runtime) Event(containerName string) *runtimeapi.ContainerEventResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.newestFirst() {
		if c.name() == containerName {
			return r.event(c.sandbox, c.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
		}
	}
	return nil
}

// Send sends an event as it is.
func (r *Runtime) Send(e *runtimeapi.ContainerEventResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for reader := range r.readers {
		reader.send(e, nil)
	}
}

// GetContainerEvents opens a stream of events from now on.
func (r *Runtime) GetContainerEvents(ctx context.Context, req *runtimeapi.GetEventsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse], error) {
	return r.subscribe(ctx, req)
}

func (r *Runtime) subscribe(ctx context.Context, req *runtimeapi.GetEventsRequest) (*reader, error) {
	return do(ctx, r, "GetContainerEvents", req, func() (*reader, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		e := &reader{ctx: ctx, more: make(chan struct{}, 1)}
		if r.eventless {
			// A client of gRPC learns it from the stream, not from opening it.
			e.send(nil, status.Error(codes.Unimplemented, "method GetContainerEvents not implemented"))
			return e, nil
		}
		e.header = metadata.MD{}
		r.readers[e] = true
		context.AfterFunc(ctx, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.readers, e)
		})
		return e, nil
	})
}

func (r *Runtime) tell(sandboxID, containerID string, kind runtimeapi.ContainerEventType) {
	if r.silent {
		return
	}
	e := r.event(sandboxID, containerID, kind)
	for reader := range r.readers {
		reader.send(e, nil)
	}
}

// deleted removes something of a sandbox and tells so. The event has the
// sandbox's status although the sandbox may be gone.
func (r *Runtime) deleted(s *sandbox, id string, remove func()) {
	remove()
	if r.silent || s == nil {
		return
	}
	e := r.event(s.id, id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	e.PodSandboxStatus = s.status()
	for reader := range r.readers {
		reader.send(e, nil)
	}
}

func (r *Runtime) event(sandboxID, containerID string, kind runtimeapi.ContainerEventType) *runtimeapi.ContainerEventResponse {
	e := &runtimeapi.ContainerEventResponse{
		ContainerId: containerID, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(),
		ContainersStatuses: r.statuses(sandboxID),
	}
	if s := r.sandboxes[sandboxID]; s != nil {
		e.PodSandboxStatus = s.status()
	}
	return e
}

func (e *reader) send(event *runtimeapi.ContainerEventResponse, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil && e.err == nil {
		e.err = err
	}
	if event != nil {
		e.events = append(e.events, event)
	}
	select {
	case e.more <- struct{}{}:
	default:
	}
}

// Recv waits for the next event.
func (e *reader) Recv() (*runtimeapi.ContainerEventResponse, error) {
	for {
		e.mu.Lock()
		if len(e.events) > 0 {
			next := e.events[0]
			e.events = e.events[1:]
			e.mu.Unlock()
			return next, nil
		}
		err := e.err
		e.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-e.more:
		case <-e.ctx.Done():
			return nil, left(e.ctx)
		}
	}
}

// The rest of a stream's interface is of no use here.

func (e *reader) Header() (metadata.MD, error) { return e.header, nil }
func (e *reader) Trailer() metadata.MD         { return nil }
func (e *reader) CloseSend() error             { return nil }
func (e *reader) Context() context.Context     { return e.ctx }
func (e *reader) SendMsg(any) error {
	return status.Error(codes.Internal, "an event stream is only read")
}
func (e *reader) RecvMsg(any) error { return status.Error(codes.Internal, "use Recv") }
