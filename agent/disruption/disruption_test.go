package disruption

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestCriticalPodsAreThoseOfTheNodeAndOfSystemPriority(t *testing.T) {
	high, low := int32(2_000_000_000), int32(1_999_999_999)
	for _, test := range []struct {
		name             string
		annotations      map[string]string
		priority         *int32
		static, critical bool
	}{
		{"plain", nil, nil, false, false},
		{"from the API server", map[string]string{"kubernetes.io/config.source": "api"}, nil, false, false},
		{"from a file", map[string]string{"kubernetes.io/config.source": "file"}, nil, true, true},
		{"from a URL", map[string]string{"kubernetes.io/config.source": "http"}, nil, true, true},
		{"a mirror", map[string]string{"kubernetes.io/config.mirror": "x"}, nil, false, true},
		{"of system priority", nil, &high, false, true},
		{"of high priority", nil, &low, false, false},
	} {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: test.annotations}, Spec: v1.PodSpec{Priority: test.priority}}
		if got := Static(pod); got != test.static {
			t.Errorf("%s: static %v", test.name, got)
		}
		if got := Critical(pod); got != test.critical {
			t.Errorf("%s: critical %v", test.name, got)
		}
	}
}

func TestWhatAPodAsksFor(t *testing.T) {
	list := func(cpu, memory string) v1.ResourceList {
		return v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
	}
	pod := &v1.Pod{Spec: v1.PodSpec{
		Containers:     []v1.Container{{Resources: v1.ResourceRequirements{Requests: list("100m", "1Ki")}}, {Resources: v1.ResourceRequirements{Requests: list("1", "2Ki")}}},
		InitContainers: []v1.Container{{Resources: v1.ResourceRequirements{Requests: list("100m", "5Ki")}}},
	}}
	want := func(name v1.ResourceName, amount int64) {
		t.Helper()
		if got := Request(pod, name); got != amount {
			t.Errorf("%s: %d, want %d", name, got, amount)
		}
	}
	want(v1.ResourceCPU, 1100)
	want(v1.ResourceMemory, 5120)
	want(v1.ResourcePods, 1)
	pod.Spec.Overhead = v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Ki"), v1.ResourceEphemeralStorage: resource.MustParse("1Ki")}
	want(v1.ResourceMemory, 6144)
	want(v1.ResourceEphemeralStorage, 0)
	pod.Spec.Resources = &v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: resource.MustParse("10Ki")}}
	want(v1.ResourceMemory, 11264)
	want(v1.ResourceCPU, 0)
}
