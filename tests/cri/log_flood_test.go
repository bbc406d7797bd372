package cri

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// TestAFloodOfLinesIsInTheLogOnce has a container write lines as fast as it can
// while its log is rotated and the daemon is killed and started.
func TestAFloodOfLinesIsInTheLogOnce(t *testing.T) {
	const rotations = 15
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("flood")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "lines", "-interval", "0")
	id := r.run(sandbox, pod, config)
	path := filepath.Join(pod.GetLogDirectory(), config.GetLogPath())
	var rotated []string
	rotate := func() {
		rotated = append(rotated, fmt.Sprintf("%s.%d", path, len(rotated)))
		must(t, os.Rename(path, rotated[len(rotated)-1]))
		_, err := r.ReopenContainerLog(r.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		must(t, err)
	}
	for kills := 0; len(rotated) < rotations; {
		rotate()
		if kills < 2 && len(rotated)%3 == 0 {
			r.Kill()
			must(t, os.Rename(path, path+".while-away"))
			rotated = append(rotated, path+fmt.Sprintf(".%d", len(rotated)))
			must(t, os.Rename(path+".while-away", rotated[len(rotated)-1]))
			r.Start()
			// The daemon does not know of a rotation that nobody told it of.
			if _, err := r.ReopenContainerLog(r.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			kills++
		}
		time.Sleep(100 * time.Millisecond)
	}
	_, err := r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60})
	must(t, err)
	equal(t, "exit code", r.waitExit(id).ExitCode, 0)
	want, end := 1, ""
	for _, file := range append(rotated, path) {
		want, end = checkLines(t, file, want)
	}
	equal(t, "last entry", end, fmt.Sprintf("end %d", want-1))
	t.Logf("%d lines in %d files", want-1, len(rotated)+1)
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// checkLines reads a log that goes on with line number want, and returns the
// number that comes after it, and what the program said last, if it is there.
func checkLines(t *testing.T, path string, want int) (next int, end string) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		_, text, ok := strings.Cut(scanner.Text(), " stdout F ")
		if !ok {
			t.Fatalf("%s: not an entry: %q", path, scanner.Text())
		}
		if strings.HasPrefix(text, "end ") {
			end = text
			continue
		}
		if text != fmt.Sprintf("line %d", want) {
			t.Fatalf("%s: got %q, want line %d", path, text, want)
		}
		want++
	}
	must(t, scanner.Err())
	return want, end
}
