package downward

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func somePod() Pod {
	limits := func(cpu, memory string) v1.ResourceRequirements {
		list := v1.ResourceList{}
		if cpu != "" {
			list[v1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			list[v1.ResourceMemory] = resource.MustParse(memory)
		}
		return v1.ResourceRequirements{Limits: list, Requests: list}
	}
	return Pod{
		Pod: &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Name: "web", Namespace: "default", UID: "uid-1",
				Labels: map[string]string{"app": "web", "a/b": "2"}, Annotations: map[string]string{"Note": `a "b"`},
			},
			Spec: v1.PodSpec{
				ServiceAccountName: "robot",
				InitContainers:     []v1.Container{{Name: "init", Resources: limits("100m", "1Mi")}},
				Containers:         []v1.Container{{Name: "main", Resources: limits("1500m", "")}},
			},
		},
		NodeName: "node-1", HostIPs: []string{"192.0.2.1", "2001:db8::1"}, PodIPs: []string{"10.0.0.2", "fd00::2"},
		Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("64Mi")},
	}
}

func TestFields(t *testing.T) {
	for _, test := range []struct{ path, want, problem string }{
		{"metadata.name", "web", ""},
		{"metadata.namespace", "default", ""},
		{"metadata.uid", "uid-1", ""},
		{"metadata.labels", "a/b=\"2\"\napp=\"web\"", ""},
		{"metadata.annotations", `Note="a \"b\""`, ""},
		{"metadata.labels['a/b']", "2", ""},
		{"metadata.labels['none']", "", ""},
		{"metadata.annotations['Note']", `a "b"`, ""},
		{"spec.nodeName", "node-1", ""},
		{"spec.serviceAccountName", "robot", ""},
		{"status.hostIP", "192.0.2.1", ""},
		{"status.hostIPs", "192.0.2.1,2001:db8::1", ""},
		{"status.podIP", "10.0.0.2", ""},
		{"status.podIPs", "10.0.0.2,fd00::2", ""},
		{"status.phase", "", "unsupported fieldPath: status.phase"},
		{"spec.nope", "", "field label not supported: spec.nope"},
		{"metadata.name['x']", "", "field label does not support subscript: metadata.name['x']"},
	} {
		got, err := somePod().Field(&v1.ObjectFieldSelector{FieldPath: test.path})
		if got != test.want || (err == nil) != (test.problem == "") || err != nil && err.Error() != test.problem {
			t.Errorf("%s: %q, %v; want %q, %q", test.path, got, err, test.want, test.problem)
		}
	}
}

func TestResources(t *testing.T) {
	for _, test := range []struct{ container, resource, divisor, want, problem string }{
		{"main", "limits.cpu", "", "2", ""},
		{"main", "limits.cpu", "1m", "1500", ""},
		{"init", "requests.memory", "1Ki", "1024", ""},
		{"main", "limits.memory", "1Mi", "64", ""},
		{"main", "requests.memory", "", "0", ""},
		{"main", "limits.hugepages-2Mi", "", "0", ""},
		{"other", "limits.cpu", "", "", "container other not found"},
		{"main", "limits.gpu", "", "", "unsupported container resource : limits.gpu"},
		{"main", "cpu", "", "", "unsupported container resource : cpu"},
	} {
		ref := &v1.ResourceFieldSelector{ContainerName: test.container, Resource: test.resource}
		if test.divisor != "" {
			ref.Divisor = resource.MustParse(test.divisor)
		}
		got, err := somePod().Resource(ref, nil)
		if got != test.want || (err == nil) != (test.problem == "") || err != nil && err.Error() != test.problem {
			t.Errorf("%s of %s: %q, %v; want %q, %q", test.resource, test.container, got, err, test.want, test.problem)
		}
	}
}

func FuzzField(f *testing.F) {
	for _, seed := range []string{"metadata.name", "metadata.labels['app']", "metadata.labels['']", "['x']", "metadata.labels['a']['b']", "']"} {
		f.Add(seed)
	}
	pod := somePod()
	f.Fuzz(func(t *testing.T, path string) {
		value, err := pod.Field(&v1.ObjectFieldSelector{FieldPath: path})
		if err != nil && value != "" {
			t.Fatalf("%q: both %q and %v", path, value, err)
		}
	})
}
