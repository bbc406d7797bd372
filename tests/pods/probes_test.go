package pods

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestProbes(t *testing.T) {
	run(t, []scenario{
		{"readiness by HTTP follows the server, with its named port and headers", "readyhttp", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, --http, ":8080", --unhealthy]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe:
      httpGet: {path: /healthz, port: web, httpHeaders: [{name: Host, value: probe.test}]}
      periodSeconds: 1
      timeoutSeconds: 10
      failureThreshold: 1
`, func(t *testing.T, p *harness.Pod) {
			p.WaitEvent("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
			pod := p.WaitPhase(corev1.PodRunning)
			equal(t, "Ready", harness.Condition(pod, corev1.PodReady), corev1.ConditionFalse)
			p.Exec("main", "testbox", "get", "http://127.0.0.1:8080/set?ok=true")
			p.WaitReady()
			p.Exec("main", "testbox", "get", "http://127.0.0.1:8080/set?ok=false")
			pod = p.Wait("not ready again", func(pod corev1.Pod) string {
				if harness.Ready(pod) {
					return "still ready"
				}
				return ""
			})
			equal(t, "restarts", pod.Status.ContainerStatuses[0].RestartCount, 0)
		}},
		{"readiness by TCP", "readytcp", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, --tcp, ":9000", --unhealthy]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, timeoutSeconds: 10}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "event", p.WaitEvent("Unhealthy", "connection refused"), "Readiness probe failed")
			p.Exec("main", "testbox", "get", "http://127.0.0.1:8080/set?ok=true")
			p.WaitReady()
		}},
		{"readiness by gRPC asks for the named service", "readygrpc", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, --grpc, ":9090"]
    readinessProbe: {grpc: {port: 9090, service: main}, periodSeconds: 1, timeoutSeconds: 10}
  - name: other
    image: $BOX
    command: [testbox, serve, --http, ":8081", --grpc, ":9091"]
    readinessProbe: {grpc: {port: 9091, service: other}, periodSeconds: 1, timeoutSeconds: 10}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitEvent("Unhealthy", "NOT_SERVING")
			pod := p.Wait("main ready", func(pod corev1.Pod) string {
				if s, _ := harness.Container(pod, "main"); !s.Ready {
					return "not yet"
				}
				return ""
			})
			other, _ := harness.Container(pod, "other")
			equal(t, "other is ready", other.Ready, false)
			equal(t, "ContainersReady", harness.Condition(pod, corev1.ContainersReady), corev1.ConditionFalse)
		}},
		{"readiness by exec, with a success threshold", "readyexec", `
spec:
  containers:
  - name: main
    image: $BOX
    readinessProbe: {exec: {command: [sh, -c, 'echo looking; test -e /tmp/ready']}, periodSeconds: 1, timeoutSeconds: 10, successThreshold: 2}
`, func(t *testing.T, p *harness.Pod) {
			contains(t, "event", p.WaitEvent("Unhealthy", "looking"), "Readiness probe failed")
			p.Exec("main", "touch", "/tmp/ready")
			p.WaitReady()
		}},
		{"an exec probe that takes too long fails", "slowexec", `
spec:
  containers:
  - name: main
    image: $BOX
    readinessProbe: {exec: {command: [sleep, "30"]}, periodSeconds: 1, timeoutSeconds: 1}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitEvent("Unhealthy", "timed out after 1s")
			out := p.Exec("main", "ps")
			equal(t, "a sleep is left running", strings.Count(out, "sleep 30") > 1, false)
		}},
		{"a failing liveness probe restarts the container", "live-restart", `
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve]
    startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2}
`, func(t *testing.T, p *harness.Pod) {
			first := p.WaitReady().Status.ContainerStatuses[0].ContainerID
			p.Exec("main", "testbox", "get", "http://127.0.0.1:8080/set?ok=false")
			pod := p.Wait("restarted", func(pod corev1.Pod) string {
				if s, _ := harness.Container(pod, "main"); s.RestartCount != 1 || s.State.Running == nil {
					return "not yet"
				}
				return ""
			})
			equal(t, "the same container", pod.Status.ContainerStatuses[0].ContainerID == first, false)
			p.WaitEvent("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503")
			p.WaitEvent("Killing", "Container main failed liveness probe, will be restarted")
			p.WaitReady()
		}},
		{"a startup probe holds back the others until it succeeds", "startup", `
spec:
  containers:
  - name: main
    image: $BOX
    command: [testbox, serve, --unhealthy]
    startupProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 200}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
`, func(t *testing.T, p *harness.Pod) {
			p.WaitEvent("Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503")
			p.Exec("main", "testbox", "get", "http://127.0.0.1:8080/set?ok=true")
			s, _ := harness.Container(p.WaitReady(), "main")
			equal(t, "started", s.Started != nil && *s.Started, true)
			equal(t, "restarts", s.RestartCount, 0)
		}},
		{"a startup probe that never succeeds restarts the container, with its own grace", "startfail", `
spec:
  terminationGracePeriodSeconds: 3600
  containers:
  - name: main
    image: $BOX
    command: [testbox, stubborn]
    startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2, terminationGracePeriodSeconds: 1}
`, func(t *testing.T, p *harness.Pod) {
			pod := p.Wait("restarted", func(pod corev1.Pod) string {
				if s, _ := harness.Container(pod, "main"); s.LastTerminationState.Terminated == nil {
					return "not yet"
				}
				return ""
			})
			s, _ := harness.Container(pod, "main")
			equal(t, "last end", fmt.Sprint(s.LastTerminationState.Terminated.ExitCode), "137")
			p.WaitEvent("Killing", "failed startup probe, will be restarted")
			// The pod's own grace would hold up the end of the test.
			p.Node().MustCLI("stop", p.Name, "--grace-period", "1s")
		}},
	})
}
