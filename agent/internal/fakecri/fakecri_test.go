package fakecri_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/act"
	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/observed"
)

// The fake is used in the process as the agent's packages use a client.
var (
	_ act.Sandboxes    = (*fakecri.Runtime)(nil)
	_ act.Containers   = (*fakecri.Runtime)(nil)
	_ images.Runtime   = (*fakecri.Runtime)(nil)
	_ observed.Runtime = (*fakecri.Runtime)(nil)
)

// TestALifeThroughGRPC follows a sandbox with a container from its start to its
// removal through a real connection.
func TestALifeThroughGRPC(t *testing.T) {
	r := fakecri.New()
	r.Offers("busybox")
	socket := filepath.Join(t.TempDir(), "cri.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, l) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, i := runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)

	events, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := events.Header(); err != nil {
		t.Fatal(err)
	}
	sb, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "uid"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	config := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "a"}, Image: &runtimeapi.ImageSpec{Image: "busybox"}}
	create := &runtimeapi.CreateContainerRequest{PodSandboxId: sb.GetPodSandboxId(), Config: config}
	if _, err := c.CreateContainer(ctx, create); status.Code(err) != codes.NotFound {
		t.Errorf("create without the image: %v", err)
	}
	if _, err := i.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "busybox"}}); err != nil {
		t.Fatal(err)
	}
	ct, err := c.CreateContainer(ctx, create)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ct.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
	r.Exit("a", 3)
	var last *runtimeapi.ContainerEventResponse
	for range 4 { // sandbox started, container created, started, stopped
		if last, err = events.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if last.GetContainerEventType() != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT ||
		last.GetContainersStatuses()[0].GetExitCode() != 3 || last.GetPodSandboxStatus().GetMetadata().GetUid() != "uid" {
		t.Errorf("the last event is %v", last)
	}
	for range 2 { // both may be repeated
		if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb.GetPodSandboxId()}); err != nil {
			t.Error(err)
		}
	}
	for range 2 {
		if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb.GetPodSandboxId()}); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.GetContainerId()}); status.Code(err) != codes.NotFound {
		t.Errorf("status of a removed container: %v", err)
	}
	if !r.Empty() {
		t.Error("something is left")
	}
	cancel()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve returned %v", err)
	}
}

func TestACallThatHangsOnHappensAfterItsCallerLeft(t *testing.T) {
	r := fakecri.New()
	release := r.HangOn("RunPodSandbox", "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	ctx2, cancel2 := context.WithCancel(t.Context())
	req := &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Uid: "uid"}}}
	if _, err := r.RunPodSandbox(ctx, req); status.Code(err) != codes.Canceled {
		t.Errorf("a caller that was gone before: %v", err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.RunPodSandbox(ctx2, req)
		ended <- err
	}()
	cancel2()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("a caller that leaves: %v", err)
	}
	release()
}
