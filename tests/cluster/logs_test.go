package cluster_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
)

const loggedLines = 9000

// writer logs numbered lines of 1000 bytes, 9 MB in all, for some 20 s: time
// enough for more than two looks at its log, late ones too.
const writer = `apiVersion: v1
kind: Pod
metadata: {name: writer-%[1]s}
spec:
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: registry.test/box:1
    command: [sh, -c, 'testbox lines -n %[2]d --width 1000 --interval 2ms; sleep 100000']
---
`

// The stock node says what must come of it.
func TestLogsAreRotatedAsOnAStockNode(t *testing.T) {
	cluster.Need(t, cluster.Berth, cluster.Stock)
	// 3 s is the shortest interval there may be.
	limits := map[string]any{"containerLogMaxSize": "1Mi", "containerLogMaxFiles": 20, "containerLogMonitorInterval": "3s"}
	c := cluster.New(t, cluster.Config{NoDNS: true, Nodes: []cluster.NodeConfig{{Kind: cluster.Berth, Kubelet: limits}, {Kind: cluster.Stock, Kubelet: limits}}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	manifest := t.TempDir() + "/pods.yaml"
	if err := os.WriteFile(manifest, []byte(fmt.Sprintf(writer, "n1", loggedLines)+fmt.Sprintf(writer, "n2", loggedLines)), 0o644); err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		out, err := c.Kubectl(ctx, args...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	kubectl("apply", "-f", manifest)
	kubectl("wait", "--for=condition=Ready", "--timeout=3m", "pod/writer-n1", "pod/writer-n2")
	followed, err := os.Create(filepath.Join(t.TempDir(), "followed"))
	if err != nil {
		t.Fatal(err)
	}
	defer followed.Close()
	follower := c.Command(ctx, "kubectl", "logs", "-f", "writer-n1")
	follower.Stdout = followed
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = follower.Wait() // it was killed
	}()
	shapes := map[string]string{}
	for _, n := range c.Nodes {
		harness.Eventually(t, 3*time.Minute, "all that "+n.Name+" logs is there, and rotated", func() string {
			files := rotated(t, n)
			var names []string
			for _, f := range files {
				names = append(names, shape(f))
			}
			// All that was rotated but the last is compressed.
			if len(files) < 3 || strings.HasSuffix(files[len(files)-2], ".gz") || !strings.HasSuffix(files[len(files)-3], ".gz") {
				return strings.Join(files, " ")
			}
			lines := logged(t, files)
			if !slices.Equal(files, rotated(t, n)) {
				return "rotated while it was read"
			}
			next := 1
			for _, line := range lines {
				if want := fmt.Sprintf("line %d", next); next <= loggedLines && strings.TrimRight(line, ".") != want {
					t.Fatalf("%s: %.40q where %q should be", n.Name, line, want)
				}
				next++
			}
			if next != loggedLines+2 { // and how many they were
				return fmt.Sprintf("%d lines", next-1)
			}
			slices.Sort(names)
			shapes[n.Name] = strings.Join(slices.Compact(names), " ")
			return ""
		})
	}
	if shapes["n1"] != shapes["n2"] {
		t.Errorf("files are named %s, on a stock node %s", shapes["n1"], shapes["n2"])
	}
	harness.Eventually(t, 2*time.Minute, "who follows the log has seen all of it", func() string {
		data, err := os.ReadFile(followed.Name())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(string(data), "\n"); got != loggedLines+1 {
			return fmt.Sprintf("%d lines", got)
		}
		return ""
	})
	kubectl("delete", "-f", manifest)
	c.CheckNothingLeft(t)
}

// rotated are the files of the log of a node's writer, the oldest first, without
// one that is being compressed into.
func rotated(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.Dir, "pods/*/app/0.log?*"))
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".tmp") })
	slices.Sort(files)
	current, err := filepath.Glob(filepath.Join(n.Dir, "pods/*/app/0.log"))
	if err != nil {
		t.Fatal(err)
	}
	return append(files, current...)
}

var digit = regexp.MustCompile("[0-9]")

// shape is a file's name whenever it was made, and its mode.
func shape(file string) string {
	info, err := os.Stat(file)
	if err != nil {
		return err.Error()
	}
	return digit.ReplaceAllString(filepath.Base(file), "9") + " " + info.Mode().String()
}

// logged is what is in the files, line by line, without the runtime's part and
// without a line that is being written.
func logged(t *testing.T, files []string) (lines []string) {
	t.Helper()
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil // rotated meanwhile
		}
		var in io.Reader = f
		if strings.HasSuffix(file, ".gz") {
			if in, err = gzip.NewReader(f); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
		}
		data, err := io.ReadAll(in)
		f.Close()
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for line := range strings.Lines(string(data)) {
			if !strings.HasSuffix(line, "\n") {
				break
			}
			parts := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
			if len(parts) != 4 || parts[2] != "F" {
				t.Fatalf("%s: line %q", file, line)
			}
			lines = append(lines, parts[3])
		}
	}
	return lines
}
