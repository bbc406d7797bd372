package cri

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestTwoHundredPodsComeAndGoAtOnceAndLeaveNothing(t *testing.T) {
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) { c.LogLevel = "info" }})
	cycle(t, r, 1) // makes what the node keeps
	r.CheckNothingLeft()
	files := r.OpenFiles()
	cycle(t, r, 200)
	r.CheckNothingLeft()
	// Idle connections and pipes of the runtime's own library calls come and go.
	harness.Eventually(t, callTimeout, "the daemon's files are closed", func() string {
		if now := r.OpenFiles(); now > files+5 {
			return fmt.Sprintf("it has %d open, %d before", now, files)
		}
		return ""
	})
}

// cycle runs pods of one container at the same time, each from nothing to
// nothing.
func cycle(t *testing.T, r *runtime, count int) {
	t.Helper()
	group, ctx := errgroup.WithContext(context.Background())
	pods := make([]*runtimeapi.PodSandboxConfig, count)
	for i := range count {
		pod := r.podConfig(fmt.Sprintf("cycle-%d-%d", count, i))
		config := r.containerConfig("main", "testbox", "pause")
		group.Go(func() error {
			if err := r.once(ctx, pod, config); err != nil {
				return fmt.Errorf("pod %d: %w", i, err)
			}
			return nil
		})
		pods[i] = pod
	}
	must(t, group.Wait())
	for _, pod := range pods {
		r.removePodCgroup(pod)
	}
}

// once is the life of one pod.
func (r *runtime) once(ctx context.Context, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) error {
	if err := os.MkdirAll(filepath.Join(pod.GetLogDirectory(), "main"), 0o755); err != nil {
		return err
	}
	sandbox, err := r.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return err
	}
	created, err := r.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: config, SandboxConfig: pod})
	if err != nil {
		return err
	}
	id := created.ContainerId
	for _, step := range []func() error{
		func() error {
			_, err := r.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		},
		func() error {
			_, err := r.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10})
			return err
		},
		func() error {
			_, err := r.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		func() error {
			_, err := r.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
			return err
		},
		func() error {
			_, err := r.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
			return err
		},
		func() error { return os.RemoveAll(pod.GetLogDirectory()) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
