package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestReopenedLogs(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	for _, s := range []struct {
		name string
		run  func(*testing.T, *runtime)
	}{
		{"every line is in one of the files, once and in order", rotated},
		{"a log whose directory has gone is an error, and found again when it is back", logDirectoryGone},
		{"a container that does not run has no log to reopen", reopenEnded},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, r.on(t)) })
	}
	r.CheckNothingLeft()
}

func (r *runtime) reopen(id string) error {
	_, err := r.ReopenContainerLog(r.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	return err
}

func rotated(t *testing.T, r *runtime) {
	const rotations = 8
	pod := r.podConfig("rotated")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "sh", "-c", "i=0; until [ -e /enough ]; do i=$((i+1)); echo line $i; done; echo $i > /enough; exec testbox pause")
	id := r.run(sandbox, pod, config)
	path := filepath.Join(pod.LogDirectory, config.LogPath)
	var files []string
	for i := range rotations {
		harness.Eventually(t, callTimeout, "a log to rotate", func() string {
			if st, err := os.Stat(path); err != nil || st.Size() == 0 {
				return fmt.Sprint(err)
			}
			return ""
		})
		file := fmt.Sprintf("%s.%d", path, i)
		must(t, os.Rename(path, file))
		files = append(files, file)
		must(t, r.reopen(id))
	}
	r.exec(id, "touch", "/enough")
	var lines string
	harness.Eventually(t, callTimeout, "the number of lines", func() string {
		lines = r.exec(id, "cat", "/enough")
		if lines == "" {
			return "it is not told yet"
		}
		return ""
	})
	r.waitLog(pod, config, "line "+lines+"\n")
	next := 1
	for _, file := range append(files, path) {
		data, err := os.ReadFile(file)
		must(t, err)
		for line := range strings.Lines(string(data)) {
			if want := fmt.Sprintf(" stdout F line %d\n", next); !strings.HasSuffix(line, want) {
				t.Fatalf("%s has %q, want %q", filepath.Base(file), line, want)
			}
			next++
		}
	}
	equal(t, "lines", fmt.Sprint(next-1), lines)
	r.removePod(sandbox, pod)
}

func logDirectoryGone(t *testing.T, r *runtime) {
	pod := r.podConfig("directory-gone")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "sh", "-c", "while :; do echo still here; sleep 0.05; done")
	id := r.run(sandbox, pod, config)
	r.waitLog(pod, config, "still here")
	must(t, os.RemoveAll(pod.LogDirectory))
	err := r.reopen(id)
	if err == nil || !strings.Contains(err.Error(), config.LogPath) || !strings.Contains(err.Error(), "no such file or directory") {
		t.Errorf("reopening says: %v", err)
	}
	time.Sleep(200 * time.Millisecond) // it goes on writing to nowhere
	equal(t, "state", r.status(id).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	must(t, os.MkdirAll(filepath.Join(pod.LogDirectory, filepath.Dir(config.LogPath)), 0o755))
	must(t, r.reopen(id))
	r.waitLog(pod, config, "still here")
	r.removePod(sandbox, pod)
}

func reopenEnded(t *testing.T, r *runtime) {
	pod := r.podConfig("ended")
	sandbox := r.runPod(pod)
	id := r.create(sandbox, pod, r.containerConfig("main", "testbox", "exit"))
	equal(t, "code before its start", status.Code(r.reopen(id)), codes.FailedPrecondition)
	r.start(id)
	r.waitExit(id)
	equal(t, "code after its end", status.Code(r.reopen(id)), codes.FailedPrecondition)
	equal(t, "code of none", status.Code(r.reopen("nobody")), codes.NotFound)
	r.removePod(sandbox, pod)
}
