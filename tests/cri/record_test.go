package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/leak"
)

// What a disk or an editor made of a record is reported, by its name, and costs
// what it names and nothing else.
func TestARecordThatCannotBeReadCostsOnlyWhatItNames(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	type running struct {
		pod                *runtimeapi.PodSandboxConfig
		sandbox, container string
	}
	pods := map[string]running{}
	for _, name := range []string{"healthy", "no-sandbox", "no-container", "empty"} {
		pod := r.podConfig(name)
		sandbox := r.runPod(pod)
		main := r.containerConfig("main", "testbox", "exit", "--print", "ready", "--after", "1h")
		container := r.run(sandbox, pod, main)
		r.waitLog(pod, main, " stdout F ready")
		pods[name] = running{pod, sandbox, container}
	}
	before := r.status(pods["healthy"].container)
	processes := len(r.Containers())

	r.Kill()
	sandboxes, containers := filepath.Join(r.Config.RunDir, "sandboxes"), filepath.Join(r.Config.RunDir, "containers")
	truncate(t, filepath.Join(sandboxes, pods["no-sandbox"].sandbox, "sandbox.json"), 100)
	truncate(t, filepath.Join(containers, pods["no-container"].container, "container.json"), 100)
	truncate(t, filepath.Join(sandboxes, pods["empty"].sandbox, "sandbox.json"), 0)
	truncate(t, filepath.Join(containers, pods["empty"].container, "container.json"), 0)
	r.Start()

	log := r.LogTail(1000)
	for _, id := range []string{pods["no-sandbox"].sandbox, pods["no-container"].container, pods["empty"].sandbox, pods["empty"].container} {
		if !strings.Contains(log, `msg="record is unreadable, what it names is removed" id=`+id) {
			t.Errorf("the log does not tell of the record of %s", id)
		}
	}
	after := r.status(pods["healthy"].container)
	equal(t, "state of the healthy container", after.State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "its start", after.StartedAt, before.StartedAt)
	if got := len(r.Containers()); got >= processes || got < 1 {
		t.Errorf("%d container processes, of %d before: those without a record should be gone", got, processes)
	}

	list, err := r.ListPodSandbox(r.ctx(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	var names []string
	for _, s := range list.Items {
		names = append(names, s.Metadata.Name)
	}
	if len(names) != 2 {
		t.Errorf("sandboxes %v, want healthy and no-container", names)
	}
	// A kubelet that misses its container makes another one.
	again := pods["no-container"]
	main := r.containerConfig("main", "testbox", "exit", "--code", "4")
	main.Metadata.Attempt = 1
	equal(t, "exit code of a new container in the pod", r.waitExit(r.run(again.sandbox, again.pod, main)).ExitCode, 4)

	for _, p := range pods {
		r.removePod(p.sandbox, p.pod)
	}
	r.CheckNothingLeft(leak.Allowed{Kind: "file", Pattern: r.Config.RunDir + "/corrupt(/.*)?", Reason: "kept for whoever wants to know"})
}

// truncate leaves the first n bytes.
func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	must(t, os.Truncate(path, n))
}
