package server

import (
	"bytes"
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/events"
)

// containsID looks for a container ID in the text of /proc/PID/cgroup.
func containsID(cgroups []byte, id string) bool { return bytes.Contains(cgroups, []byte(id)) }

// GetContainerEvents streams what happens to sandboxes and containers from now
// on. A reader that falls behind is ended with OUT_OF_RANGE: it must list
// again. An event of a sandbox itself has the sandbox's ID as container ID.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	reader := s.events.Subscribe()
	defer reader.Close()
	// The header tells the reader that it is subscribed: what it lists from
	// here on, and what it is sent, have no gap between them.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.ended, cancel)()
	for {
		e, err := reader.Next(ctx)
		switch {
		case err != nil && s.ended.Err() != nil:
			return status.Error(codes.Unavailable, "the runtime is stopping")
		case errors.Is(err, events.ErrSlow):
			return status.Error(codes.OutOfRange, err.Error())
		case err != nil:
			return status.FromContextError(err).Err()
		}
		if err := stream.Send(e); err != nil {
			return err
		}
	}
}

// EndEvents ends all event streams, which would otherwise keep the gRPC server
// from stopping.
func (s *Server) EndEvents() { s.endEvents() }

// publish tells of a change, with all that is known of the sandbox after it.
func (s *Server) publish(sandboxID, containerID string, kind runtimeapi.ContainerEventType) {
	if !s.events.Watched() {
		return
	}
	e := &runtimeapi.ContainerEventResponse{
		ContainerId:        containerID,
		ContainerEventType: kind,
		CreatedAt:          time.Now().UnixNano(), // before the statuses are read, see PodSandboxStatus
		ContainersStatuses: s.containerStatuses(sandboxID),
	}
	if sb, ok := s.sandboxes.Get(sandboxID); ok {
		e.PodSandboxStatus = sandboxStatus(sb)
	}
	s.events.Publish(e)
}
