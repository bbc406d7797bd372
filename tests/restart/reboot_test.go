package restart

import (
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

// One pod of each restart policy, with everything that outlives a boot (a
// volume on disk, a claim of addresses and a host port) or must not.
const rebooted = `
apiVersion: v1
kind: Pod
metadata: {name: always}
spec:
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: ` + harness.Box + `
    command: [sh, -c, 'echo run >> /data/runs; exec testbox serve --http :8080']
    ports: [{containerPort: 8080, hostPort: 30080}]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
    volumeMounts: [{name: data, mountPath: /data}, {name: mem, mountPath: /mem, subPath: a}]
  volumes:
  - {name: data, emptyDir: {}}
  - {name: mem, emptyDir: {medium: Memory}}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: OnFailure
  containers:
  - {name: main, image: ` + harness.Box + `, command: [sh, -c, 'echo done >> /out/runs'], volumeMounts: [{name: out, mountPath: /out}]}
  volumes: [{name: out, hostPath: {path: $OUT, type: DirectoryOrCreate}}]
---
apiVersion: v1
kind: Pod
metadata: {name: never}
spec:
  restartPolicy: Never
  containers:
  - {name: main, image: ` + harness.Box + `, command: [sh, -c, 'echo never >> /out/runs; exec sleep 100000'], volumeMounts: [{name: out, mountPath: /out}]}
  volumes: [{name: out, hostPath: {path: $OUT, type: DirectoryOrCreate}}]
`

func TestPodsAfterAReboot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	for name, keepRun := range map[string]bool{"of a host whose run directory is a tmpfs": false, "of a host whose run directory is on a disk": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rebootPods(t, keepRun)
		})
	}
}

func rebootPods(t *testing.T, keepRun bool) {
	n := harness.StartNode(t, harness.Options{})
	n.WriteManifest("pods.yaml", strings.ReplaceAll(rebooted, "$OUT", n.Dir+"/out"))
	always, done, never := n.Pod(t, "default", "always"), n.Pod(t, "default", "done"), n.Pod(t, "default", "never")
	before := always.WaitReady()
	done.WaitPhase(corev1.PodSucceeded)
	never.WaitReady()
	harness.Eventually(t, harness.PodTimeout, "both that do not restart have run", func() string {
		runs, _ := os.ReadFile(n.Dir + "/out/runs") // made by the first
		if got := string(runs); got != "done\nnever\n" && got != "never\ndone\n" {
			return got
		}
		return ""
	})

	n.Reboot(keepRun)

	after := always.Wait("ready in the new boot", func(pod corev1.Pod) string {
		c, _ := harness.Container(pod, "main")
		if was, _ := harness.Container(before, "main"); !harness.Ready(pod) || c.ContainerID == was.ContainerID {
			return harness.Summary(pod)
		}
		return ""
	})
	if after.UID != before.UID {
		t.Error("it is another pod")
	}
	if c, _ := harness.Container(after, "main"); c.RestartCount != 1 {
		t.Errorf("restart count %d, want 1", c.RestartCount)
	}
	if runs := always.Exec("main", "cat", "/data/runs"); strings.Count(runs, "run") != 2 {
		t.Errorf("its volume on disk has %q, want two runs", runs)
	}
	if pod := never.WaitPhase(corev1.PodFailed); pod.Status.StartTime == nil {
		t.Error("a pod that ran before the boot has no start time any more")
	}
	done.WaitPhase(corev1.PodSucceeded)
	runs, err := os.ReadFile(n.Dir + "/out/runs")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(runs); got != "done\nnever\n" && got != "never\ndone\n" {
		t.Errorf("pods that do not restart ran as %q", got)
	}
	n.RemoveAll()
	n.CheckNothingLeft()
}
