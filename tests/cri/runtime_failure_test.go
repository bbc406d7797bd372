package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// A runtime that hangs is killed when its time is over; what it was asked for
// is reported, other pods go on, and so does its own once it works again.
func TestHungRuntime(t *testing.T) {
	var hang string
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) {
		var path string
		path, hang = flaky(t, c.RuntimeBinary)
		c.Runtimes = map[string]harness.Runtime{"flaky": {Path: path, Timeout: "6s"}}
	}})
	h := hungTest{handlerTest{r, "flaky"}, hang}
	other := r.podConfig("other")
	otherSandbox := r.runPod(other)
	bystander := r.run(otherSandbox, other, r.containerConfig("bystander", "testbox", "pause"))
	for _, s := range []struct {
		name string
		run  func(hungTest)
	}{
		{"while it starts a container", hungTest.start},
		{"while it starts a process in one", hungTest.execute},
		{"while it changes limits", hungTest.update},
		{"while it removes one", hungTest.remove},
		{"while it removes one and the daemon is killed", hungTest.removeKilled},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(hungTest{handlerTest{h.runtime.on(t), h.handler}, hang}) })
		equal(t, "what the other pod's container says", r.exec(bystander, "echo", "well"), "well")
	}
	r.removePod(otherSandbox, other)
	r.CheckNothingLeft()
}

// flaky is the real runtime, but hangs in those commands that have a file of
// their name in the directory it returns.
func flaky(t *testing.T, runtime string) (path, hang string) {
	dir := t.TempDir()
	path, hang = filepath.Join(dir, "flaky"), filepath.Join(dir, "hang")
	must(t, os.Mkdir(hang, 0o755))
	must(t, os.WriteFile(path, []byte(`#!/bin/sh
for word; do
	[ -e "`+hang+`/$word" ] && sleep 4243
done
exec `+runtime+` "$@"
`), 0o755))
	return path, hang
}

type hungTest struct {
	handlerTest
	hang string
}

// stuck makes a command hang until works is called.
func (h hungTest) stuck(command string) (works func()) {
	h.t.Helper()
	file := filepath.Join(h.hang, command)
	must(h.t, os.WriteFile(file, nil, 0o644))
	h.t.Cleanup(func() { os.Remove(file) })
	return func() { must(h.t, os.Remove(file)) }
}

func (h hungTest) says(err error, words ...string) {
	h.t.Helper()
	if err == nil {
		h.t.Fatal("no error")
	}
	for _, w := range append(words, "did not finish in 6s and was killed") {
		if !strings.Contains(err.Error(), w) {
			h.t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

func (h hungTest) start() {
	pod := h.podConfig("hung-start")
	sandbox := h.runPod(pod)
	config := h.containerConfig("main", "testbox", "pause")
	id := h.create(sandbox, pod, config)
	works := h.stuck("run")
	_, err := h.StartContainer(h.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	h.says(err, id, "flaky run")
	st := h.status(id)
	equal(h.t, "state", st.State, runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(h.t, "reason", st.Reason, "StartError")
	if !strings.Contains(st.Message, "flaky run did not finish") {
		h.t.Errorf("message: %s", st.Message)
	}
	works()
	config.Metadata.Attempt = 1
	h.exec(h.run(sandbox, pod, config), "true")
	h.removePod(sandbox, pod)
}

func (h hungTest) execute() {
	pod := h.podConfig("hung-exec")
	sandbox := h.runPod(pod)
	id := h.run(sandbox, pod, h.containerConfig("main", "testbox", "pause"))
	works := h.stuck("exec")
	_, err := h.ExecSync(h.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
	h.says(err, id, "flaky exec")
	equal(h.t, "state", h.status(id).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	works()
	equal(h.t, "the next", h.exec(id, "echo", "well"), "well")
	h.removePod(sandbox, pod)
}

func (h hungTest) update() {
	pod := h.podConfig("hung-update")
	sandbox := h.runPod(pod)
	id := h.run(sandbox, pod, h.containerConfig("main", "testbox", "pause"))
	works := h.stuck("update")
	update := func() error {
		_, err := h.UpdateContainerResources(h.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 300},
		})
		return err
	}
	h.says(update(), id, "flaky update")
	equal(h.t, "shares", h.status(id).GetResources().GetLinux().GetCpuShares(), 100)
	works()
	must(h.t, update())
	equal(h.t, "shares", h.status(id).GetResources().GetLinux().GetCpuShares(), 300)
	h.removePod(sandbox, pod)
}

func (h hungTest) remove() {
	pod := h.podConfig("hung-delete")
	sandbox := h.runPod(pod)
	works := h.stuck("delete")
	id := h.run(sandbox, pod, h.containerConfig("main", "testbox", "exit", "--code", "4"))
	h.waitExit(id)
	_, err := h.StopPodSandbox(h.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
	h.says(err, id, "flaky delete")
	equal(h.t, "exit code, known all the same", h.waitExit(id).ExitCode, 4)
	works()
	h.removePod(sandbox, pod)
}

func (h hungTest) removeKilled() {
	pod := h.podConfig("hung-delete-killed")
	sandbox := h.runPod(pod)
	works := h.stuck("delete")
	id := h.run(sandbox, pod, h.containerConfig("main", "testbox", "exit", "--code", "4"))
	h.waitExit(id)
	h.Kill()
	h.Start()
	equal(h.t, "exit code after the restart", h.waitExit(id).ExitCode, 4)
	works()
	h.removePod(sandbox, pod)
}
