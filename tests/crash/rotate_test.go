package crash

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/tests/harness"
)

// A container logs more than the 10 MiB from which its log is rotated, and goes
// on while the daemon is dead.
const rotatedLines = 4000

var logger = fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: logger}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: %s
    command: [sh, -c, 'testbox lines -n %d --width 4000 --interval 2ms; sleep 1000']
`, harness.Box, rotatedLines)

func TestDaemonKilledWhileALogIsRotated(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	for _, p := range []point{{"agent/log-renamed", 1}, {"agent/log-reopened", 1}} {
		t.Run(p.test(), func(t *testing.T) {
			t.Parallel()
			n := harness.NewNode(t, harness.Options{Bin: harness.FailpointBin(t)})
			n.WriteManifest("logger.yaml", logger)
			n.Launch("BERTH_FAILPOINT=" + p.String())
			if died := waitDeath(t, n, func() bool { return false }); died != theDaemon {
				t.Fatalf("%s died", died)
			}
			time.Sleep(400 * time.Millisecond)
			n.Start()
			harness.Eventually(t, settleTimeout, "all lines are there", func() string {
				files, err := filepath.Glob(filepath.Join(n.Config.PodLogsDir, "default_logger_*/main/0.log*"))
				if err != nil || len(files) < 2 {
					return fmt.Sprintf("%v, %v", files, err)
				}
				slices.Sort(files)
				next := 1
				for _, file := range append(files[1:], files[0]) {
					data, err := os.ReadFile(file)
					if err != nil {
						return err.Error()
					}
					for line := range strings.Lines(string(data)) {
						if !strings.HasSuffix(line, "\n") {
							break // it is being written
						}
						if want := fmt.Sprintf(" line %d.", next); next <= rotatedLines && !strings.Contains(line, want) {
							t.Fatalf("%s: %.80q where%s should be", file, line, want)
						}
						next++
					}
				}
				if next != rotatedLines+2 {
					return fmt.Sprintf("%d lines", next-1)
				}
				return ""
			})
			n.RemoveAll()
			n.CheckNothingLeft()
		})
	}
}
