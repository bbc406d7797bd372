package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestAnExecThatTakesTooLongIsKilledWithAllThatItStarted(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("late")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	for name, script := range map[string]string{
		"a child":                    "sleep 1000",
		"children that detached":     `for i in 1 2 3; do setsid sh -c 'trap "" TERM HUP INT; sleep 1000; sleep 1000' & done; sleep 1000`,
		"children whose parent left": `(setsid sleep 1000 &) ; (setsid sleep 1000 &) ; sleep 1000`,
		"children without end":       `while :; do setsid sleep 1000 & done`,
	} {
		t.Run(name, func(t *testing.T) {
			r := r.on(t)
			_, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 1})
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("ended with %v", err)
			}
			// At once: whoever is told of the time-out may look.
			equal(t, "processes left", r.processes(id, "sleep"), "")
		})
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

func TestAnExecLeavesNobodyWaitingForItsBackgroundProcesses(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("background")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	// An exec ends with a time-out long before the process in the background does.
	equal(t, "output", r.exec(id, "sh", "-c", "sleep 1000 & echo done"), "done")
	if r.processes(id, "sleep") == "" {
		t.Error("the process in the background is gone")
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

func TestTheOutputOfAnExecFitsIntoAnAnswer(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("loud")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	const most = 16 << 20 // the kubelet's bound on a message, this test's client has it too
	for name, script := range map[string]string{
		"output": "yes out | head -c 40000000; echo the end >&2",
		"both":   "yes out | head -c 40000000; yes err | head -c 40000000 >&2",
	} {
		t.Run(name, func(t *testing.T) {
			r := r.on(t)
			resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script + "; exit 3"}, Timeout: 150})
			must(t, err)
			equal(t, "exit code", resp.ExitCode, 3)
			if !strings.HasPrefix(string(resp.Stdout), "out\nout\n") || len(resp.Stdout) < most/3 {
				t.Errorf("%d bytes of output", len(resp.Stdout))
			}
			if name == "output" {
				equal(t, "errors", string(resp.Stderr), "the end\n")
			}
		})
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}
