package workloads

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestInitContainersRunInOrderAndSidecarsBesideThem(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: ordered}
spec:
  template:
    spec:
      restartPolicy: Never
      volumes: [{name: shared, emptyDir: {}}]
      initContainers:
      - {name: first, image: $BOX, command: [sh, -c, "echo first >> /shared/log"], volumeMounts: [{name: shared, mountPath: /shared}]}
      - name: sidecar
        image: $BOX
        restartPolicy: Always
        command: [sh, -c, "echo sidecar >> /shared/log; touch /shared/up; trap 'exit 0' TERM; while :; do sleep 0.1; done"]
        startupProbe: {exec: {command: [cat, /shared/up]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
        volumeMounts: [{name: shared, mountPath: /shared}]
      - {name: second, image: $BOX, command: [sh, -c, "echo second >> /shared/log"], volumeMounts: [{name: shared, mountPath: /shared}]}
      containers:
      - {name: main, image: $BOX, command: [sh, -c, "echo main >> /shared/log; cat /shared/log"], volumeMounts: [{name: shared, mountPath: /shared}]}
`)
	// The job completes though its sidecar would run for ever.
	s.kubectl("wait", "--for=condition=Complete", "job/ordered", wait)
	equal(t, "order", strings.Join(strings.Fields(s.kubectl("logs", "job/ordered", "-c", "main")), " "), "first sidecar second main")
	pod := s.get("pods", ".items[0].metadata.name")
	equal(t, "end of the sidecar", s.get("pod/"+pod, ".status.initContainerStatuses[1].state.terminated.exitCode"), "0")
}

func TestInitContainerThatFailsIsTriedAgain(t *testing.T) {
	s := newSpace(t)
	s.pod("again", `initContainers: [{name: init, image: $BOX, volumeMounts: [{name: v, mountPath: /v}],
		command: [sh, -c, "[ -e /v/tried ] || { touch /v/tried; exit 3; }"]}]`,
		`containers: [{name: box, image: $BOX}]`, `volumes: [{name: v, emptyDir: {}}]`)
	equal(t, "restarts", s.get("pod/again", ".status.initContainerStatuses[0].restartCount"), "1")
}

func TestContainerThatEndsIsRestartedAndSaysWhy(t *testing.T) {
	s := newSpace(t)
	s.create("crash", `containers: [{name: box, image: $BOX, command: [testbox, exit, -code=7, -print=bye, -message=because]}]`)
	s.want("pod/crash", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff")
	last := ".status.containerStatuses[0].lastState.terminated"
	equal(t, "exit code", s.get("pod/crash", last+".exitCode"), "7")
	equal(t, "message", s.get("pod/crash", last+".message"), "because")
	// The previous container goes when there is one more.
	s.logs("bye", "crash", "--previous")
	s.event("Pod/crash", "BackOff", "restarting failed container")
}

func TestReadinessGateHoldsBackThePod(t *testing.T) {
	s := newSpace(t)
	s.create("gated", `readinessGates: [{conditionType: example.com/open}]`, `containers: [{name: box, image: $BOX}]`)
	s.kubectl("wait", "--for=condition=ContainersReady", "pod/gated", wait)
	equal(t, "reason", s.get("pod/gated", ".status.conditions[?(@.type=='Ready')].reason"), "ReadinessGatesNotReady")
	patch := func(status string) {
		s.kubectl("patch", "pod", "gated", "--subresource=status", "-p", `{"status": {"conditions": [{"type": "example.com/open", "status": "`+status+`"}]}}`)
	}
	patch("True")
	s.ready("pod/gated")
	patch("False")
	s.kubectl("wait", "--for=condition=Ready=False", "pod/gated", wait)
}

func TestActiveDeadlineEndsThePod(t *testing.T) {
	s := newSpace(t)
	// Time enough to start.
	s.create("late", `activeDeadlineSeconds: 20`, `containers: [{name: box, image: $BOX, command: [testbox, term]}]`)
	s.ready("pod/late")
	s.logs("ready", "late")
	s.want("pod/late", ".status.phase", "Failed")
	equal(t, "reason", s.get("pod/late", ".status.reason"), "DeadlineExceeded")
	contains(t, "message", s.get("pod/late", ".status.message"), "active on the node longer than the specified deadline")
	s.want("pod/late", ".status.containerStatuses[0].state.terminated.exitCode", "0")
}

func TestDeletionGivesThePodItsGrace(t *testing.T) {
	s := newSpace(t)
	s.pod("polite", `containers: [{name: box, image: $BOX, command: [testbox, term, -delay=1s, -code=0],
		lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook > /proc/1/fd/1"]}}}}]`)
	follower := shared.Command(s.ctx, "kubectl", "-n", s.ns, "logs", "-f", "polite")
	out, err := follower.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follower.Start(); err != nil {
		t.Fatal(err)
	}
	log := bufio.NewReader(out)
	first, err := log.ReadString('\n') // it follows, before there is nothing to follow any more
	if err != nil {
		t.Fatalf("kubectl logs -f ends with %q, %v", first, err)
	}
	s.kubectl("delete", "pod", "polite", wait)
	rest, err := io.ReadAll(log)
	if err := errors.Join(err, follower.Wait()); err != nil {
		t.Fatalf("kubectl logs -f: %v", err)
	}
	equal(t, "log until the end", first+string(rest), "ready\nhook\nterminated\n")

	s.pod("stubborn", `terminationGracePeriodSeconds: 1`, `containers: [{name: box, image: $BOX, command: [testbox, stubborn]}]`)
	s.kubectl("delete", "pod", "stubborn", wait)
}

func TestForcedDeletionIsAtOnce(t *testing.T) {
	s := newSpace(t)
	s.pod("stubborn", `terminationGracePeriodSeconds: 600`, `containers: [{name: box, image: $BOX, command: [testbox, stubborn]}]`)
	s.kubectl("delete", "pod", "stubborn", "--force", wait)
	contains(t, "the pod", s.refused("get", "pod", "stubborn"), "NotFound")
	// The name is free at once; the leak check finds the old pod if it stays.
	s.pod("stubborn", `terminationGracePeriodSeconds: 0`, `containers: [{name: box, image: $BOX}]`)
}

func TestFinalizerKeepsTheObjectButNotTheContainers(t *testing.T) {
	s := newSpace(t)
	s.pod("kept", `containers: [{name: box, image: $BOX, command: [testbox, term]}]`)
	s.logs("ready", "kept")
	s.kubectl("patch", "pod", "kept", "-p", `{"metadata": {"finalizers": ["example.com/keep"]}}`)
	s.kubectl("delete", "pod", "kept", "--wait=false")
	s.want("pod/kept", ".status.phase", "Succeeded")
	equal(t, "exit code", s.get("pod/kept", ".status.containerStatuses[0].state.terminated.exitCode"), "0")
	s.kubectl("patch", "pod", "kept", "-p", `{"metadata": {"finalizers": null}}`)
	s.gone("pod/kept")
}

func TestEvictionRespectsTheBudget(t *testing.T) {
	s := newSpace(t)
	s.kubectl("create", "poddisruptionbudget", "one", "--selector=app=guarded", "--min-available=1")
	s.pod("guarded", `containers: [{name: box, image: $BOX}]`)
	s.kubectl("label", "pod", "guarded", "app=guarded")
	s.want("pdb/one", ".status.currentHealthy", "1")
	eviction := s.file("eviction.json", `{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "guarded", "namespace": "`+s.ns+`"}}`)
	evict := []string{"create", "--raw", "/api/v1/namespaces/" + s.ns + "/pods/guarded/eviction", "-f", eviction}
	contains(t, "eviction", s.refused(evict...), "disruption budget")
	s.kubectl("patch", "pod", "guarded", "-p", `{"metadata": {"finalizers": ["example.com/look"]}}`)
	s.kubectl("delete", "pdb", "one")
	s.kubectl(evict...)
	s.want("pod/guarded", ".status.phase", "Succeeded")
	equal(t, "condition DisruptionTarget", s.get("pod/guarded", ".status.conditions[?(@.type=='DisruptionTarget')].reason"), "EvictionByEvictionAPI")
	s.kubectl("patch", "pod", "guarded", "-p", `{"metadata": {"finalizers": null}}`)
	s.gone("pod/guarded")
}

func TestAContainerMayHaveAllOfItsPodStartAnew(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: anew}
spec:
  restartPolicy: Never
  initContainers:
  - {name: init, image: $BOX, command: [sh, -c, 'echo init >> /v/runs'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: beside, image: $BOX, volumeMounts: [{name: v, mountPath: /v}]}
  - name: asks
    image: $BOX
    command: [sh, -c, 'echo asks >> /v/runs; while [ ! -e /v/go ]; do sleep 0.1; done; rm /v/go; exit 42']
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {}}]
`)
	s.ready("pod/anew")
	ip := s.get("pod/anew", ".status.podIP")
	for _, n := range []string{"1", "2"} {
		s.exec("anew", "touch", "/v/go")
		s.eventually(func() error {
			own, init := s.get("pod/anew", ".status.containerStatuses[*].restartCount"), s.get("pod/anew", ".status.initContainerStatuses[*].restartCount")
			if own != n+" "+n || init != n {
				return fmt.Errorf("restart counts are %s, and %s of the init container, want %s", own, init, n)
			}
			return nil
		})
		s.ready("pod/anew")
	}
	equal(t, "address", s.get("pod/anew", ".status.podIP"), ip)
	equal(t, "phase", s.get("pod/anew", ".status.phase"), "Running")
	s.want("pod/anew", ".status.conditions[?(@.type=='AllContainersRestarting')].status", "False")
	equal(t, "runs", strings.Join(strings.Fields(s.exec("anew", "cat", "/v/runs")), " "), "init asks init asks init asks")
}
