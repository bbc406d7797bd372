// Package crash kills the daemon at every failpoint that one pod passes from
// its manifest to its removal, restarts it, and asserts that the pod ends in
// the wanted state with nothing leaked, no exit code lost, no container run
// twice and no log line lost.
package crash

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

// The pod has something of everything that leaves traces: volumes of several
// kinds, an init container, a host port, a shared process namespace, probes of
// which one is executed under a seccomp profile, a container that ends by itself, one that logs through the crash, and one that
// must be stopped.
const lines = 1500

var manifest = fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: crash}
data: {key: value}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  restartPolicy: Never
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: init
    image: %[1]s
    command: [sh, -c, 'echo init >> /out/runs']
    volumeMounts: [{name: out, mountPath: /out}]
  containers:
  - name: lines
    image: %[1]s
    command: [sh, -c, 'echo lines >> /out/runs; exec testbox lines -n %[2]d --interval 1ms']
    volumeMounts: [{name: out, mountPath: /out}]
  - name: short
    image: %[1]s
    command: [sh, -c, 'echo short >> /out/runs; exec testbox exit --after 200ms --code 7 --message done']
    volumeMounts: [{name: out, mountPath: /out}]
  - name: server
    image: %[1]s
    command: [sh, -c, 'echo server >> /out/runs; exec testbox serve --http :8080']
    ports: [{containerPort: 8080, hostPort: 30080}]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    livenessProbe: {exec: {command: [sh, -c, 'exit 0']}, periodSeconds: 1}
    securityContext: {seccompProfile: {type: RuntimeDefault}}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts:
    - {name: out, mountPath: /out}
    - {name: map, mountPath: /map}
    - {name: mem, mountPath: /mem}
    - {name: mem, mountPath: /sub, subPath: a/b}
  volumes:
  - {name: out, hostPath: {path: $OUT, type: DirectoryOrCreate}}
  - {name: map, configMap: {name: crash}}
  - {name: mem, emptyDir: {medium: Memory}}
