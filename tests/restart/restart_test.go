// Package restart kills the daemon of a node full of pods, and asserts that it
// is back in control within a second without having touched any of them.
package restart

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

const pods = 100

// The goal is a second. The bound leaves room for a machine that is busy with
// other things; what was measured is printed.
const bound = 5 * time.Second

func TestHundredPodsOutliveTheDaemon(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.StartNode(t, harness.Options{})
	empty := n.OpenFiles()
	var b strings.Builder
	for i := range pods {
		fmt.Fprintf(&b, `---
apiVersion: v1
kind: Pod
metadata: {name: pod-%03d}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - {name: main, image: %s, command: [sh, -c, 'trap "exit 0" TERM; echo started; sleep 100000 & wait']}
`, i, harness.Busybox)
	}
	n.WriteManifest("pods.yaml", b.String())
	start := time.Now()
	harness.Eventually(t, 6*time.Minute, "all pods ready", func() string { return allReady(n) })
	t.Logf("%d pods ready after %.1f s", pods, time.Since(start).Seconds())

	before := status(n)
	processes := map[harness.Process]bool{}
	// A container has started before its program has: the shell, and its child.
	harness.Eventually(t, harness.PodTimeout, "all containers run their programs", func() string {
		clear(processes)
		for _, p := range n.Containers() {
			if strings.HasPrefix(p.Args, "sh -c ") || strings.HasPrefix(p.Args, "sleep ") {
				processes[p] = true
			}
		}
		sleeping := 0
		for p := range processes {
			if strings.HasPrefix(p.Args, "sleep ") {
				sleeping++
			}
		}
		if sleeping != pods || len(processes) != 2*pods {
			return fmt.Sprintf("%d processes, %d of them children", len(processes), sleeping)
		}
		return ""
	})

	n.Kill()
	start = time.Now()
	n.Start()
	control := time.Since(start)
	if reason := allReady(n); reason != "" {
		t.Errorf("when the daemon is in control again: %s", reason)
	}
	t.Logf("in control again after %d ms (goal: 1000)", control.Milliseconds())
	if control > bound {
		t.Errorf("in control again after %v, want less than %v", control, bound)
	}

	// Whatever it does wrong it will have done by then.
	time.Sleep(2 * time.Second)
	after := map[harness.Process]bool{}
	for _, p := range n.Containers() {
		after[p] = true
	}
	for p := range processes {
		if !after[p] {
			t.Errorf("process %d (%s) is gone", p.Pid, p.Args)
		}
	}
	for p := range after {
		if !processes[p] {
			t.Errorf("process %d (%s) is new", p.Pid, p.Args)
		}
	}
	now := status(n)
	for name, was := range before {
		if now[name] != was {
			t.Errorf("%s: was %s, is %s", name, was, now[name])
		}
	}

	start = time.Now()
	n.RemoveAll()
	t.Logf("%d pods gone after %.1f s", pods, time.Since(start).Seconds())
	n.CheckNothingLeft()
	// Connections of ours and of its own to its sockets come and go.
	harness.Eventually(t, harness.PodTimeout, "the daemon's files are closed", func() string {
		if files := n.OpenFiles(); files > empty+20 {
			return fmt.Sprintf("it has %d open without pods, %d before it had any", files, empty)
		}
		return ""
	})
}

func allReady(n *harness.Node) string {
	list, err := n.TryPods()
	if err != nil {
		return err.Error()
	}
	ready := 0
	var last corev1.Pod
	for _, p := range list {
		if harness.Ready(p) {
			ready++
		} else {
			last = p
		}
	}
	if ready == pods {
		return ""
	}
	return fmt.Sprintf("%d of %d pods are ready; one that is not: %s", ready, pods, harness.Summary(last))
}

// status is what must be the same before and after.
func status(n *harness.Node) map[string]string {
	out := map[string]string{}
	for _, p := range n.Pods() {
		s, _ := harness.Container(p, "main")
		started := ""
		if s.State.Running != nil {
			started = s.State.Running.StartedAt.UTC().Format(time.RFC3339)
		}
		out[p.Name] = fmt.Sprintf("uid %s ip %s container %s since %s restarts %d", p.UID, p.Status.PodIP, s.ContainerID, started, s.RestartCount)
	}
	return out
}
