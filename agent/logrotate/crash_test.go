//go:build failpoints

package logrotate

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// lifeInDir is where the child of a crash test lives.
const lifeInDir = "BERTH_TEST_LOGROTATE_LIFE"

// TestLife is what the crash test kills: a log that is rotated until old ones
// go, and then removed.
func TestLife(t *testing.T) {
	dir := os.Getenv(lifeInDir)
	if dir == "" {
		t.Skip("run by TestKilledAtEachFailpoint")
	}
	w := newWriter(t, dir)
	r := rotator(t, w)
	for range 5 {
		w.write()
		must(t, r.rotate(t.Context(), w.at()))
	}
	must(t, os.WriteFile(removing(dir), nil, 0o600))
	must(t, r.Remove(t.Context(), w.log()))
}

func removing(dir string) string { return filepath.Join(dir, "removing") }

// TestKilledAtEachFailpoint kills that life at each pass of each failpoint. A
// container that runs on then loses no line, one that has ended has its log,
// and one that is removed leaves nothing.
func TestKilledAtEachFailpoint(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	if out, err := liveIn(t.TempDir(), "BERTH_FAILPOINT_TRACE="+trace); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hits, err := os.ReadFile(trace)
	must(t, err)
	times := map[string]int{}
	for name := range strings.Lines(string(hits)) {
		times[strings.TrimSpace(name)]++
	}
	if len(times) != 7 {
		t.Errorf("%d failpoints are passed: %v", len(times), times)
	}
	for _, name := range slices.Sorted(maps.Keys(times)) {
		for n := 1; n <= times[name]; n++ {
			t.Run(fmt.Sprintf("%s:%d", name, n), func(t *testing.T) {
				for then, test := range map[string]func(t *testing.T, w *writer, r *Rotator){
					"running": func(t *testing.T, w *writer, r *Rotator) {
						w.write()
						must(t, r.mend(t.Context(), w.at()))
						w.write()
						w.check(settings().MaxFiles)
						must(t, r.rotate(t.Context(), w.at()))
						w.check(settings().MaxFiles)
					},
					"ended": func(t *testing.T, w *writer, r *Rotator) {
						w.write()
						must(t, r.mend(t.Context(), w.ended()))
						w.check(settings().MaxFiles)
					},
					"removed": func(t *testing.T, w *writer, r *Rotator) {
						must(t, r.Remove(t.Context(), w.log()))
						if got := w.files(); got != nil {
							t.Errorf("left: %v", got)
						}
					},
				} {
					t.Run(then, func(t *testing.T) {
						dir := t.TempDir()
						out, err := liveIn(dir, fmt.Sprintf("BERTH_FAILPOINT=%s:%d", name, n))
						if exit, ok := err.(*exec.ExitError); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
							t.Fatalf("not killed: %v\n%s", err, out)
						}
						if _, err := os.Stat(removing(dir)); err == nil && then != "removed" {
							return // nothing is promised of what is being removed
						}
						w := newWriter(t, dir)
						test(t, w, rotator(t, w))
					})
				}
			})
		}
	}
}

func liveIn(dir, environment string) (string, error) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestLife$", "-test.count=1")
	cmd.Env = append(os.Environ(), lifeInDir+"="+dir, environment)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
