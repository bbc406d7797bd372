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

// TestAFloodOfLinesIsInTheLogOnce has a container write a million lines while
// its log is rotated and the daemon is killed and started.
func TestAFloodOfLinesIsInTheLogOnce(t *testing.T) {
	const lines = 1_000_000
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("flood")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "lines", "-n", fmt.Sprint(lines), "-interval", "0")
	id := r.run(sandbox, pod, config)
	path := filepath.Join(pod.GetLogDirectory(), config.GetLogPath())
	var rotated []string
	rotate := func() {
		rotated = append(rotated, fmt.Sprintf("%s.%d", path, len(rotated)))
		must(t, os.Rename(path, rotated[len(rotated)-1]))
		if _, err := r.ReopenContainerLog(r.ctx(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			if r.status(id).State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Fatal(err)
			}
			// It has ended meanwhile, in the file that was renamed.
		}
	}
	kills := 0
	for r.status(id).State == runtimeapi.ContainerState_CONTAINER_RUNNING {
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
	st := r.waitExit(id)
	equal(t, "exit code", st.ExitCode, 0)
	equal(t, "kills of the daemon", kills, 2)
	if _, err := os.Stat(path); err == nil {
		rotated = append(rotated, path)
	}
	want := 1
	for _, file := range rotated {
		want = checkLines(t, file, want)
	}
	equal(t, "lines", want-1, lines)
	t.Logf("%d files", len(rotated))
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// checkLines reads a log that goes on with line number want, and returns the
// number that comes after it.
func checkLines(t *testing.T, path string, want int) int {
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
			continue
		}
		if text != fmt.Sprintf("line %d", want) {
			t.Fatalf("%s: got %q, want line %d", path, text, want)
		}
		want++
	}
	must(t, scanner.Err())
	return want
}
