package admit

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const critical = 2_000_000_000

func checker(t *testing.T, change ...func(*Config)) *Checker {
	t.Helper()
	c := Config{KernelVersion: "6.1.0-13-amd64", KubernetesVersion: "v1.36.3"}
	for _, f := range change {
		f(&c)
	}
	checker, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return checker
}

// list reads "cpu", "1", "memory", "1Gi", ...
func list(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func node(change ...func(*v1.Node)) *v1.Node {
	n := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1", Labels: map[string]string{"kubernetes.io/os": "linux", "zone": "a"}},
		Status:     v1.NodeStatus{Allocatable: list("cpu", "4", "memory", "8Gi", "ephemeral-storage", "20Gi", "pods", "5")},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

// pod is named and asks for the pairs.
func pod(name string, requests ...string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name)},
		Spec: v1.PodSpec{NodeName: "n1", Containers: []v1.Container{{
			Name: "c", Resources: v1.ResourceRequirements{Requests: list(requests...)},
		}}},
	}
}

func with(p *v1.Pod, change ...func(*v1.Pod)) *v1.Pod {
	for _, f := range change {
		f(p)
	}
	return p
}

func priority(n int32) func(*v1.Pod) { return func(p *v1.Pod) { p.Spec.Priority = &n } }

// guaranteed limits the pod to what it asks for.
func guaranteed(p *v1.Pod) {
	p.Spec.Containers[0].Resources.Limits = p.Spec.Containers[0].Resources.Requests
}

func static(p *v1.Pod) { p.Annotations = map[string]string{"kubernetes.io/config.source": "file"} }

func names(victims []Victim) []string {
	var out []string
	for _, v := range victims {
		out = append(out, v.Pod.Name)
	}
	return out
}
