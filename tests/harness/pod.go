package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/images/report"
)

// PodTimeout bounds every wait for something of a pod. The machine may be busy
// with a dozen other pods, and with other things.
const PodTimeout = 3 * time.Minute

// WriteManifest puts a file into the manifest directory, complete or not at all.
func (n *Node) WriteManifest(file, content string) {
	n.t.Helper()
	path := filepath.Join(n.Config.ManifestDir, file)
	// The dot keeps the half-written file from being read.
	part := filepath.Join(n.Config.ManifestDir, "."+file+".part")
	n.write(part, []byte(content))
	if err := os.Rename(part, path); err != nil {
		n.t.Fatalf("%v", err)
	}
}

// RemoveManifest deletes a file from the manifest directory.
func (n *Node) RemoveManifest(file string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.Config.ManifestDir, file)); err != nil {
		n.t.Fatalf("%v", err)
	}
}

// RemoveAll deletes all manifests and waits until the node has no pods.
func (n *Node) RemoveAll() {
	n.t.Helper()
	files, err := os.ReadDir(n.Config.ManifestDir)
	if err != nil {
		n.t.Fatalf("%v", err)
	}
	for _, f := range files {
		n.RemoveManifest(f.Name())
	}
	Eventually(n.t, PodTimeout, "all pods gone", func() string {
		pods, err := n.TryPods()
		if err != nil {
			return err.Error()
		}
		if len(pods) == 0 {
			return ""
		}
		return fmt.Sprintf("%d left, such as %s", len(pods), Summary(pods[0]))
	})
}

// Pod is a handle on one pod of the node, for one test. It fails that test,
// not the one that owns the node.
type Pod struct {
	Namespace, Name string

	n *Node
	t TB
}

// Pod returns a handle; there need be no such pod (yet). When the test fails,
// what the node knows of the pod is printed.
func (n *Node) Pod(t TB, namespace, name string) *Pod {
	p := &Pod{Namespace: namespace, Name: name, n: n.For(t), t: t}
	t.Cleanup(func() {
		if t.Failed() && n.Running() {
			t.Logf("%s", p.dump())
		}
	})
	return p
}

// Apply writes a manifest that holds the pod default/name, and returns a handle.
func (n *Node) Apply(t TB, name, manifest string) *Pod {
	t.Helper()
	n.For(t).WriteManifest(name+".yaml", manifest)
	return n.Pod(t, "default", name)
}

// Delete removes the manifest that Apply wrote, and waits until the pod is gone.
func (p *Pod) Delete() {
	p.t.Helper()
	p.n.RemoveManifest(p.Name + ".yaml")
	p.WaitGone()
}

// Get returns the pod, if the node knows it.
func (p *Pod) Get() (corev1.Pod, bool, error) {
	pods, err := p.n.TryPods()
	if err != nil {
		return corev1.Pod{}, false, err
	}
	for _, pod := range pods {
		if pod.Namespace == p.Namespace && pod.Name == p.Name {
			return pod, true, nil
		}
	}
	return corev1.Pod{}, false, nil
}

// Wait waits until check returns an empty reason for the pod, and returns the
// pod as it was then.
func (p *Pod) Wait(what string, check func(corev1.Pod) (reason string)) corev1.Pod {
	p.t.Helper()
	var last corev1.Pod
	Eventually(p.t, PodTimeout, "pod "+p.Name+" "+what, func() string {
		pod, ok, err := p.Get()
		if err != nil {
			return err.Error()
		}
		if !ok {
			return "there is no such pod"
		}
		last = pod
		if reason := check(pod); reason != "" {
			return reason + "; " + Summary(pod)
		}
		return ""
	})
	return last
}

// WaitReady waits for the Ready condition.
func (p *Pod) WaitReady() corev1.Pod {
	p.t.Helper()
	return p.Wait("ready", func(pod corev1.Pod) string {
		if Ready(pod) {
			return ""
		}
		return "not ready"
	})
}

// WaitPhase waits for a phase.
func (p *Pod) WaitPhase(phase corev1.PodPhase) corev1.Pod {
	p.t.Helper()
	return p.Wait("phase "+string(phase), func(pod corev1.Pod) string {
		if pod.Status.Phase == phase {
			return ""
		}
		return "phase is " + string(pod.Status.Phase)
	})
}

// WaitGone waits until the node no longer knows the pod.
func (p *Pod) WaitGone() {
	p.t.Helper()
	Eventually(p.t, PodTimeout, "pod "+p.Name+" gone", func() string {
		pod, ok, err := p.Get()
		if err != nil {
			return err.Error()
		}
		if ok {
			return Summary(pod)
		}
		return ""
	})
}

// WaitWaiting waits until a container waits for a reason, and returns the message.
func (p *Pod) WaitWaiting(container, reason string) string {
	p.t.Helper()
	message := ""
	p.Wait("container "+container+" waiting: "+reason, func(pod corev1.Pod) string {
		s, ok := Container(pod, container)
		if !ok || s.State.Waiting == nil || s.State.Waiting.Reason != reason {
			return "it is not"
		}
		message = s.State.Waiting.Message
		return ""
	})
	return message
}

