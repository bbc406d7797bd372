package agent

import (
	"context"
	"maps"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/dispatch"
	"github.com/berth-io/berth/agent/metrics"
)

// socketRuntime is a runtime that says at which socket it was asked.
type socketRuntime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	socket string
}

func (s *socketRuntime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: s.socket}, nil
}

func (s *socketRuntime) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{{Id: s.socket}}}, nil
}

func serve(t *testing.T, name string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), name)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s, server := &socketRuntime{socket: socket}, grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, s)
	runtimeapi.RegisterImageServiceServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

func TestImagesAreAskedForAtTheSocketOfTheImageService(t *testing.T) {
	runtime, images := serve(t, "runtime"), serve(t, "images")
	for configured, want := range map[string]string{"": runtime, runtime: runtime, images: images} {
		a := &Agent{config: Config{RuntimeSock: runtime, ImageSock: configured}, counts: metrics.NewEvents()}
		if err := a.connect(); err != nil {
			t.Fatal(err)
		}
		version, err := a.runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
		if err != nil || version.GetRuntimeName() != runtime {
			t.Errorf("image service %q: the runtime is asked at %s, %v", configured, version.GetRuntimeName(), err)
		}
		list, err := a.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil || list.GetImages()[0].GetId() != want {
			t.Errorf("image service %q: it is asked at %v, %v", configured, list, err)
		}
		for _, conn := range a.conns {
			conn.Close()
		}
	}
}

func TestALoopThatDoesNotComeBackIsUnhealthy(t *testing.T) {
	a := &Agent{}
	if err := a.syncing(); err != nil {
		t.Errorf("while it waits: %v", err)
	}
	a.feeding.Store(time.Now().UnixNano())
	if err := a.syncing(); err != nil {
		t.Errorf("as soon as it is at something: %v", err)
	}
	a.feeding.Store(time.Now().Add(-longestFeed - time.Second).UnixNano())
	if err := a.syncing(); err == nil || err.Error() != "sync Loop took longer than expected" {
		t.Errorf("after too long: %v", err)
	}
}

func TestWorkersAreCountedInTheKubeletsWords(t *testing.T) {
	got := working(map[dispatch.Standing]int{
		{}: 1, {Static: true}: 2, {Ending: true}: 3, {Ending: true, Ended: true}: 4, {Static: true, Unwanted: true, Ending: true}: 5, {Unwanted: true, Stray: true, Ending: true}: 6,
	})
	want := map[metrics.Working]int{
		{Lifecycle: "sync", Config: "desired"}: 1, {Lifecycle: "sync", Config: "desired", Static: "true"}: 2, {Lifecycle: "terminating", Config: "desired"}: 3,
		{Lifecycle: "terminated", Config: "desired"}: 4, {Lifecycle: "terminating", Config: "orphan", Static: "true"}: 5, {Lifecycle: "terminating", Config: "runtime_only", Static: "unknown"}: 6,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAPodThatHasEndedHasNoShareOfItsClass(t *testing.T) {
	a := &Agent{}
	var pods []*v1.Pod
	for _, phase := range []v1.PodPhase{"", v1.PodPending, v1.PodRunning, v1.PodSucceeded, v1.PodFailed} {
		pods = append(pods, &v1.Pod{Status: v1.PodStatus{Phase: phase}})
	}
	if got := a.allocated(pods); len(got) != 3 || got[2].Status.Phase != v1.PodRunning {
		t.Errorf("%d pods have a share", len(got))
	}
}
