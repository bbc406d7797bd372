package evict

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/usage"
)

const (
	mi = 1 << 20
	gi = 1 << 30
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func list(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func pod(name string, requests ...string) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID(name), Generation: 3},
		Spec:       v1.PodSpec{Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: list(requests...)}}}},
	}
}

func with(p *v1.Pod, change ...func(*v1.Pod)) *v1.Pod {
	for _, f := range change {
		f(p)
	}
	return p
}

func priority(n int32) func(*v1.Pod) { return func(p *v1.Pod) { p.Spec.Priority = &n } }

func grace(n int64) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.TerminationGracePeriodSeconds = &n }
}

func limits(pairs ...string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.Containers[0].Resources.Limits = list(pairs...) }
}

func emptyDir(name, limit string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		source := &v1.EmptyDirVolumeSource{}
		if limit != "" {
			q := resource.MustParse(limit)
			source.SizeLimit = &q
		}
		p.Spec.Volumes = append(p.Spec.Volumes, v1.Volume{Name: name, VolumeSource: v1.VolumeSource{EmptyDir: source}})
	}
}

func uses(memory uint64, rootfs, logs, volume usage.Disk) usage.Pod {
	return usage.Pod{
		WorkingSet: memory, Processes: memory,
		Containers: []usage.Container{{Name: "c", WorkingSet: memory, Rootfs: &rootfs, Logs: &logs}},
		Volumes:    map[string]usage.Volume{"v": {Disk: volume}},
	}
}

func bytes(n uint64) usage.Disk { return usage.Disk{Bytes: n, Inodes: 1} }

func policy(t *testing.T, s Settings, layout usage.Layout) Policy {
	t.Helper()
	thresholds, err := s.Thresholds()
	if err != nil {
		t.Fatal(err)
	}
	return newPolicy(thresholds, layout, 5*time.Minute, 60)
}
