package host

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/tests/harness"
)

// TestNodeAfterReboot is for the machine that TestNode left, booted again.
func TestNodeAfterReboot(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { sayWhy(t) })
	var before state
	if err := json.Unmarshal([]byte(read(t, stateFile)), &before); err != nil {
		t.Fatal(err)
	}
	if read(t, "/proc/sys/kernel/random/boot_id") == before.BootID {
		t.Fatal("the machine was not booted again")
	}
	m.client = newClient(t)
	waitForAPI(t, m.client)
	m.waitReady(t)
	t.Run("each pod was started once more", func(t *testing.T) { m.testStartedOnce(t, before) })
	t.Run("nothing is there but what pods have", m.testNothingStale)
	t.Run("pods run on without the unit", m.testDisabled)
	t.Run("a node that leaves its cluster", m.testLeave)
}

func (m *machine) testStartedOnce(t *testing.T, before state) {
	addresses := map[string]string{}
	for name := range podSpecs {
		pod := m.wait(t, name, "is ready", ready)
		for _, s := range pod.Status.ContainerStatuses {
			if s.RestartCount != 1 {
				t.Errorf("%s: container %s has been started again %d times: %+v", name, s.Name, s.RestartCount, s.LastTerminationState)
			}
		}
		if id := containerID(pod, "main"); id == before.Containers[name] {
			t.Errorf("%s: its container is the one of before", name)
		}
		if other := addresses[pod.Status.PodIP]; other != "" || pod.Status.PodIP == "" {
			t.Errorf("%s has the address %q, and so has %q", name, pod.Status.PodIP, other)
		}
		addresses[pod.Status.PodIP] = name
	}
	if pod := m.get(t, "hog"); pod.Status.Reason != "Evicted" {
		t.Errorf("the evicted pod is %s, %s", pod.Status.Phase, pod.Status.Reason)
	}
}

// testNothingStale also asserts that settings which follow from all pods are as
// before.
func (m *machine) testNothingStale(t *testing.T) {
	want := map[string]bool{}
	for name := range podSpecs {
		want[slice(m.get(t, name))] = true
	}
	got, err := filepath.Glob(cgroups + "/kubepods.slice/kubepods-pod*.slice")
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(cgroups + "/kubepods.slice/*/kubepods-*-pod*.slice")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(got, more...) {
		if group, _ := filepath.Rel(cgroups, dir); !want[group] {
			t.Errorf("%s is nobody's", group)
		} else {
			delete(want, group)
		}
	}
	for group := range want {
		t.Errorf("%s is not there", group)
	}
	if n := len(entries(t, "/run/berth/sandboxes")); n != len(podSpecs) {
		t.Errorf("%d sandboxes of %d pods", n, len(podSpecs))
	}
	list, err := m.client.CoreV1().Pods(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, uid := range entries(t, "/var/lib/kubelet/pods") { // those of pods that have ended, too
		if !slices.ContainsFunc(list.Items, func(p corev1.Pod) bool { return string(p.UID) == uid }) {
			t.Errorf("/var/lib/kubelet/pods/%s is no pod's", uid)
		}
	}
	if n := len(strings.Fields(run(t, "pgrep", "-x", "berth-shim"))); n != len(podSpecs) {
		t.Errorf("%d shims of %d pods", n, len(podSpecs))
	}
}

// entries are the names in a directory.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func (m *machine) testDisabled(t *testing.T) {
	running := map[string][]string{}
	for name := range podSpecs {
		group := scope(m.get(t, name), "main")
		running[group] = pids(t, group)
	}
	run(t, "systemctl", "disable", "-q", "--now", "kubelet")
	for group, was := range running {
		if now := pids(t, group); strings.Join(now, " ") != strings.Join(was, " ") {
			t.Errorf("%s has processes %v, had %v", group, now, was)
		}
	}
	run(t, "systemctl", "enable", "-q", "--now", "kubelet")
}

// testLeave does what docs/systemd.md says.
func (m *machine) testLeave(t *testing.T) {
	err := m.client.CoreV1().Pods(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, timeout, "the pods are gone", func() string {
		list, err := m.client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		if len(list.Items) > 0 {
			return list.Items[0].Name + " is there"
		}
		// What is left of them goes after their objects have gone.
		return strings.Join(entries(t, "/run/berth/sandboxes"), ", ")
	})
	out := run(t, filepath.Join(m.bin, "peers/kubeadm"), "reset", "-f", "--cri-socket", "unix:///run/berth/cri.sock")
	run(t, "systemctl", "disable", "-q", "kubelet")
	run(t, "systemctl", "stop", "kubepods.slice")
	run(t, "systemctl", "set-property", "--runtime", "system.slice", "MemoryMax=infinity")
	run(t, "systemctl", "revert", "system.slice", "kube.slice")
	for _, what := range []string{
		"pgrep -x berth-shim",
		"grep -E ' (/var/lib/kubelet|/run/berth)/' /proc/mounts",
		"ls -d /sys/fs/cgroup/kubepods.slice",
		"find /var/lib/kubelet /etc/kubernetes -type f",
		"systemctl is-active kubelet | grep -v inactive",
	} {
		if left, err := try("sh", "-c", what+" 2>/dev/null"); err == nil && left != "" {
			t.Errorf("%s: %s\nkubeadm reset said: %s", what, left, out)
		}
	}
	if reason := (values{"memory.max": "max"}).differs("system.slice"); reason != "" {
		t.Error(reason)
	}
}
