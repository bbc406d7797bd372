package plan

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/observed"
)

// resize sets what runs with other resources than it is allocated. Containers
// that have to end for that do so before, and no other starts before it is
// done or has failed.
func resize(in Input, d *Decision) {
	if d.Complete || !Resizing(in.Pod, in.Observed, in.Actuated) {
		return
	}
	if slices.ContainsFunc(d.Actions, kills) {
		return
	}
	if f, ok := in.Failures[ResizeFailure]; ok && f.RetryAt.After(in.Now) {
		d.wakeAt(f.RetryAt)
		return
	}
	d.Actions = slices.Insert(d.Actions, 0, Action(resizeOf(in)))
}

func kills(a Action) bool {
	_, kill := a.(KillContainer)
	return kill
}

func resizeOf(in Input) Resize {
	var r Resize
	var to []string
	for c := range resizable(in.Pod) {
		want := allocation.AmountsOf(allocation.Effective(in.Pod, c))
		to = append(to, fmt.Sprintf("%s: %s", c.Name, want))
		if cur := running(in.Observed, c.Name); cur != nil && differs(in.Pod, c, cur, in.Actuated) {
			r.Containers = append(r.Containers, ResizeContainer{ID: cur.ID, Name: cur.Name})
		}
	}
	if level := in.Pod.Spec.Resources; level != nil {
		to = append(to, fmt.Sprintf("pod: %s", allocation.AmountsOf(*level)))
	}
	r.to = strings.Join(to, ", ")
	return r
}

// Resizing tells whether something of the pod runs with other resources than
// it is allocated. A container that does not run is started with the right ones.
func Resizing(pod *v1.Pod, obs *observed.Pod, actuated allocation.Actuated) bool {
	if obs.ReadySandbox() == nil {
		return false
	}
	if actuated.Cgroup != nil && !actuated.Cgroup.SameAmounts(allocation.Of(pod)) {
		return true
	}
	for c := range resizable(pod) {
		if cur := running(obs, c.Name); cur != nil && differs(pod, c, cur, actuated) {
			return true
		}
	}
	return false
}

// resizable yields the containers that are resized: all but ephemeral ones.
func resizable(pod *v1.Pod) func(func(*v1.Container) bool) {
	return func(yield func(*v1.Container) bool) {
		for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
	}
}

func running(obs *observed.Pod, name string) *observed.Container {
	if cur := obs.Container(name); cur != nil && cur.State == observed.Running {
		return cur
	}
	return nil
}

func differs(pod *v1.Pod, c *v1.Container, cur *observed.Container, actuated allocation.Actuated) bool {
	has, known := actuated.Containers[cur.ID]
	return known && allocation.AmountsOf(has) != allocation.AmountsOf(allocation.Effective(pod, c))
}

// restartToResize kills a container whose resize policy wants it started anew
// for a change of a resource, and tells whether it did (kubelet:
// pkg/kubelet/kuberuntime, computePodResizeAction).
func (r *run) restartToResize(c *v1.Container, cur *observed.Container) bool {
	stored, known := r.in.Actuated.Containers[cur.ID]
	if !known {
		return false
	}
	has, want := allocation.AmountsOf(stored), allocation.AmountsOf(allocation.Effective(r.in.Pod, c))
	changed := map[v1.ResourceName]bool{
		v1.ResourceCPU:    has.CPURequest != want.CPURequest || has.CPULimit != want.CPULimit,
		v1.ResourceMemory: has.MemoryRequest != want.MemoryRequest || has.MemoryLimit != want.MemoryLimit,
	}
	restart := slices.ContainsFunc(c.ResizePolicy, func(p v1.ContainerResizePolicy) bool {
		return changed[p.ResourceName] && p.RestartPolicy == v1.RestartContainer
	})
	if !restart {
		return false
	}
	r.d.act(KillContainer{ID: cur.ID, Name: cur.Name, Reason: "Killing",
		Message: "Container " + c.Name + " resize requires restart", Restart: true})
	return true
}