`, harness.Box, lines)

// settleTimeout bounds the way to the settled state, with all its pulls,
// back-offs and probes, on a machine that runs several of these tests.
const settleTimeout = 4 * time.Minute

func TestDaemonKilledAtEachFailpoint(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	points := trace(t, manifest)
	if len(points) < 20 {
		t.Fatalf("only %d failpoints were passed: %v", len(points), points)
	}
	crashAtEach(t, points, manifest)
}

// A pod with a user namespace comes about differently up to its network.
func TestDaemonKilledWhileAPodGetsAUserNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	manifest := strings.Replace(manifest, "shareProcessNamespace: true", "hostUsers: false", 1)
	names := []string{
		"cri/init-started", "cri/ns-pinned-user", "cri/ns-pinned-net", "cri/ns-pinned-uts", "cri/init-ended",
		"cri/network-up", "cri/lowers-mapped", "cri/ns-unpinned",
	}
	points := slices.DeleteFunc(trace(t, manifest), func(p point) bool { return !slices.Contains(names, p.name) })
	for _, name := range names {
		if !slices.ContainsFunc(points, func(p point) bool { return p.name == name }) {
			t.Errorf("%s was not passed", name)
		}
	}
	crashAtEach(t, points, manifest)
}

func crashAtEach(t *testing.T, points []point, manifest string) {
	t.Logf("%d failpoints to die at", len(points))
	t.Run("at", func(t *testing.T) {
		for _, p := range points {
			t.Run(p.test(), func(t *testing.T) {
				t.Parallel()
				crashAt(t, p, manifest)
			})
		}
	})
}

// point is the n-th passing of a failpoint.
type point struct {
	name string
	n    int
}

func (p point) String() string { return fmt.Sprintf("%s:%d", p.name, p.n) }

// test is the point as a name that go test -run does not take apart.
func (p point) test() string { return strings.ReplaceAll(p.String(), "/", ".") }

// trace runs the pod once without a crash, and returns the failpoints on its way.
func trace(t *testing.T, manifest string) []point {
	t.Helper()
	n := newNode(t, manifest)
	file := n.Dir + "/trace"
	n.Start("BERTH_FAILPOINT_TRACE=" + file)
	waitSettled(t, n)
	checkSettled(t, n)
	n.RemoveAll()
	n.Stop()
	n.CheckNothingLeft()
	return passed(t, file)
}

// passed returns the first and the last passing of each failpoint in a trace.
func passed(t *testing.T, file string) []point {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	count := map[string]int{}
	for s := bufio.NewScanner(f); s.Scan(); {
		count[s.Text()]++
	}
	var points []point
	for name, n := range count {
		points = append(points, point{name, 1})
		if n > 1 {
			points = append(points, point{name, n})
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.n, b.n))
	})
	return points
}

func crashAt(t *testing.T, p point, manifest string) {
	n := newNode(t, manifest)
	n.Launch("BERTH_FAILPOINT=" + p.String())
	removed := false
	died := waitDeath(t, n, func() bool { return settled(n) == "" })
	if died == nobody {
		// What is settled without a crash, trace has looked at. Here the daemon
		// may die at any moment.
		n.RemoveManifest("crash.yaml")
		removed = true
		died = waitDeath(t, n, func() bool { return gone(n) })
	}
	switch died {
	case nobody:
		if p.n == 1 {
			t.Fatalf("the pod came and went without passing %s", p.name)
		}
		// How often a failpoint is passed depends on timing a little.
		t.Logf("not passed %d times this time", p.n)
		n.CheckNothingLeft()
		return
	case theShim:
		n.RemoveAll()
		n.CheckNothingLeft()
		shimCrashAt(t, p, manifest)
		return
	}
	running := n.Containers()
	// What ends now ends without a daemon to see it.
	time.Sleep(400 * time.Millisecond)
	n.Start()
	if !removed {
		waitSettled(t, n)
		checkSettled(t, n)
		checkUntouched(t, n, running)
	}
	n.RemoveAll()
	n.CheckNothingLeft()
	if removed {
		checkRuns(t, n)
	}
}

// shimCrashAt kills the shim instead of the daemon. What it knew dies with it,
// and so do the pod's containers: a pod that may restart them is served by a
// new sandbox.
func shimCrashAt(t *testing.T, p point, manifest string) {
	n := newNode(t, strings.Replace(manifest, "restartPolicy: Never", "restartPolicy: Always", 1))
	n.Start("BERTH_FAILPOINT=" + p.String())
	ready := func() string {
		pods, err := n.TryPods()
		if err != nil || len(pods) != 1 {
			return fmt.Sprintf("%d pods, %v", len(pods), err)
		}
		if s, _ := harness.Container(pods[0], "server"); !s.Ready {
			return harness.Summary(pods[0])
		}
		return ""
	}
	waitDeath(t, n, func() bool { return ready() == "" })
	// The failpoint is in the daemon's environment, and so in the next shim's.
	n.Kill()
	n.Start()
	n.Pod(t, "default", "crash")
	harness.Eventually(t, settleTimeout, "the server is ready again", ready)
	n.RemoveAll()
	n.CheckNothingLeft()
}

func newNode(t *testing.T, manifest string) *harness.Node {
	t.Helper()
	n := harness.NewNode(t, harness.Options{Bin: harness.FailpointBin(t)})
	n.WriteManifest("crash.yaml", strings.ReplaceAll(manifest, "$OUT", n.Dir+"/out"))
	return n
}

// checkUntouched asserts that a server that ran when the daemon died was not
// started anew.
func checkUntouched(t *testing.T, n *harness.Node, before []harness.Process) {
	t.Helper()
	after := n.Containers()
	for _, p := range before {
		// Of the shell that becomes the server by exec, its arguments change.
		same := func(q harness.Process) bool { return q.Pid == p.Pid && q.Start == p.Start }
		if strings.Contains(p.Args, "testbox serve") && !slices.ContainsFunc(after, same) {
			t.Errorf("the server, process %d, did not outlive the daemon", p.Pid)
		}
	}
}

type victim string

const (
	nobody    victim = "nobody"
	theDaemon victim = "the daemon"
	theShim   victim = "the shim"
)

// waitDeath waits until a process has died at its failpoint, or all is done.
func waitDeath(t *testing.T, n *harness.Node, done func() bool) victim {
	t.Helper()
	for deadline := time.Now().Add(settleTimeout); time.Now().Before(deadline); {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		sig, err := n.WaitExit(ctx)
		cancel()
		if err == nil {
			if sig != syscall.SIGKILL {
				t.Fatalf("the daemon ended by itself (signal %v):\n%s", sig, n.LogTail(40))
			}
			return theDaemon
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if done() {
			return nobody
		}
		log, err := os.ReadFile(n.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), "shim ended by itself") {
			return theShim
		}
	}
	t.Fatalf("neither crashed nor done after %v: %s\n%s", settleTimeout, settled(n), n.LogTail(40))
	return nobody
}

func waitSettled(t *testing.T, n *harness.Node) {
	t.Helper()
	// The handle prints what the node knows when the test fails.
	n.Pod(t, "default", "crash")
	harness.Eventually(t, settleTimeout, "the pod is as wanted", func() string { return settled(n) })
}

// settled returns what is missing until the pod is as its manifest wants it:
// two containers have ended as they should, and the server is ready.
func settled(n *harness.Node) string {
	pods, err := n.TryPods()
	if err != nil {
		return err.Error()
	}
	if len(pods) != 1 {
		return fmt.Sprintf("%d pods", len(pods))
	}
	pod := pods[0]
	for _, name := range []string{"init", "lines", "short"} {
		if s, _ := harness.Container(pod, name); s.State.Terminated == nil {
			return name + " has not ended; " + harness.Summary(pod)
		}
	}
	if s, _ := harness.Container(pod, "server"); !s.Ready {
		return "the server is not ready; " + harness.Summary(pod)
	}
	return ""
}

func gone(n *harness.Node) bool {
	pods, err := n.TryPods()
	return err == nil && len(pods) == 0
}

// checkSettled asserts what must be true however often the daemon died.
func checkSettled(t *testing.T, n *harness.Node) {
	t.Helper()
	pods, err := n.TryPods()
	if err != nil || len(pods) != 1 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	for name, want := range map[string]corev1.ContainerStateTerminated{
		"init":  {ExitCode: 0, Reason: "Completed"},
		"lines": {ExitCode: 0, Reason: "Completed"},
		"short": {ExitCode: 7, Reason: "Error", Message: "done"},
	} {
		s, _ := harness.Container(pods[0], name)
		got := s.State.Terminated
		if got.ExitCode != want.ExitCode || got.Reason != want.Reason || got.Message != want.Message {
			t.Errorf("%s ended with %d %s %q, want %d %s %q", name, got.ExitCode, got.Reason, got.Message, want.ExitCode, want.Reason, want.Message)
		}
	}
	checkRuns(t, n)
	checkLog(t, n)
}

// checkRuns asserts that each container ran once.
func checkRuns(t *testing.T, n *harness.Node) {
	t.Helper()
	checkRan(t, n.Dir+"/out/runs", "init lines server short")
}

// checkRan looks at the word that each container leaves on the host when it
// starts.
func checkRan(t *testing.T, file, want string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	runs := strings.Fields(string(data))
	slices.Sort(runs)
	if got := strings.Join(runs, " "); got != want {
		t.Errorf("containers that ran: got %q, want %q", got, want)
	}
}

// checkLog asserts that all numbered lines are there once and in order.
func checkLog(t *testing.T, n *harness.Node) {
	t.Helper()
	r := n.For(t).CLI("logs", "crash", "-c", "lines")
	next := 1
	for line := range strings.Lines(r.Stdout) {
		if want := fmt.Sprintf("line %d\n", next); next <= lines && line != want {
			t.Fatalf("log: got %q where %q should be", line, want)
		}
		next++
	}
	if next != lines+2 || !strings.HasSuffix(r.Stdout, fmt.Sprintf("end %d\n", lines)) {
		t.Errorf("log: %d lines, want %d and an end; exit status %d %s", next-1, lines, r.Code, r.Stderr)
	}
}