// WaitEvent waits for an event about the pod and returns its message.
func (p *Pod) WaitEvent(reason, text string) string {
	p.t.Helper()
	message := ""
	Eventually(p.t, PodTimeout, fmt.Sprintf("pod %s event %s with %q", p.Name, reason, text), func() string {
		var seen []string
		for _, e := range p.n.Events() {
			if e.InvolvedObject.Name != p.Name || e.InvolvedObject.Namespace != p.Namespace {
				continue
			}
			if e.Reason == reason && strings.Contains(e.Message, text) {
				message = e.Message
				return ""
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return "events: " + strings.Join(seen, " | ")
	})
	return message
}

// Logs returns what a container printed, by the command line.
func (p *Pod) Logs(container string, flags ...string) string {
	p.t.Helper()
	return p.cli(append([]string{"logs", p.Name, "-n", p.Namespace, "-c", container}, flags...)...)
}

// WaitLog waits until a container's log contains a text, and returns the log.
// It asks the API, since starting a program for each look would cost more than
// all else that a test does.
func (p *Pod) WaitLog(container, text string) string {
	p.t.Helper()
	var log string
	Eventually(p.t, PodTimeout, fmt.Sprintf("log of %s/%s with %q", p.Name, container, text), func() string {
		data, err := p.n.api.get("/containerLogs/" + p.Namespace + "/" + p.Name + "/" + container)
		if err != nil {
			return err.Error()
		}
		if log = string(data); strings.Contains(log, text) {
			return ""
		}
		return fmt.Sprintf("it is %.2000q", log)
	})
	return log
}

// Report returns what `testbox report` in a container printed.
func (p *Pod) Report(container string) report.Report {
	p.t.Helper()
	log := p.WaitLog(container, "\n")
	r, err := report.Parse([]byte(log))
	if err != nil {
		p.t.Fatalf("%v", err)
	}
	return r
}

// Exec runs a command in a container and returns its output; it must exit 0.
func (p *Pod) Exec(container string, command ...string) string {
	p.t.Helper()
	return p.cli(append([]string{"exec", p.Name, "-n", p.Namespace, "-c", container, "--"}, command...)...)
}

// TryExec runs a command in a container, however it ends.
func (p *Pod) TryExec(container string, command ...string) Result {
	p.t.Helper()
	return p.n.CLI(append([]string{"exec", p.Name, "-n", p.Namespace, "-c", container, "--"}, command...)...)
}

func (p *Pod) cli(args ...string) string {
	p.t.Helper()
	return p.n.MustCLI(args...)
}

// dump is everything that helps to see why a test of the pod failed.
func (p *Pod) dump() string {
	var b strings.Builder
	pod, ok, err := p.Get()
	if err != nil || !ok {
		fmt.Fprintf(&b, "pod %s: known %v, error %v\n%s", p.Name, ok, err, p.n.CLI("get", "pods").Stderr)
		return b.String()
	}
	fmt.Fprintf(&b, "%s\n%s\n", Summary(pod), p.n.Explain(p.Namespace, p.Name))
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		r := p.n.CLI("logs", p.Name, "-n", p.Namespace, "-c", s.Name, "--tail", "10")
		fmt.Fprintf(&b, "log of %s: %.2000s%s\n", s.Name, r.Stdout, r.Stderr)
	}
	for _, e := range p.n.Events() {
		if e.InvolvedObject.Name == p.Name {
			fmt.Fprintf(&b, "event %s %s: %s\n", e.Type, e.Reason, e.Message)
		}
	}
	return b.String()
}

// Ready tells whether the pod's Ready condition is true.
func Ready(pod corev1.Pod) bool { return Condition(pod, corev1.PodReady) == corev1.ConditionTrue }

// Condition returns a condition's status, or an empty one.
func Condition(pod corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range pod.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

// Container returns the status of a container of any kind.
func Container(pod corev1.Pod, name string) (corev1.ContainerStatus, bool) {
	all := slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses)
	i := slices.IndexFunc(all, func(s corev1.ContainerStatus) bool { return s.Name == name })
	if i < 0 {
		return corev1.ContainerStatus{}, false
	}
	return all[i], true
}

// Summary is a pod's status on one line.
func Summary(pod corev1.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s %s ip=%s", pod.Namespace, pod.Name, pod.Status.Phase, pod.Status.PodIP)
	if pod.Status.Reason != "" {
		fmt.Fprintf(&b, " %s: %s", pod.Status.Reason, pod.Status.Message)
	}
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		fmt.Fprintf(&b, " [%s restarts=%d ready=%v", s.Name, s.RestartCount, s.Ready)
		switch {
		case s.State.Running != nil:
			b.WriteString(" running]")
		case s.State.Terminated != nil:
			fmt.Fprintf(&b, " ended: %s %d %s]", s.State.Terminated.Reason, s.State.Terminated.ExitCode, s.State.Terminated.Message)
		case s.State.Waiting != nil:
			fmt.Fprintf(&b, " waiting: %s %s]", s.State.Waiting.Reason, s.State.Waiting.Message)
		default:
			b.WriteString(" no state]")
		}
	}
	return b.String()
}

// Node is the node that the pod is on, as the pod's test sees it.
func (p *Pod) Node() *Node { return p.n }
