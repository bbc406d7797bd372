package cri

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestEvents(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	for _, c := range []struct {
		name string // a sentence
		run  func(*testing.T, *runtime)
	}{
		{"a reader sees a pod's life in order", eventsOfALife},
		{"a reader that is too slow is told to list again", slowReader},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, r.on(t)) })
	}
	r.CheckNothingLeft()
}

// events follows the runtime's events; it has subscribed when this returns.
func (r *runtime) events(ctx context.Context) runtimeapi.RuntimeService_GetContainerEventsClient {
	r.t.Helper()
	stream, err := r.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	must(r.t, err)
	_, err = stream.Header()
	must(r.t, err)
	return stream
}

func eventsOfALife(t *testing.T, r *runtime) {
	stream := r.events(r.ctx())
	pod := r.podConfig("life")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "sh", "-c", "exit 3"))
	r.waitExit(id)
	_, err := r.RemoveContainer(r.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	must(t, err)
	r.removePod(sandbox, pod)
	for _, want := range []struct {
		id       string
		kind     runtimeapi.ContainerEventType
		ready    runtimeapi.PodSandboxState
		statuses int
	}{
		{sandbox, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.PodSandboxState_SANDBOX_READY, 0},
		{sandbox, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.PodSandboxState_SANDBOX_READY, 0},
		{id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.PodSandboxState_SANDBOX_READY, 1},
		{id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.PodSandboxState_SANDBOX_READY, 1},
		{id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.PodSandboxState_SANDBOX_READY, 1},
		{id, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, runtimeapi.PodSandboxState_SANDBOX_READY, 0},
		{sandbox, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.PodSandboxState_SANDBOX_NOTREADY, 0},
		{sandbox, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, runtimeapi.PodSandboxState_SANDBOX_NOTREADY, 0},
	} {
		e, err := stream.Recv()
		must(t, err)
		if e.ContainerId != want.id || e.ContainerEventType != want.kind || e.PodSandboxStatus.GetState() != want.ready || len(e.ContainersStatuses) != want.statuses {
			t.Errorf("got %v of %s (sandbox %v, %d containers), want %v of %s", e.ContainerEventType, e.ContainerId,
				e.PodSandboxStatus.GetState(), len(e.ContainersStatuses), want.kind, want.id)
		}
		if e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && want.id == id {
			equal(t, "exit code", e.ContainersStatuses[0].ExitCode, 3)
		}
	}
}

// slowReader makes more events than any backlog has, with one reader that
// takes them and one that does not.
func slowReader(t *testing.T, r *runtime) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	slow, quick := r.events(ctx), r.events(ctx)
	pod := r.podConfig("busy")
	sandbox := r.runPod(pod)
	const workers, rounds = 4, 200
	seen := make(chan map[string]int)
	go func() { seen <- countEvents(quick, sandbox) }()
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for i := range rounds {
				config := r.containerConfig(fmt.Sprintf("c%d-%d", w, i), "testbox", "pause")
				config.LogPath = ""
				created, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
				if err == nil {
					_, err = r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: created.ContainerId})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	r.removePod(sandbox, pod)
	containers := <-seen
	equal(t, "containers that the quick reader saw", len(containers), workers*rounds+1)
	for id, n := range containers {
		if want := 2; n != want && id != sandbox {
			t.Errorf("%d events of container %s", n, id)
		}
	}

	// The slow one gets what was kept for it, without a hole, and then the truth.
	got := 0
	for {
		e, err := slow.Recv()
		if err != nil {
			equal(t, "the stream's end", status.Code(err), codes.OutOfRange)
			break
		}
		if containers[e.ContainerId]--; containers[e.ContainerId] < 0 {
			t.Errorf("an event too many of %s", e.ContainerId)
		}
		got++
	}
	if got < 1000 || got > 2*workers*rounds {
		t.Errorf("the slow reader got %d events", got)
	}
	// To watch again is what it is told to do, and it works.
	again := r.events(ctx)
	pod = r.podConfig("again")
	sandbox = r.runPod(pod)
	e, err := again.Recv()
	must(t, err)
	equal(t, "first event", e.ContainerId, sandbox)
	r.removePod(sandbox, pod)
}

// countEvents counts by container until the sandbox is deleted.
func countEvents(stream runtimeapi.RuntimeService_GetContainerEventsClient, sandbox string) map[string]int {
	seen := map[string]int{}
	for {
		e, err := stream.Recv()
		if err != nil {
			return seen
		}
		seen[e.ContainerId]++
		if e.ContainerId == sandbox && e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
			return seen
		}
	}
}
