package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/phase"
)

func list(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func TestAContainerShowsWhatItHasWhileItRunsAndWhatItIsAllocatedOtherwise(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), exited("b", 1))
	for i := range in.Pod.Spec.Containers {
		in.Pod.Spec.Containers[i].Resources = v1.ResourceRequirements{
			Requests: list("cpu", "2", "memory", "2Gi", "example.com/x", "1"), Limits: list("memory", "2Gi", "example.com/x", "1"),
		}
	}
	has := v1.ResourceRequirements{Requests: list("cpu", "1", "memory", "1Gi"), Limits: list("cpu", "4", "memory", "1Gi")}
	in.Actuated.Containers = map[string]v1.ResourceRequirements{"id-a": has, "id-b": has}
	s := Of(in)
	want := []*v1.ResourceRequirements{
		{Requests: list("cpu", "1", "memory", "1Gi", "example.com/x", "1"), Limits: list("cpu", "4", "memory", "1Gi", "example.com/x", "1")},
		&in.Pod.Spec.Containers[1].Resources,
	}
	for i, c := range s.ContainerStatuses {
		if diff := cmp.Diff(want[i], c.Resources); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.Name, diff)
		}
		if diff := cmp.Diff(in.Pod.Spec.Containers[i].Resources.Requests, c.AllocatedResources); diff != "" {
			t.Errorf("%s, allocated (-want +got):\n%s", c.Name, diff)
		}
	}
}

func TestThePodShowsWhatItsCgroupHas(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"))
	in.Pod.Spec.Containers[0].Resources = v1.ResourceRequirements{Requests: list("cpu", "2", "example.com/x", "1"), Limits: list("memory", "1Gi")}
	had := allocation.Of(in.Pod).In(in.Pod)
	had.Spec.Containers[0].Resources.Requests = list("cpu", "1")
	before := allocation.Of(had)
	in.Actuated.Cgroup = &before
	s := Of(in)
	if diff := cmp.Diff(&v1.ResourceRequirements{Requests: list("cpu", "1"), Limits: list("memory", "1Gi")}, s.Resources); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(list("cpu", "2", "example.com/x", "1"), s.AllocatedResources); diff != "" {
		t.Errorf("allocated (-want +got):\n%s", diff)
	}
	in.Observed.Containers = nil
	if diff := cmp.Diff(list("cpu", "2", "example.com/x", "1"), Of(in).Resources.Requests); diff != "" {
		t.Errorf("pending (-want +got):\n%s", diff)
	}
}

func TestAResizesConditionsHaveTheTimeOfTheirReason(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"))
	in.ResizePending = &v1.PodCondition{Type: v1.PodResizePending, Reason: v1.PodReasonDeferred, Message: "m", ObservedGeneration: 2}
	in.ResizeInProgress = &v1.PodCondition{Type: v1.PodResizeInProgress, ObservedGeneration: 1}
	first := Of(in)
	next := func(change func()) *v1.PodCondition {
		s := Of(in)
		in.Previous = &s
		in.Now = in.Now.Add(time.Hour)
		change()
		s = Of(in)
		return find(s.Conditions, v1.PodResizePending)
	}
	at := metav1.Time{Time: now}
	if c := next(func() {}); !c.LastTransitionTime.Equal(&at) || !c.LastProbeTime.Equal(&at) {
		t.Errorf("nothing changed, and it is %+v", c)
	}
	if c := next(func() { in.ResizePending.Message = "n" }); !c.LastTransitionTime.Equal(&at) || c.LastProbeTime.Equal(&at) {
		t.Errorf("after another message it is %+v", c)
	}
	if c := next(func() { in.ResizePending.Reason = v1.PodReasonInfeasible }); c.LastTransitionTime.Equal(&at) {
		t.Errorf("after another reason it is %+v", c)
	}
	in.ResizePending, in.ResizeInProgress = nil, nil
	done := Of(in)
	if len(done.Conditions) != len(first.Conditions)-2 {
		t.Errorf("they stay: %v", done.Conditions)
	}
	if got := Adopt(done, first); len(got.Conditions) != len(done.Conditions) {
		t.Errorf("they come back: %v", got.Conditions)
	}
}
