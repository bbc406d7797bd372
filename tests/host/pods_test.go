package host

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/harness"
)

const namespace = metav1.NamespaceDefault

// podSpecs are the pods that stay, by name.
var podSpecs = map[string]string{
	"guaranteed": `containers: [{name: main, image: $BOX, resources: {limits: {cpu: 100m, memory: 64Mi}}}]`,
	"burstable": `
containers: [{name: main, image: $BOX, resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 200m, memory: 128Mi}}}]`,
	"besteffort": `containers: [{name: main, image: $BOX}]`,
	"podlevel": `
resources: {requests: {cpu: 60m, memory: 48Mi}, limits: {cpu: 200m, memory: 96Mi}}
containers:
- {name: main, image: $BOX}
- {name: side, image: $BOX, resources: {requests: {cpu: 20m, memory: 16Mi}, limits: {memory: 32Mi}}}`,
	"userns": `{hostUsers: false, containers: [{name: main, image: $BOX}]}`,
}

// killed are those that ask for more memory than they may have.
var killed = map[string]string{
	"oom-init": `
restartPolicy: Never
containers: [{name: main, image: $BOX, command: [testbox, alloc, --mib, "64"], resources: {limits: {cpu: 100m, memory: 24Mi}}}]`,
	"oom-child": childOverLimit,
}

const childOverLimit = `
restartPolicy: Never
containers: [{name: main, image: $BOX, command: [sh, -c, 'testbox alloc --mib 64; sleep 1; exit 3'], resources: {limits: {cpu: 100m, memory: 24Mi}}}]`

func (m *machine) create(t *testing.T, name, spec string) {
	t.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(spec, "$BOX", harness.Box)), &pod.Spec); err != nil {
		t.Fatalf("pod %s: %v", name, err)
	}
	pod.Spec.TerminationGracePeriodSeconds = new(int64)
	harness.Eventually(t, timeout, "pod "+name+" is created", func() string { // its service account is to come
		_, err := m.client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{})
		return text(err)
	})
}

func (m *machine) get(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	pod, err := m.client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// wait returns the pod as soon as check has nothing against it.
func (m *machine) wait(t *testing.T, name, what string, check func(*corev1.Pod) string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	harness.Eventually(t, timeout, "pod "+name+" "+what, func() string {
		got, err := m.client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			time.Sleep(time.Second)
			return err.Error()
		}
		pod = got
		return check(pod)
	})
	return pod
}

func ready(pod *corev1.Pod) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return ""
		}
	}
	return fmt.Sprintf("%s, %s, %v", pod.Status.Phase, pod.Status.Message, pod.Status.ContainerStatuses)
}

func failed(pod *corev1.Pod) string {
	if pod.Status.Phase == corev1.PodFailed {
		return ""
	}
	return fmt.Sprintf("it is %s", pod.Status.Phase)
}

func (m *machine) delete(t *testing.T, name string) {
	t.Helper()
	if err := m.client.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// resize patches a pod's resources as kubectl patch --subresource resize does.
func (m *machine) resize(t *testing.T, name, spec string) {
	t.Helper()
	patch, err := yaml.YAMLToJSON([]byte("spec: " + spec))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.client.CoreV1().Pods(namespace).Patch(t.Context(), name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "resize"); err != nil {
		t.Fatalf("resize %s: %v", name, err)
	}
}
