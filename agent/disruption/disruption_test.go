package disruption

import (
	"testing"

	v1 "k8s.io/api/core/v1"
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
