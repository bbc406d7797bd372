package pods

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

// TestResources looks at cgroups, and is also run on a pure cgroup v2 host by
// tests/vm.
func TestResources(t *testing.T) {
	run(t, []scenario{
		{"a guaranteed pod has its limits on the container and on the pod", "guaranteed", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, pause, guaranteed-main]
    resources: {limits: {cpu: 250m, memory: 64Mi}}
  - name: second
    image: $BOX
    resources: {limits: {cpu: 500m, memory: 32Mi}}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitReady()
			equal(t, "class", pod.Status.QOSClass, corev1.PodQOSGuaranteed)
			g := groupOf(t, hostPid(t, p.Node(), "guaranteed-main"))
			equal(t, "container", g.limits(t, 0), limits{memory: 64 << 20, quota: 25000, shares: g.shares(256, 35)})
			// On cgroup v2 runc and the kubelet turn shares into weights by
			// different formulas: so does each level here.
			equal(t, "pod", g.limits(t, 1), limits{memory: 96 << 20, quota: 75000, shares: g.shares(768, 30)})
			checkPath(t, g, pod, "")
		}},
		{"a burstable pod has shares of its requests and limits where it has them", "burstable", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, pause, burstable-main]
    resources: {requests: {cpu: 100m, memory: 16Mi}, limits: {memory: 48Mi}}
  - {name: second, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitReady()
			equal(t, "class", pod.Status.QOSClass, corev1.PodQOSBurstable)
			g := groupOf(t, hostPid(t, p.Node(), "burstable-main"))
			equal(t, "container", g.limits(t, 0), limits{memory: 48 << 20, quota: -1, shares: g.shares(102, 17)})
			equal(t, "pod", g.limits(t, 1), limits{memory: -1, quota: -1, shares: g.shares(102, 4)})
			checkPath(t, g, pod, "burstable")
		}},
		{"a best-effort pod has the least shares", "besteffort", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, pause, besteffort-main]}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitReady()
			equal(t, "class", pod.Status.QOSClass, corev1.PodQOSBestEffort)
			g := groupOf(t, hostPid(t, p.Node(), "besteffort-main"))
			equal(t, "container", g.limits(t, 0), limits{memory: -1, quota: -1, shares: g.shares(2, 1)})
			equal(t, "class", g.limits(t, 2).shares, g.shares(2, 1))
			checkPath(t, g, pod, "besteffort")
		}},
		{"the kernel's choice of victims follows the class", "oomscore", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			equal(t, "best effort", p.Report("main").OOMScoreAdj, "1000")
		}},
		{"a guaranteed container is the last to be killed", "oomsafe", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, report], resources: {limits: {cpu: 100m, memory: 32Mi}}}
`, func(t *testing.T, p *harness.Pod) {
			want := "-997"
			if !mayLowerOOMScore(t) {
				// Without CAP_SYS_RESOURCE nobody here can have less than the daemon.
				want = strings.TrimSpace(hostFile(t, "/proc/self/oom_score_adj"))
			}
			equal(t, "oom_score_adj", p.Report("main").OOMScoreAdj, want)
		}},
		{"a container over its memory limit is killed and says why", "oomkilled", `
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $BOX
    command: [testbox, alloc, --mib, "64"]
    resources: {limits: {memory: 24Mi}}
  - {name: other, image: $BOX, command: [testbox, exit, --after, 1s]}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodFailed)
			s, _ := harness.Container(pod, "main")
			equal(t, "reason", s.State.Terminated.Reason, "OOMKilled")
			equal(t, "exit code", s.State.Terminated.ExitCode, 137)
			other, _ := harness.Container(pod, "other")
			equal(t, "the other container", other.State.Terminated.Reason, "Completed")
		}},
		{"a child over the limit is an OOM kill too", "oomchild", `
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'testbox alloc --mib 64; echo child ended with $?; sleep 0.5; exit 3']
    resources: {limits: {memory: 24Mi}}
`, func(t *testing.T, p *harness.Pod) {
			s, _ := harness.Container(p.WaitPhase(corev1.PodFailed), "main")
			// cgroup v2 kills the group as a whole (memory.oom.group, as the
			// kubelet asks for); v1 kills one process, and the rest goes on.
			if cgroup2(t) {
				equal(t, "exit code", s.State.Terminated.ExitCode, 137)
				equal(t, "reason", s.State.Terminated.Reason, "OOMKilled")
				return
			}
			equal(t, "exit code", s.State.Terminated.ExitCode, 3)
			contains(t, "log", p.Logs("main"), "child ended with 137")
		}},
		{"a process that exec starts is in the container's groups", "execgroup", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, pause, execgroup-main], resources: {limits: {memory: 32Mi}}}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			want := groupOf(t, hostPid(t, p.Node(), "execgroup-main"))
			done := make(chan struct{})
			go func() {
				defer close(done)
				p.TryExec("main", "sh", "-c", "exec sleep 31.4159") // which no other process has as an argument
			}()
			pid := hostPid(t, p.Node(), "31.4159")
			got := groupOf(t, pid)
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Error(err)
			}
			// It may have one of its own below, to be killed by.
			if in := want.dir("memory", 0); !strings.HasPrefix(got.dir("memory", 0)+"/", in+"/") {
				t.Errorf("group: got %s, want it in %s", got.dir("memory", 0), in)
			}
			<-done
		}},
		{"groups are removed with their pod", "removed", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, pause, removed-main], resources: {limits: {cpu: 100m, memory: 32Mi}}}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			g := groupOf(t, hostPid(t, p.Node(), "removed-main"))
			dirs := []string{g.dir("memory", 1), g.dir("cpu", 1)}
			p.Delete()
			for _, dir := range dirs {
				if _, err := os.Stat(dir); !os.IsNotExist(err) {
					t.Errorf("%s: %v", dir, err)
				}
			}
		}},
	})
}

// checkPath asserts the kubelet's place for the pod: below its class, with its
// UID in the name.
func checkPath(t *testing.T, g group, pod corev1.Pod, class string) {
	t.Helper()
	dir := g.dir("memory", 1)
	uid := string(pod.UID)
	name := "pod" + uid
	parent := class
	if strings.HasSuffix(dir, ".slice") {
		name = "kubepods-" + map[string]string{"": "", "burstable": "burstable-", "besteffort": "besteffort-"}[class] + "pod" + strings.ReplaceAll(uid, "-", "_") + ".slice"
		parent = map[string]string{"": "kubepods.slice", "burstable": "kubepods-burstable.slice", "besteffort": "kubepods-besteffort.slice"}[class]
	} else if class == "" {
		parent = "kubepods"
	}
	equal(t, "name of the pod's group", filepath.Base(dir), name)
	equal(t, "its parent", filepath.Base(filepath.Dir(dir)), parent)
}

// mayLowerOOMScore finds out by trying, on a process of its own.
func mayLowerOOMScore(t *testing.T) bool {
	t.Helper()
	now, err := strconv.Atoi(strings.TrimSpace(hostFile(t, "/proc/self/oom_score_adj")))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(now-1)), 0o644); err != nil {
		return false
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(now)), 0o644); err != nil {
		t.Fatal(err)
	}
	return true
}
