package workloads

import (
	"strings"
	"testing"
)

func TestReadinessProbesOfAllKindsFollowTheContainer(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  containers:
  - name: http
    image: $BOX
    command: [testbox, serve, -http=:8080, -tcp=:8081, -grpc=:8082]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {httpGet: {path: /healthz, port: web, httpHeaders: [{name: X-Test, value: "1"}]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}
  - {name: tcp, image: $BOX, readinessProbe: {tcpSocket: {port: 8081}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}}
  - {name: grpc, image: $BOX, readinessProbe: {grpc: {port: 8082, service: any}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}}
  - {name: exec, image: $BOX, readinessProbe: {exec: {command: [testbox, get, "http://127.0.0.1:8080/healthz"]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}}
`)
	s.ready("pod/probed")
	s.exec("probed", "testbox", "get", "http://127.0.0.1:8080/set?ok=false")
	s.kubectl("wait", "--for=condition=Ready=False", "pod/probed", wait)
	for _, name := range []string{"http", "tcp", "grpc", "exec"} {
		s.want("pod/probed", ".status.containerStatuses[?(@.name=='"+name+"')].ready", "false")
	}
	contains(t, "message", s.get("pod/probed", ".status.conditions[?(@.type=='Ready')].message"), "containers with unready status")
	s.event("Pod/probed", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503")
	s.exec("probed", "testbox", "get", "http://127.0.0.1:8080/set?ok=true")
	s.ready("pod/probed")
	equal(t, "restarts", s.get("pod/probed", ".status.containerStatuses[*].restartCount"), "0 0 0 0")
}

func TestLivenessProbesOfAllKindsRestartTheContainer(t *testing.T) {
	s := newSpace(t)
	for name, probe := range map[string]string{
		"http": "httpGet: {path: /healthz, port: 8080}",
		"tcp":  "tcpSocket: {port: 8081}",
		"grpc": "grpc: {port: 8082}",
		"exec": "exec: {command: [sh, -c, '[ ! -e /tmp/sick ]']}",
	} {
		s.create(name, `containers: [{name: box, image: $BOX, command: [testbox, serve, -http=:8080, -tcp=:8081, -grpc=:8082],
			startupProbe: {tcpSocket: {port: 8082}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60},
			livenessProbe: {`+probe+`, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1, initialDelaySeconds: 1}}]`)
	}
	pods := []string{"http", "tcp", "grpc", "exec"}
	for _, name := range pods {
		s.ready("pod/" + name)
		// It may be killed itself with the container that it makes sick.
		_, _ = s.try("exec", name, "--", "sh", "-c", "touch /tmp/sick; testbox get http://127.0.0.1:8080/set?ok=false")
	}
	for _, name := range pods {
		s.want("pod/"+name, ".status.containerStatuses[0].restartCount", "1")
		s.event("Pod/"+name, "Killing", "Container box failed liveness probe, will be restarted")
		s.ready("pod/" + name)
	}
}

func TestStartupProbeHoldsBackTheOthers(t *testing.T) {
	s := newSpace(t)
	// The liveness probe fails until the container is made to start.
	s.create("slow", `containers: [{name: box, image: $BOX,
		startupProbe: {exec: {command: [cat, /tmp/started]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 600},
		livenessProbe: {exec: {command: [cat, /tmp/started]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 1}}]`)
	s.event("Pod/slow", "Unhealthy", "Startup probe failed")
	s.want("pod/slow", ".status.containerStatuses[0].started", "false")
	s.exec("slow", "touch", "/tmp/started")
	s.ready("pod/slow")
	equal(t, "started, restarts", s.get("pod/slow", ".status.containerStatuses[0].started")+" "+
		s.get("pod/slow", ".status.containerStatuses[0].restartCount"), "true 0")
	if events := s.event("Pod/slow", "Unhealthy", ""); strings.Contains(events, "Liveness") {
		t.Errorf("the liveness probe ran before the start: %s", events)
	}
}
