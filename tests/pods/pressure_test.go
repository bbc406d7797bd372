package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

// shortNode is a node without a cluster that a KubeletConfiguration tells when
// it runs short. Its pods' directories are on a small file system of their own.
func shortNode(t *testing.T, kubelet string) *harness.Node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.NewNode(t, harness.Options{Amend: func(c *harness.Config) {
		c.KubeletConfig = filepath.Join(filepath.Dir(c.KubeletDir), "kubelet.yaml")
	}})
	configure(t, n, kubelet)
	if err := os.MkdirAll(n.Config.KubeletDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", n.Config.KubeletDir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(n.Config.KubeletDir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n.Start()
	return n
}

// configure writes what the node reads when it starts.
func configure(t *testing.T, n *harness.Node, kubelet string) {
	t.Helper()
	text := "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\nfailSwapOn: false\n" +
		"evictionPressureTransitionPeriod: 1s\nimageMinimumGCAge: 1ms\nimageGCHighThresholdPercent: 100\n" + kubelet
	if err := os.WriteFile(n.Config.KubeletConfig, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The thresholds are more than any machine has, until they are changed.
func TestPodsOfANodeWithoutAClusterEndForMemoryAndForProcessIDs(t *testing.T) {
	n := shortNode(t, "evictionHard: {memory.available: 1Mi}\nevictionSoft: {memory.available: 100Ti}\nevictionSoftGracePeriod: {memory.available: 1s}\nevictionMaxPodGracePeriod: 1\n")
	n.WriteManifest("web.yaml", expand(n, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: main, image: $BOX}]}
`))
	web := n.Pod(t, "default", "web-0")
	web.WaitEvent("Evicted", "The node was low on resource: memory. Threshold quantity: 100Ti, available: ")
	equal(t, "reason", web.WaitPhase(corev1.PodFailed).Status.Reason, "Evicted")
	n.Stop()
	configure(t, n, "evictionHard: {pid.available: 4Gi}\n")
	n.Start()
	alone := n.Apply(t, "alone", manifest(n, "alone", "\nspec: {containers: [{name: main, image: $BOX}]}\n"))
	status := alone.WaitPhase(corev1.PodFailed).Status
	contains(t, "message", status.Message, "The node was low on resource: pids. Threshold quantity: ")
	contains(t, "message of the pod that ended before", web.WaitPhase(corev1.PodFailed).Status.Message, "low on resource: memory")
	n.Stop()
	configure(t, n, "evictionHard: {memory.available: 1Mi}\n")
	n.Start()
	web.WaitReady()
	equal(t, "reason of the pod of which nobody makes another", alone.WaitPhase(corev1.PodFailed).Status.Reason, "Evicted")
	n.RemoveAll()
	n.Stop()
}

// The writers fill the file system of the pods' directories, once: the one that
// takes more ends first, and as there is room then, the other stays.
func TestAFullDiskEndsPodsOfANodeWithoutACluster(t *testing.T) {
	n := shortNode(t, "evictionHard: {nodefs.available: 32Mi}\n")
	writer := `
      terminationGracePeriodSeconds: 1
      containers:
      - name: main
        image: $BOX
        command: [sh, -c, 'test -e /once/$POD || { >/once/$POD; dd if=/dev/zero of=/v/f bs=1M count=$SIZE; }; trap "exit 0" TERM; sleep 100000 & wait']
        volumeMounts: [{name: v, mountPath: /v}, {name: once, mountPath: /once}]
      volumes: [{name: v, emptyDir: {}}, {name: once, hostPath: {path: $DIR/once, type: DirectoryOrCreate}}]
`
	of := func(pod, size string) string {
		return strings.NewReplacer("$POD", pod, "$SIZE", size).Replace(expand(n, writer))
	}
	system := n.Apply(t, "system", "apiVersion: v1\nkind: Pod\nmetadata: {name: system}\nspec:\n      priorityClassName: system-node-critical\n"+of("system", "15")[1:])
	system.WaitReady()
	n.WriteManifest("web.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}\n"+
		"  template:\n    metadata: {labels: {app: web}}\n    spec:\n"+of("web", "25")[1:])
	web := n.Pod(t, "default", "web-0")
	if got := web.WaitEvent("Evicted", "The node was low on resource: ephemeral-storage. Threshold quantity: 32Mi, available: "); !strings.Contains(got, "Container main was using ") {
		t.Logf("the event says %q", got) // it may not be measured yet
	}
	web.WaitReady() // as its controller would make another
	alone := n.Apply(t, "alone", "apiVersion: v1\nkind: Pod\nmetadata: {name: alone}\nspec:\n"+of("alone", "26")[1:])
	status := alone.WaitPhase(corev1.PodFailed).Status
	equal(t, "reason", status.Reason, "Evicted")
	contains(t, "message", status.Message, "The node was low on resource: ephemeral-storage. ")
	for _, p := range []*harness.Pod{system, web} {
		p.WaitReady()
	}
	if p := system.WaitReady(); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the pod that the node depends on: %+v", p.Status)
	}
	over := n.Apply(t, "over", manifest(n, "over", `
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BOX
    command: [sh, -c, 'dd if=/dev/zero of=/v/f bs=1M count=2; trap "exit 0" TERM; sleep 100000 & wait']
    volumeMounts: [{name: v, mountPath: /v}]
  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]
`))
	equal(t, "message of a pod that takes more than it may", over.WaitPhase(corev1.PodFailed).Status.Message, `Usage of EmptyDir volume "v" exceeds the limit "1Mi". `)
	found := false
	for _, e := range n.Events() {
		found = found || e.InvolvedObject.Kind == "Node" && e.Reason == "EvictionThresholdMet" && e.Message == "Attempting to reclaim ephemeral-storage"
	}
	if !found {
		t.Error("that the node ran short is no event of it")
	}
	n.Kill()
	n.Start()
	equal(t, "reason after a restart", alone.WaitPhase(corev1.PodFailed).Status.Reason, "Evicted")
	web.WaitReady()
	n.RemoveAll()
	n.Stop()
}

// The disk of the images is short of what is asked for whatever is removed, so
// that all goes that nobody needs.
func TestGarbageOfANodeWithoutAClusterIsCollected(t *testing.T) {
	n := shortNode(t, "evictionHard: {imagefs.available: 99.999%}\n")
	system := n.Apply(t, "system", manifest(n, "system", "\nspec: {priorityClassName: system-node-critical, containers: [{name: main, image: $BOX}]}\n"))
	system.WaitReady()
	n.MustCLI("image", "pull", harness.Busybox)
	harness.Eventually(t, harness.PodTimeout, "the image that nobody uses is gone", func() string {
		out := n.MustCLI("image", "ls")
		if !strings.Contains(out, "registry.test/box") {
			t.Fatalf("the image in use is gone:\n%s", out)
		}
		if strings.Contains(out, "registry.test/busybox") {
			return out
		}
		return ""
	})
	done := n.Apply(t, "done", manifest(n, "done", "\nspec: {priorityClassName: system-node-critical, restartPolicy: Never, containers: [{name: main, image: $BOX, command: ['true']}]}\n"))
	done.WaitPhase(corev1.PodSucceeded)
	harness.Eventually(t, harness.PodTimeout, "the dead container is gone", func() string {
		logs, err := filepath.Glob(n.Config.PodLogsDir + "/default_done_*/main/*")
		if len(logs) > 0 || err != nil {
			return fmt.Sprint(logs, err)
		}
		return ""
	})
	equal(t, "phase of the pod that has ended", done.WaitPhase(corev1.PodSucceeded).Status.Phase, corev1.PodSucceeded)
	system.WaitReady()
	n.RemoveAll()
	n.Stop()
}
