package pods

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestWorkloads(t *testing.T) {
	n := startNode(t, harness.Options{})
	defer func() {
		n.RemoveAll()
		n.CheckNothingLeft()
	}()
	t.Run("a deployment has its replicas, and scaling leaves the others alone", func(t *testing.T) {
		n := n.For(t)
		deploy := func(replicas int, args string) {
			n.WriteManifest("web.yaml", expand(n, fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: $BOX, args: [testbox, pause, %s]}
`, replicas, args)))
		}
		deploy(2, "one")
		first := waitPods(t, n, "app", "web", 2)
		deploy(3, "one")
		scaled := waitPods(t, n, "app", "web", 3)
		for _, p := range first {
			equal(t, p.Name+" is still there", slices.ContainsFunc(scaled, func(q corev1.Pod) bool { return q.UID == p.UID }), true)
		}
		deploy(1, "two")
		harness.Eventually(t, harness.PodTimeout, "one new pod", func() string {
			pods := labelled(n, "app", "web")
			if len(pods) != 1 || !harness.Ready(pods[0]) || slices.ContainsFunc(scaled, func(q corev1.Pod) bool { return q.UID == pods[0].UID }) {
				return fmt.Sprintf("%d pods", len(pods))
			}
			return ""
		})
		n.RemoveManifest("web.yaml")
		waitPods(t, n, "app", "web", 0)
	})
	t.Run("a daemon set has one pod", func(t *testing.T) {
		n := n.For(t)
		n.WriteManifest("agent.yaml", expand(n, `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {containers: [{name: main, image: $BOX}]}
`))
		waitPods(t, n, "app", "agent", 1)
		n.RemoveManifest("agent.yaml")
		waitPods(t, n, "app", "agent", 0)
	})
	t.Run("an indexed job tells its pods their index, and they complete", func(t *testing.T) {
		n := n.For(t)
		n.WriteManifest("job.yaml", expand(n, `
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  completions: 2
  parallelism: 2
  completionMode: Indexed
  template:
    metadata: {labels: {app: job}}
    spec:
      restartPolicy: Never
      containers: [{name: main, image: $BOX, command: [sh, -c, 'echo index $JOB_COMPLETION_INDEX']}]
`))
		harness.Eventually(t, harness.PodTimeout, "two completed pods", func() string {
			done := 0
			for _, p := range labelled(n, "app", "job") {
				if p.Status.Phase == corev1.PodSucceeded {
					done++
				}
			}
			if done != 2 {
				return fmt.Sprintf("%d are", done)
			}
			return ""
		})
		for i, name := range []string{"job-0", "job-1"} {
			trimmed(t, name, n.Pod(t, "default", name).Logs("main"), fmt.Sprintf("index %d", i))
		}
		n.RemoveManifest("job.yaml")
		waitPods(t, n, "app", "job", 0)
	})
}

func TestManifestsAreFollowedLive(t *testing.T) {
	n := startNode(t, harness.Options{})
	t.Run("a changed pod is replaced, the old one ends first", func(t *testing.T) {
		n := n.For(t)
		spec := func(text string) string {
			return manifest(n, "changing", `
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - {name: main, image: $BOX, command: [testbox, term, --print, "`+text+`"], ports: [{containerPort: 1, hostPort: 30001}]}
`)
		}
		p := n.Apply(t, "changing", spec("one"))
		first := p.WaitReady()
		n.WriteManifest("changing.yaml", spec("two"))
		second := p.Wait("replaced", func(pod corev1.Pod) string {
			if pod.UID == first.UID || !harness.Ready(pod) {
				return "not yet"
			}
			return ""
		})
		equal(t, "restarts", second.Status.ContainerStatuses[0].RestartCount, 0)
		n.WriteManifest("changing.yaml", "# nothing here for now\n")
		p.WaitGone()
		n.RemoveManifest("changing.yaml")
	})
	t.Run("several documents, JSON and lists in one file are all read", func(t *testing.T) {
		n := n.For(t)
		n.WriteManifest("several.yaml", manifest(n, "several-a", "\nspec: {containers: [{name: main, image: $BOX}]}\n---\n")+
			manifest(n, "several-b", "\n  namespace: other\nspec: {containers: [{name: main, image: $BOX}]}\n"))
		n.WriteManifest("json.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"json"},"spec":{"containers":[{"name":"main","image":"`+harness.Box+`"}]}}]}`)
		n.Pod(t, "default", "several-a").WaitReady()
		n.Pod(t, "other", "several-b").WaitReady()
		n.Pod(t, "default", "json").WaitReady()
	})
	t.Run("hidden files and leftovers of editors are not read", func(t *testing.T) {
		n := n.For(t)
		for _, file := range []string{".hidden.yaml", "backup.yaml~", "#lock.yaml#"} {
			n.WriteManifest(file, manifest(n, "unread", "\nspec: {containers: [{name: main, image: $BOX}]}\n"))
		}
		n.WriteManifest("read.yaml", manifest(n, "read", "\nspec: {containers: [{name: main, image: $BOX}]}\n"))
		n.Pod(t, "default", "read").WaitReady()
		if _, there, _ := n.Pod(t, "default", "unread").Get(); there {
			t.Error("it was read")
		}
	})
	n.RemoveAll()
	n.CheckNothingLeft()
}

func TestCommandLine(t *testing.T) {
	n := startNode(t, harness.Options{})
	p := n.Apply(t, "cli", manifest(n, "cli", `
spec:
  containers:
  - {name: main, image: $BOX, command: [sh, -c, 'echo out; echo err >&2; printf %20000s x; echo; echo end; exec testbox pause']}
  - {name: side, image: $BOX, command: [sh, -c, 'testbox lines -n 50; exec testbox pause']}
`))
	p.WaitReady()
	p.WaitLog("main", "end")
	p.WaitLog("main", "err") // from another stream
	p.WaitLog("side", "end 50")
	p.WaitEvent("Started", "")
	t.Run("get pods prints a table, JSON and YAML", func(t *testing.T) {
		n := n.For(t)
		table := n.MustCLI("get", "pods", "-o", "wide")
		contains(t, "header", table, "NAME")
		contains(t, "row", table, "cli")
		var list corev1.PodList
		if err := json.Unmarshal([]byte(n.MustCLI("get", "pods", "-o", "json")), &list); err != nil {
			t.Fatal(err)
		}
		equal(t, "pods in the JSON", len(list.Items), 1)
		contains(t, "YAML", n.MustCLI("get", "pods", "cli", "-o", "yaml"), "podIP: "+list.Items[0].Status.PodIP)
	})
	t.Run("get images and events", func(t *testing.T) {
		n := n.For(t)
		contains(t, "images", n.MustCLI("get", "images"), "registry.test/box")
		contains(t, "events", n.MustCLI("get", "events"), "Started")
	})
	t.Run("logs joins long lines, takes tails, times and both streams", func(t *testing.T) {
		n := n.For(t)
		log := p.Logs("main")
		contains(t, "stdout", log, "out\n")
		contains(t, "stderr", log, "err\n")
		equal(t, "the long line is whole", strings.Contains(log, strings.Repeat(" ", 19999)+"x\n"), true)
		trimmed(t, "tail", p.Logs("side", "--tail", "2"), "line 50\nend 50")
		stamp, _, _ := strings.Cut(p.Logs("side", "--tail", "1", "--timestamps"), " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Errorf("timestamp %q: %v", stamp, err)
		}
		time.Sleep(1500 * time.Millisecond)
		equal(t, "since", n.MustCLI("logs", "cli", "-c", "side", "--since", "1s"), "")
		for i, line := range strings.Split(strings.TrimSpace(p.Logs("side")), "\n")[:50] {
			equal(t, "line", line, fmt.Sprintf("line %d", i+1))
		}
	})
	t.Run("exec passes arguments, standard input and the exit code", func(t *testing.T) {
		n := n.For(t)
		trimmed(t, "arguments", p.Exec("main", "echo", "a b", "$HOME"), "a b $HOME")
		equal(t, "exit code", p.TryExec("main", "sh", "-c", "exit 7").Code, 7)
		r := n.CLIWithInput(strings.NewReader("three\nlines\nhere\n"), "exec", "-i", "cli", "-c", "main", "--", "wc", "-l")
		trimmed(t, "standard input", r.Stdout, "3")
		r = p.TryExec("main", "sh", "-c", "echo o; echo e >&2")
		equal(t, "streams", r.Stdout+"|"+r.Stderr, "o\n|e\n")
		r = p.TryExec("main", "no-such-program")
		contains(t, "what is missing", r.Stderr, "no-such-program")
	})
	t.Run("explain shows the pod's own timeline", func(t *testing.T) {
		n := n.For(t)
		text := n.MustCLI("explain", "pod", "cli")
		for _, step := range []string{"sandbox", "create", "start", "ready"} {
			contains(t, "timeline", strings.ToLower(text), step)
		}
	})
	t.Run("unknown pods and containers are errors that help", func(t *testing.T) {
		n := n.For(t)
		r := n.CLI("logs", "nobody")
		equal(t, "exit code", r.Code, 1)
		contains(t, "message", r.Stderr, `"nobody"`)
		contains(t, "message", n.CLI("logs", "cli", "-c", "nothing").Stderr, "nothing")
		contains(t, "message", n.CLI("logs", "cli").Stderr, "side") // which one of two is meant
	})
	t.Run("run, stop and rm manage a pod without a file", func(t *testing.T) {
		n := n.For(t)
		n.MustCLI("run", harness.Box, "--name", "quick", "--", "testbox", "pause")
		q := n.Pod(t, "default", "quick")
		q.WaitReady()
		n.MustCLI("stop", "quick")
		n.MustCLI("rm", "quick")
		q.WaitGone()
	})
	t.Run("images are pulled, loaded, listed and removed", func(t *testing.T) {
		n := n.For(t)
		n.MustCLI("image", "pull", harness.Busybox)
		contains(t, "list", n.MustCLI("image", "ls"), "registry.test/busybox")
		n.MustCLI("image", "rm", harness.Busybox)
		equal(t, "still listed", strings.Contains(n.MustCLI("image", "ls"), "registry.test/busybox"), false)
		archive := n.Dir + "/busybox.tar"
		saveBusybox(t, n, archive)
		n.MustCLI("image", "load", archive)
		contains(t, "list", n.MustCLI("image", "ls"), "registry.test/loaded")
		n.MustCLI("image", "rm", "registry.test/loaded:1")
	})
	t.Run("version and doctor", func(t *testing.T) {
		n := n.For(t)
		if strings.TrimSpace(n.MustCLI("version")) == "" {
			t.Error("no version")
		}
		if r := n.CLI("doctor"); r.Stdout == "" {
			t.Errorf("doctor says nothing: %s", r.Stderr)
		}
	})
	n.RemoveAll()
	n.CheckNothingLeft()
}

func labelled(n *harness.Node, key, value string) []corev1.Pod {
	return slices.DeleteFunc(n.Pods(), func(p corev1.Pod) bool { return p.Labels[key] != value })
}

// waitPods waits until exactly so many pods have the label and all are ready.
func waitPods(t *testing.T, n *harness.Node, key, value string, count int) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	harness.Eventually(t, harness.PodTimeout, fmt.Sprintf("%d ready pods with %s=%s", count, key, value), func() string {
		pods = labelled(n, key, value)
		ready := 0
		for _, p := range pods {
			if harness.Ready(p) {
				ready++
			}
		}
		if len(pods) != count || ready != count {
			return fmt.Sprintf("%d, %d of them ready", len(pods), ready)
		}
		return ""
	})
	return pods
}
