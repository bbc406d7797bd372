package cri

import (
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestLists(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	t.Run("a pod is listed while it is there", func(t *testing.T) { listedWhileThere(t, r.on(t)) })
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
