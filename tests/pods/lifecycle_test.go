package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestLifecycle(t *testing.T) {
	run(t, []scenario{
		{"init containers run one after the other before the others", "init", `
spec:
  initContainers:
  - {name: one, image: $BOX, command: [sh, -c, 'echo one >> /v/f'], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: two, image: $BOX, command: [sh, -c, 'echo two >> /v/f'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: $BOX, volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitReady()
			trimmed(t, "order", p.Exec("main", "cat", "/v/f"), "one\ntwo")
			equal(t, "Initialized", harness.Condition(pod, corev1.PodInitialized), corev1.ConditionTrue)
			for _, name := range []string{"one", "two"} {
				s, _ := harness.Container(pod, name)
				if s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" || !s.Ready {
					t.Errorf("init container %s: %+v", name, s)
				}
			}
		}},
		{"a failed init container ends a pod that must not restart", "initfail", `
spec:
  restartPolicy: Never
  initContainers:
  - {name: broken, image: $BOX, command: [testbox, exit, --code, "3"]}
  containers:
  - {name: main, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodFailed)
			s, _ := harness.Container(pod, "broken")
			equal(t, "exit code", s.State.Terminated.ExitCode, 3)
			m, _ := harness.Container(pod, "main")
			equal(t, "main waits", m.State.Waiting != nil && m.State.Waiting.Reason == "PodInitializing", true)
		}},
		{"a failed init container is tried again with back-off", "initretry", `
spec:
  initContainers:
  - {name: flaky, image: $BOX, command: [sh, -c, 'test -e /v/second || { touch /v/second; exit 1; }'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: main, image: $BOX}
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			s, _ := harness.Container(p.WaitReady(), "flaky")
			equal(t, "restarts", s.RestartCount, 1)
		}},
		{"a sidecar starts before the containers and does not hold up the end", "sidecar", `
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: helper
    image: $BOX
    restartPolicy: Always
    command: [testbox, serve, --http, ":8080", --after, 300ms]
    startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 30}
  containers:
  - {name: main, image: $BOX, command: [testbox, get, "http://127.0.0.1:8080/healthz"]}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodSucceeded)
			trimmed(t, "main reached it", p.Logs("main"), "ok")
			s, _ := harness.Container(pod, "helper")
			equal(t, "the sidecar ended", s.State.Terminated != nil, true)
		}},
		{"a crashing container is restarted with the kubelet's back-off", "crashloop", `
spec:
  containers:
  - {name: main, image: $BOX, command: [testbox, exit, --code, "7", --print, "bye"]}
`, func(t *testing.T, p *harness.Pod) {
			message := p.WaitWaiting("main", "CrashLoopBackOff")
			contains(t, "message", message, "back-off 10s restarting failed container=main pod=crashloop_default(")
			// The first restart comes at once, the second 10 s later, the next says 20 s.
			pod := p.Wait("back-off 20s", func(pod corev1.Pod) string {
				s, _ := harness.Container(pod, "main")
				if w := s.State.Waiting; w == nil || !strings.Contains(w.Message, "back-off 20s") {
					return "not yet"
				}
				return ""
			})
			s, _ := harness.Container(pod, "main")
			equal(t, "restarts", s.RestartCount, 2)
			equal(t, "last exit code", s.LastTerminationState.Terminated.ExitCode, 7)
			equal(t, "last reason", s.LastTerminationState.Terminated.Reason, "Error")
			equal(t, "phase", pod.Status.Phase, corev1.PodRunning)
			equal(t, "Ready", harness.Condition(pod, corev1.PodReady), corev1.ConditionFalse)
			trimmed(t, "log of the run before", p.Logs("main", "--previous"), "bye")
		}},
		{"a log of more than 10 MiB is rotated, and goes with its container", "logger", `
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'test -e /v/again || testbox lines -n 2700 --width 4000 --interval 0; touch /v/again; until [ -e /v/go ]; do sleep 0.1; done; rm /v/go; exit 1']
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			logs := func() []string {
				files, err := filepath.Glob(filepath.Join(p.Node().Config.PodLogsDir, "default_logger_*", "main", "0.log*"))
				if err != nil {
					t.Fatal(err)
				}
				return files
			}
			p.WaitReady()
			harness.Eventually(t, harness.PodTimeout, "the log is rotated, and all lines are there", func() string {
				files := logs()
				if len(files) != 2 || filepath.Base(files[0]) != "0.log" || len(filepath.Base(files[1])) != len("0.log.20060102-150405") {
					return strings.Join(files, " ")
				}
				all := 0
				for _, file := range files {
					data, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					all += strings.Count(string(data), "\n")
				}
				if all != 2701 {
					return fmt.Sprintf("%d lines", all)
				}
				return ""
			})
			for i := range int32(2) {
				p.Exec("main", "touch", "/v/go")
				p.Wait("the container runs again", func(pod corev1.Pod) string {
					if s, _ := harness.Container(pod, "main"); s.RestartCount <= i || s.State.Running == nil {
						return harness.Summary(pod)
					}
					return ""
				})
			}
			harness.Eventually(t, harness.PodTimeout, "the logs of the first run are gone", func() string { return strings.Join(logs(), " ") })
		}},
		{"OnFailure restarts what failed and leaves what succeeded", "onfailure", `
spec:
  restartPolicy: OnFailure
  containers:
  - {name: good, image: $BOX, command: [testbox, exit]}
  - {name: flaky, image: $BOX, command: [sh, -c, 'test -e /v/second || { touch /v/second; exit 1; }'], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodSucceeded)
			good, _ := harness.Container(pod, "good")
			flaky, _ := harness.Container(pod, "flaky")
			equal(t, "restarts of good", good.RestartCount, 0)
			equal(t, "restarts of flaky", flaky.RestartCount, 1)
		}},
		{"Never keeps the exit code and fails the pod", "never", `
spec:
  restartPolicy: Never
  containers:
  - {name: bad, image: $BOX, command: [testbox, exit, --code, "42"]}
  - {name: good, image: $BOX, command: [testbox, exit]}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodFailed)
			for name, want := range map[string]string{"bad": "Error 42", "good": "Completed 0"} {
				s, _ := harness.Container(pod, name)
				equal(t, name, fmt.Sprintf("%s %d", s.State.Terminated.Reason, s.State.Terminated.ExitCode), want)
			}
		}},
		{"a signal that ends a container is 128 and its number", "signalled", `
spec:
  restartPolicy: Never
  shareProcessNamespace: true
  containers:
  - {name: main, image: $BOX, command: [sh, -c, 'kill -USR1 $$$$']}
`, func(t *testing.T, p *harness.Pod) {
			s, _ := harness.Container(p.WaitPhase(corev1.PodFailed), "main")
			equal(t, "exit code", s.State.Terminated.ExitCode, 138)
		}},
		{"postStart runs before the container counts as running", "poststart", `
spec:
  containers:
  - name: exec                      # its hook holds up the next container's until the server listens
    image: $BOX
    command: [testbox, serve, --http, ":8081"]
    volumeMounts: [{name: v, mountPath: /v}]
    lifecycle:
      postStart:
        exec: {command: [sh, -c, 'until wget -q -O /dev/null http://127.0.0.1:8081/healthz; do usleep 10000; done; echo hooked > /v/f']}
  - name: http
    image: $BOX
    ports: [{name: web, containerPort: 8081}]
    lifecycle: {postStart: {httpGet: {path: /note/started, port: web, httpHeaders: [{name: X-Test, value: "yes"}]}}}
  volumes: [{name: v, emptyDir: {}}]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			trimmed(t, "the hook's file", p.Exec("exec", "cat", "/v/f"), "hooked")
			contains(t, "the hook's request and its header", p.WaitLog("exec", "note started"), "x=yes")
		}},
		{"a failed postStart kills the container", "poststartfail", `
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'trap "exit 9" TERM; touch /tmp/up; while :; do sleep 0.05; done']
    lifecycle: {postStart: {exec: {command: [sh, -c, 'until [ -e /tmp/up ]; do sleep 0.05; done; echo no good >&2; exit 5']}}}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitEvent("FailedPostStartHook", "")
			s, _ := harness.Container(p.WaitPhase(corev1.PodFailed), "main")
			equal(t, "exit code", s.State.Terminated.ExitCode, 9)
		}},
		{"preStop runs before the stop signal, within the grace period", "prestop", `
spec:
  terminationGracePeriodSeconds: 3600
  containers:
  - name: main
    image: $BOX
    command: [testbox, term, --print, signalled]
    volumeMounts: [{name: out, mountPath: /out}]
    lifecycle: {preStop: {exec: {command: [sh, -c, 'echo hook > /out/log; sleep 0.3; echo hook-end >> /out/log']}}}
  - name: last
    image: $BOX
    command: [sh, -c, 'trap "echo term >> /out/last; exit" TERM; echo ready; while :; do sleep 0.05; done']
    volumeMounts: [{name: out, mountPath: /out}]
    lifecycle: {preStop: {sleep: {seconds: 1}}}
  volumes: [{name: out, hostPath: {path: $DIR/prestop, type: DirectoryOrCreate}}]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitReady()
			p.WaitLog("main", "ready")
			p.WaitLog("last", "ready")
			start := time.Now()
			p.Delete() // which does not wait for as long as the grace period is
			if took := time.Since(start); took < time.Second {
				t.Errorf("stopping took %v, want at least the second that the hook sleeps", took)
			}
			trimmed(t, "the hook's log", hostFile(t, p.Node().Dir+"/prestop/log"), "hook\nhook-end")
			trimmed(t, "the other's signal", hostFile(t, p.Node().Dir+"/prestop/last"), "term")
		}},
		{"a container that ignores SIGTERM is killed after its grace period", "stubborn", `
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - {name: main, image: $BOX, command: [testbox, stubborn]}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitLog("main", "ready")
			start := time.Now()
			p.Delete()
			// 30 s is what a pod has that asks for nothing.
			if took := time.Since(start); took < 2*time.Second || took > 30*time.Second {
				t.Errorf("stopping took %v, want 2 s and little more", took)
			}
		}},
		{"the image's stop signal is used", "stopsignal", `
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: $CONFIGURED
    command: [sh, -c, 'trap "echo interrupted > /out/sig; exit" INT; echo ready; while :; do sleep 0.05; done']
    volumeMounts: [{name: out, mountPath: /out}]
    securityContext: {runAsUser: 0}
  volumes: [{name: out, hostPath: {path: $DIR/stopsignal, type: DirectoryOrCreate}}]
`, func(t *testing.T, p *harness.Pod) {
			p.WaitLog("main", "ready")
			p.Delete()
			trimmed(t, "signal", hostFile(t, p.Node().Dir+"/stopsignal/sig"), "interrupted")
		}},
		{"termination messages come from the file, another file, or the log", "messages", `
spec:
  restartPolicy: Never
  containers:
  - {name: file, image: $BOX, command: [testbox, exit, --message, "from the file"]}
  - {name: other, image: $BOX, command: [testbox, exit, --message, "elsewhere", --path, /tmp/why], terminationMessagePath: /tmp/why}
  - {name: log, image: $BOX, command: [testbox, exit, --code, "1", --print, "last words"], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: fine, image: $BOX, command: [testbox, exit, --print, "not an error"], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: long, image: $BOX, command: [sh, -c, 'head -c 9000 /dev/zero | tr "\000" x > /dev/termination-log']}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodFailed)
			for name, want := range map[string]string{"file": "from the file", "other": "elsewhere", "log": "last words\n", "fine": "", "long": strings.Repeat("x", 4096)} {
				s, _ := harness.Container(pod, name)
				equal(t, name, s.State.Terminated.Message, want)
			}
		}},
		{"a pod that outlives its deadline fails", "deadline", `
spec:
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: $BOX}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.WaitPhase(corev1.PodFailed)
			equal(t, "reason", pod.Status.Reason, "DeadlineExceeded")
		}},
		{"an image that is not there is asked for again", "noimage", `
spec:
  containers:
  - {name: main, image: registry.test/absent:1}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "event", p.WaitEvent("Failed", "registry.test/absent:1"), "not found")
			p.WaitWaiting("main", "ImagePullBackOff")
			p.WaitEvent("BackOff", "registry.test/absent:1")
		}},
		{"an image that must not be pulled is not", "neverpull", `
spec:
  containers:
  - {name: main, image: registry.test/absent:1, imagePullPolicy: Never}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "message", p.WaitWaiting("main", "ErrImageNeverPull"), `"registry.test/absent:1"`)
		}},
		{"a command that is not in the image is named", "nocommand", `
spec:
  containers:
  - {name: main, image: $BOX, command: [no-such-program]}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.Wait("a failed start", func(pod corev1.Pod) string {
				s, _ := harness.Container(pod, "main")
				if s.LastTerminationState.Terminated == nil && s.State.Terminated == nil {
					return "not yet"
				}
				return ""
			})
			s, _ := harness.Container(pod, "main")
			ended := s.LastTerminationState.Terminated
			if ended == nil {
				ended = s.State.Terminated
			}
			equal(t, "reason", ended.Reason, "StartError")
			equal(t, "exit code", ended.ExitCode, 128)
			contains(t, "message", ended.Message, `"no-such-program": executable file not found in $PATH`)
		}},
		{"containers that share a process namespace see each other, and orphans are reaped", "sharedpid", `
spec:
  shareProcessNamespace: true
  containers:
  - {name: orphans, image: $BOX, command: [testbox, zombies, -n, "4"]}
  - {name: main, image: $BOX, command: [sh, -c, 'until [ -e /tmp/go ]; do sleep 0.05; done; exec testbox report']}
`, func(t *testing.T, p *harness.Pod) {
			trimmed(t, "zombies", p.WaitLog("orphans", "zombies"), "zombies 0")
			p.Exec("main", "touch", "/tmp/go")
			r := p.Report("main")
			if r.Pid == 1 {
				t.Error("the container's process is PID 1 of the shared namespace")
			}
			seen := 0
			for _, name := range r.Processes {
				if name == "testbox" {
					seen++
				}
			}
			equal(t, "testbox processes seen", seen, 2)
		}},
		{"containers that do not share are alone, and PID 1", "ownpid", `
spec:
  containers:
  - {name: other, image: $BOX}
  - {name: main, image: $BOX, command: [testbox, report]}
`, func(t *testing.T, p *harness.Pod) {
			r := p.Report("main")
			equal(t, "pid", r.Pid, 1)
			equal(t, "processes", len(r.Processes), 1)
		}},
	})
}
