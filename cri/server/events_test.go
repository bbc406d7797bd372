package server

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// stalledStream is a reader that takes nothing until it is released.
type stalledStream struct {
	grpc.ServerStream
	ctx        context.Context
	subscribed chan struct{}
	release    chan struct{}
	sent       []*runtimeapi.ContainerEventResponse
}

func (s *stalledStream) Context() context.Context { return s.ctx }

func (s *stalledStream) SendHeader(metadata.MD) error {
	close(s.subscribed)
	return nil
}

func (s *stalledStream) Send(e *runtimeapi.ContainerEventResponse) error {
	<-s.release
	s.sent = append(s.sent, e)
	return nil
}

func TestAReaderThatIsTooSlowIsToldToListAgainAfterWhatItMissedNothingOf(t *testing.T) {
	w := newWorld(t)
	s := w.start(t)
	defer s.Close()
	id := runSandbox(t, s, "a")
	stream := &stalledStream{ctx: t.Context(), subscribed: make(chan struct{}), release: make(chan struct{})}
	ended := make(chan error)
	go func() { ended <- s.GetContainerEvents(&runtimeapi.GetEventsRequest{}, stream) }()
	<-stream.subscribed
	const events = eventBacklog + 10
	for range events {
		s.publish(id, id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	}
	close(stream.release)
	if err := <-ended; status.Code(err) != codes.OutOfRange {
		t.Errorf("the stream ended with %v", err)
	}
	if n := len(stream.sent); n < eventBacklog || n > eventBacklog+1 {
		t.Errorf("%d events were sent of a backlog of %d", n, eventBacklog)
	}
	for i := 1; i < len(stream.sent); i++ {
		if stream.sent[i].CreatedAt < stream.sent[i-1].CreatedAt {
			t.Fatalf("event %d is older than the one before", i)
		}
	}
	removeSandbox(t, s, id)
	w.checkEmpty(t)
}
