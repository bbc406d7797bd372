package cri

import (
	"errors"
	"io"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestLists(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	t.Run("a pod is listed while it is there", func(t *testing.T) { listedWhileThere(t, r.on(t)) })
	t.Run("a streamed list is the list, in several messages", func(t *testing.T) { streamedLists(t, r.on(t)) })
	r.CheckNothingLeft()
}

func listedWhileThere(t *testing.T, r *runtime) {
	pod := r.podConfig("listed")
	sandbox := r.runPod(pod)
	main := r.containerConfig("main", "testbox", "exit", "--print", "ready", "--code", "3", "--after", "1h")
	id := r.run(sandbox, pod, main)
	r.waitLog(pod, main, " stdout F ready")
	equal(t, "hostname", r.exec(id, "hostname"), "listed")
	pods, err := r.ListPodSandbox(r.ctx(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	equal(t, "sandboxes", len(pods.Items), 1)
	_, err = r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
	must(t, err)
	equal(t, "exit code", r.waitExit(id).ExitCode, 3)
	r.removePod(sandbox, pod)
	pods, err = r.ListPodSandbox(r.ctx(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	equal(t, "sandboxes", len(pods.Items), 0)
}

// streamedLists has pods that do not fit in one message.
func streamedLists(t *testing.T, r *runtime) {
	var sandboxes, containers []string
	var pods []*runtimeapi.PodSandboxConfig
	for range 5 {
		pod := r.podConfig("streamed")
		pod.Annotations = map[string]string{"large": strings.Repeat("x", 100<<10)}
		sandbox := r.runPod(pod)
		config := r.containerConfig("main", "testbox", "pause")
		config.Annotations = pod.Annotations
		containers = append(containers, r.run(sandbox, pod, config))
		sandboxes, pods = append(sandboxes, sandbox), append(pods, pod)
	}
	several := func(what string, want []string, messages [][]string) {
		t.Helper()
		var got []string
		for _, m := range messages {
			if len(m) == 0 {
				t.Errorf("%s: an empty message", what)
			}
			got = append(got, m...)
		}
		sameIDs(t, what, got, want)
		if len(messages) < 2 && len(want) > 1 {
			t.Errorf("%s: %d messages", what, len(messages))
		}
	}
	ctx := r.ctx()

	podStream, err := r.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	several("sandboxes", sandboxes, receive(t, err, podStream, func(m *runtimeapi.StreamPodSandboxesResponse) []string {
		return ids(m.PodSandboxes, (*runtimeapi.PodSandbox).GetId)
	}))
	podStream, err = r.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: sandboxes[2]}})
	several("sandboxes by ID", sandboxes[2:3], receive(t, err, podStream, func(m *runtimeapi.StreamPodSandboxesResponse) []string {
		return ids(m.PodSandboxes, (*runtimeapi.PodSandbox).GetId)
	}))
	podStream, err = r.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: "none"}})
	equal(t, "messages of an empty list", len(receive(t, err, podStream, func(*runtimeapi.StreamPodSandboxesResponse) []string { return nil })), 0)

	containerStream, err := r.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	several("containers", containers, receive(t, err, containerStream, func(m *runtimeapi.StreamContainersResponse) []string {
		return ids(m.Containers, (*runtimeapi.Container).GetId)
	}))
	statsStream, err := r.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
	several("container statistics", containers, receive(t, err, statsStream, func(m *runtimeapi.StreamContainerStatsResponse) []string {
		return ids(m.ContainerStats, func(s *runtimeapi.ContainerStats) string { return s.Attributes.Id })
	}))
	podStatsStream, err := r.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
	several("sandbox statistics", sandboxes, receive(t, err, podStatsStream, func(m *runtimeapi.StreamPodSandboxStatsResponse) []string {
		return ids(m.PodSandboxStats, func(s *runtimeapi.PodSandboxStats) string { return s.Attributes.Id })
	}))

	// These are small: one message, or more.
	metricsStream, err := r.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	var withMetrics []string
	for _, m := range receive(t, err, metricsStream, func(m *runtimeapi.StreamPodSandboxMetricsResponse) []string {
		return ids(m.PodSandboxMetrics, (*runtimeapi.PodSandboxMetrics).GetPodSandboxId)
	}) {
		withMetrics = append(withMetrics, m...)
	}
	sameIDs(t, "metrics", withMetrics, sandboxes)
	images, err := r.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	must(t, err)
	imageStream, err := r.images.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	streamed := receive(t, err, imageStream, func(m *runtimeapi.StreamImagesResponse) []string {
		return ids(m.Images, (*runtimeapi.Image).GetId)
	})
	equal(t, "messages with images", len(streamed), 1)
	sameIDs(t, "images", streamed[0], ids(images.Images, (*runtimeapi.Image).GetId))
	for i := range sandboxes {
		r.removePod(sandboxes[i], pods[i])
	}
}

func ids[T any](list []T, id func(T) string) []string {
	var out []string
	for _, item := range list {
		out = append(out, id(item))
	}
	return out
}

// receive reads a stream to its end, and returns the IDs in each message.
func receive[M any](t *testing.T, err error, stream interface{ Recv() (*M, error) }, take func(*M) []string) [][]string {
	t.Helper()
	must(t, err)
	var messages [][]string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return messages
		}
		must(t, err)
		messages = append(messages, take(m))
	}
}
