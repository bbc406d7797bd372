package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/probe"
)

func limits(cpu, memory string) v1.ResourceRequirements {
	list := v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse(memory)}
	return v1.ResourceRequirements{Requests: list, Limits: list}
}

// resizing is a pod with containers a and b that run with 1 CPU and 1Gi.
func resizing(policy ...v1.ContainerResizePolicy) Input {
	p := pod(v1.RestartPolicyAlways, "a", "b")
	obs := &observed.Pod{Sandboxes: []observed.Sandbox{{ID: "s", Ready: true}}}
	has := allocation.Actuated{Containers: map[string]v1.ResourceRequirements{}}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		c.Resources, c.ResizePolicy = limits("1", "1Gi"), policy
		obs.Containers = append(obs.Containers, observed.Container{ID: "id-" + c.Name, SandboxID: "s", Name: c.Name, State: observed.Running})
		has.Containers["id-"+c.Name] = c.Resources
	}
	had := allocation.Of(p)
	has.Cgroup = &had
	return Input{Pod: p.DeepCopy(), Observed: obs, Actuated: has, Backoff: KubeletBackoff, Now: time.Unix(1000, 0)}
}

func policy(name v1.ResourceName, p v1.ResourceResizeRestartPolicy) v1.ContainerResizePolicy {
	return v1.ContainerResizePolicy{ResourceName: name, RestartPolicy: p}
}

func TestWhatIsDoneForAResize(t *testing.T) {
	restartMemory := []v1.ContainerResizePolicy{policy(v1.ResourceCPU, v1.NotRequired), policy(v1.ResourceMemory, v1.RestartContainer)}
	const both = "resize a: cpu 2000m/2000m memory 1073741824/1073741824, b: cpu 1000m/1000m memory 1073741824/1073741824 [{id-a a}]"
	for _, c := range []struct {
		name   string
		in     Input
		change func(*Input)
		want   []string
	}{
		{"nothing, while nothing is other", resizing(), func(*Input) {}, nil},
		{"another CPU limit is set", resizing(), func(in *Input) { in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi") }, []string{both}},
		{"a policy for another resource does not restart", resizing(restartMemory...),
			func(in *Input) { in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi") }, []string{both}},
		{"a policy for this resource restarts, and the rest has to wait for that", resizing(restartMemory...),
			func(in *Input) {
				in.Pod.Spec.Containers[0].Resources, in.Pod.Spec.Containers[1].Resources = limits("1", "2Gi"), limits("2", "1Gi")
			}, []string{"kill container a: Killing []"}},
		{"a container that ended is set by its start, the pod's cgroup before", resizing(),
			func(in *Input) {
				in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi")
				in.Observed.Containers[0].State = observed.Exited
			}, []string{"resize a: cpu 2000m/2000m memory 1073741824/1073741824, b: cpu 1000m/1000m memory 1073741824/1073741824 []", "start container a, attempt 1 []"}},
		{"the same in another unit is nothing new", resizing(), func(in *Input) { in.Pod.Spec.Containers[0].Resources = limits("1000m", "1024Mi") }, nil},
		{"a limit of the pod that a container inherits is set", resizing(),
			func(in *Input) {
				in.Pod.Spec.Containers[0].Resources.Limits = nil
				level := limits("4", "1Gi")
				in.Pod.Spec.Resources = &level
			}, []string{"resize a: cpu 1000m/4000m memory 1073741824/1073741824, b: cpu 1000m/1000m memory 1073741824/1073741824, pod: cpu 4000m/4000m memory 1073741824/1073741824 [{id-a a}]"}},
		{"what a container has that nothing is known of is what it is allocated", resizing(),
			func(in *Input) {
				in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi")
				in.Actuated = allocation.Actuated{}
			}, nil},
		{"a container that is not well is killed", resizing(),
			func(in *Input) {
				in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi")
				in.Probes = map[string]probe.Result{"a": {ContainerID: "id-a", Kind: probe.Liveness}}
			}, []string{"kill container a: Liveness []"}},
		{"one that failed waits, and holds up nothing else", resizing(),
			func(in *Input) {
				in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi")
				in.Observed.Containers[1].State = observed.Exited
				in.Failures = map[string]Failure{ResizeFailure: {RetryAt: in.Now.Add(time.Second)}}
			}, []string{"start container b, attempt 1 []"}},
	} {
		c.change(&c.in)
		var got []string
		for _, a := range Run(c.in).Actions {
			r, _ := a.(Resize)
			got = append(got, fmt.Sprint(a, " ", r.Containers))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestAFailedResizeIsTriedAgainAtItsTime(t *testing.T) {
	in := resizing()
	in.Pod.Spec.Containers[0].Resources = limits("2", "1Gi")
	at := in.Now.Add(time.Minute)
	in.Failures = map[string]Failure{ResizeFailure: {RetryAt: at}}
	if d := Run(in); len(d.Actions) > 0 || !d.Wake.Equal(at) {
		t.Errorf("%v, again at %s", d.Actions, d.Wake)
	}
	in.Now = at
	if d := Run(in); len(d.Actions) != 1 {
		t.Errorf("%v", d.Actions)
	}
}
