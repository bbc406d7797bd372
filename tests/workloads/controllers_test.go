package workloads

import (
	"fmt"
	"strings"
	"testing"
)

// web is a Deployment of 3 whose pods answer with a version.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: $BOX
        command: [testbox, serve, -http=:80, -name=VERSION]
        readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1, timeoutSeconds: 10}
        # Until no proxy sends to it any more, on a busy machine too.
        lifecycle: {preStop: {sleep: {seconds: 15}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

func TestDeploymentIsUpdatedAndRolledBackWithoutAnUnansweredRequest(t *testing.T) {
	s := newSpace(t)
	s.apply(strings.ReplaceAll(web, "VERSION", "one"))
	s.kubectl("rollout", "status", "deployment/web", wait)
	// Once its proxy and the cluster's DNS know the Service, the caller asks
	// without a pause, and tells of every answer that it gets.
	s.pod("caller", `containers: [{name: box, image: $BOX, readinessProbe: {exec: {command: [cat, /tmp/answered]}, periodSeconds: 1, timeoutSeconds: 10},
		command: [sh, -c, "trap 'exit 0' TERM; until testbox get http://web >/dev/null 2>&1; do sleep 0.1; done; touch /tmp/answered;
		while :; do testbox get -timeout=30s http://web || echo failed; sleep 0.05; done"]}]`)
	s.apply(strings.ReplaceAll(web, "VERSION", "two"))
	s.kubectl("rollout", "status", "deployment/web", wait)
	equal(t, "available replicas", s.get("deployment/web", ".status.availableReplicas"), "3")
	s.answers("two")
	s.kubectl("rollout", "undo", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", wait)
	s.answers("one")
	contains(t, "history", s.kubectl("rollout", "history", "deployment/web"), "3")
	answers := map[string]int{}
	for _, line := range strings.Fields(s.kubectl("logs", "caller")) {
		answers[line]++
	}
	if answers["one"] == 0 || answers["two"] == 0 || len(answers) > 2 {
		t.Errorf("the caller was told %v, want only the two versions", answers)
	}
}

// answers waits until the Service web gives no other answer than want: proxies
// learn of what became Ready, and of what ends, a moment after the controllers.
func (s *space) answers(want string) {
	s.t.Helper()
	s.eventually(func() error {
		for range 10 {
			if got := s.exec("caller", "testbox", "get", "http://web"); got != want {
				return fmt.Errorf("an answer is %s, want only %s", got, want)
			}
		}
		return nil
	})
}

func TestReplicaSetReplacesAPodAndScales(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: set}
spec:
  replicas: 2
  selector: {matchLabels: {app: set}}
  template:
    metadata: {labels: {app: set}}
    spec: {containers: [{name: box, image: $BOX}]}
`)
	s.want("rs/set", ".status.readyReplicas", "2")
	victim := s.get("pods", ".items[0].metadata.name")
	s.kubectl("delete", "pod", victim, wait)
	s.want("rs/set", ".status.readyReplicas", "2")
	if names := s.get("pods", ".items[*].metadata.name"); strings.Contains(names, victim) {
		t.Errorf("pod %s was deleted and is there: %s", victim, names)
	}
	s.kubectl("scale", "rs/set", "--replicas=4")
	s.want("rs/set", ".status.readyReplicas", "4")
	s.kubectl("scale", "rs/set", "--replicas=1")
	s.want("rs/set", ".status.replicas", "1")
	s.eventually(func() error {
		if names := strings.Fields(s.get("pods", ".items[*].metadata.name")); len(names) != 1 {
			return fmt.Errorf("pods %v, want one", names)
		}
		return nil
	})
}

func TestStatefulSetKeepsNamesInOrder(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers:
      - name: db
        image: $BOX
        command: [testbox, serve, -http=:80]
        readinessProbe: {httpGet: {path: /healthz, port: 80}, periodSeconds: 1, timeoutSeconds: 10}
`)
	s.kubectl("rollout", "status", "statefulset/db", wait)
	equal(t, "pods", s.get("pods", ".items[*].metadata.name"), "db-0 db-1")
	if first, second := s.get("pod/db-0", ".status.conditions[?(@.type=='Ready')].lastTransitionTime"), s.get("pod/db-1", ".metadata.creationTimestamp"); second < first {
		t.Errorf("db-1 was made at %s, before db-0 was Ready at %s", second, first)
	}
	for range 2 {
		for _, name := range []string{"db-0", "db-1"} {
			equal(t, "host name", s.exec(name, "hostname"), name)
			s.eventually(func() error { // until the cluster's DNS knows
				out, err := s.try("exec", "db-0", "--", "testbox", "get", "http://"+name+".db")
				if err == nil && out != name {
					err = fmt.Errorf("%s.db is %s", name, out)
				}
				return err
			})
		}
		uid := s.get("pod/db-1", ".metadata.uid")
		s.kubectl("delete", "pod", "db-1", wait)
		// The set's status says a moment longer that all are there.
		s.kubectl("wait", "--for=create", "pod/db-1", wait)
		s.ready("pod/db-1")
		s.kubectl("rollout", "status", "statefulset/db", wait)
		if s.get("pod/db-1", ".metadata.uid") == uid {
			t.Error("db-1 was deleted and is the same")
		}
	}
}

func TestDaemonSetHasAPodOnEachNodeAndIsUpdated(t *testing.T) {
	s := newSpace(t)
	const manifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      hostNetwork: true
      containers:
      - {name: box, image: $BOX, env: [{name: VERSION, value: "one"}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]}
`
	s.apply(manifest)
	s.kubectl("rollout", "status", "daemonset/agent", wait)
	s.apply(strings.ReplaceAll(manifest, "one", "two"))
	s.kubectl("rollout", "status", "daemonset/agent", wait)
	nodes := map[string]bool{}
	for _, pod := range strings.Fields(s.get("pods", ".items[*].metadata.name")) {
		equal(t, "version", s.exec(pod, "sh", "-c", "echo $VERSION"), "two")
		nodes[s.exec(pod, "sh", "-c", "echo $NODE")] = true
	}
	if len(nodes) != 2 {
		t.Errorf("pods on %v, want one on each of two nodes", nodes)
	}
	equal(t, "host address of a pod on the host's network",
		s.get("pods", ".items[0].status.podIP"), s.get("pods", ".items[0].status.hostIP"))
}

func TestJobRunsToCompletion(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: box, image: $BOX, command: [sh, -c, "echo item $JOB_COMPLETION_INDEX"]}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: vain}
spec:
  backoffLimit: 1
  podFailurePolicy: {rules: [{action: FailJob, onExitCodes: {operator: In, values: [42]}}]}
  template:
    spec:
      restartPolicy: Never
      containers: [{name: box, image: $BOX, command: [sh, -c, "exit 42"]}]
`)
	s.kubectl("wait", "--for=condition=Complete", "job/work", wait)
	equal(t, "succeeded", s.get("job/work", ".status.succeeded"), "3")
	equal(t, "completed indexes", s.get("job/work", ".status.completedIndexes"), "0-2")
	logs := s.kubectl("logs", "-l", "job-name=work", "--tail=-1")
	for _, line := range []string{"item 0", "item 1", "item 2"} {
		contains(t, "logs", logs, line)
	}
	s.kubectl("wait", "--for=condition=Failed", "job/vain", wait)
	equal(t, "reason", s.get("job/vain", ".status.conditions[?(@.type=='Failed')].reason"), "PodFailurePolicy")
	equal(t, "pods of the failed job", len(strings.Fields(s.kubectl("get", "pods", "-l", "job-name=vain", "-o", "name"))), 1)
}

func TestCronJobMakesAJobEachMinute(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers: [{name: box, image: $BOX, command: [echo, tick]}]
`)
	s.kubectl("wait", "cronjob/tick", "--for=jsonpath={.status.lastSuccessfulTime}", wait)
	// Of the first job: the next minute has one, too.
	job := s.kubectl("get", "jobs", "--sort-by=.metadata.creationTimestamp", "-o", "jsonpath={.items[0].metadata.name}")
	s.kubectl("wait", "--for=condition=Complete", "job/"+job, wait)
	equal(t, "log", s.kubectl("logs", "-l", "batch.kubernetes.io/job-name="+job), "tick")
}
