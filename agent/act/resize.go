package act

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/internal/failpoint"
)

// Resize sets the pod's cgroup and containers that run to what the pod is
// allocated, in the kubelet's order (pkg/kubelet/kuberuntime,
// doPodResizeAction): memory, then CPU; the pod's cgroup first where it grows
// and last where it shrinks; containers that get less before those that get
// more. A memory limit that what is used does not fit in is refused before
// anything is changed.
//
// Actuated is what they have now. It is changed with each step, and done is
// called then. After an error Resize goes on from there.
func (a *Actor) Resize(ctx context.Context, pod Pod, r plan.Resize, actuated *allocation.Actuated, done func()) (err error) {
	end := pod.Timeline.Begin(timeline.Resize, "")
	defer func() { end(err) }()
	if actuated.Cgroup == nil {
		all := allocation.Of(pod.Pod)
		actuated.Cgroup = &all
	}
	z := &resize{a: a, pod: pod, actuated: actuated, done: done}
	for _, c := range r.Containers {
		if spec := containerSpec(pod.Pod, c.Name); spec != nil {
			z.containers = append(z.containers, resized{ResizeContainer: c, spec: spec, want: allocation.Effective(pod.Pod, spec)})
		}
	}
	if err := z.checkMemory(ctx); err != nil {
		return err
	}
	for _, name := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		if err := z.resource(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// resize is one call of Resize.
type resize struct {
	a          *Actor
	pod        Pod
	containers []resized
	actuated   *allocation.Actuated
	done       func()
}

type resized struct {
	plan.ResizeContainer
	spec *v1.Container
	want v1.ResourceRequirements
}

// now is what the container has.
func (z *resize) now(c resized) v1.ResourceRequirements { return z.actuated.Containers[c.ID] }

func containerSpec(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		if i := slices.IndexFunc(list, func(c v1.Container) bool { return c.Name == name }); i >= 0 {
			return &list[i]
		}
	}
	return nil
}

// step is one setting of the pod's cgroup: its size before and after, which
// are compared, and what is written.
type step struct {
	before, after int64
	set           qos.Settings
}

// resource brings one resource to what is allocated.
func (z *resize) resource(ctx context.Context, name v1.ResourceName) error {
	before := z.actuated.Cgroup.In(z.pod.Pod)
	target := z.actuated.Cgroup.With(allocation.Of(z.pod.Pod), name)
	after := target.In(z.pod.Pod)
	steps := podSteps(name, z.a.Cgroups.PodSettings(before), z.a.Cgroups.PodSettings(after))
	for _, s := range steps {
		if s.after > s.before {
			if err := z.setPod(ctx, name, s.set); err != nil {
				return err
			}
		}
	}
	for _, c := range z.lessFirst(name) {
		if err := z.setContainer(ctx, after, c, name); err != nil {
			return err
		}
	}
	slices.Reverse(steps)
	for _, s := range steps {
		if s.after < s.before {
			if err := z.setPod(ctx, name, s.set); err != nil {
				return err
			}
		}
	}
	z.actuated.Cgroup = &target
	z.done()
	return nil
}

// podSteps are the settings of the pod's cgroup that one resource has: the
// limit, and below it the request. What is not limited is the largest; a limit
// is not taken away, as the API does not allow it.
func podSteps(name v1.ResourceName, before, after qos.Settings) []step {
	if name == v1.ResourceMemory {
		if after.MemoryBytes == 0 {
			return nil
		}
		return []step{{bounded(before.MemoryBytes), after.MemoryBytes, qos.Settings{MemoryBytes: after.MemoryBytes, Unified: after.Unified}}}
	}
	steps := []step{{int64(before.CPUShares), int64(after.CPUShares), qos.Settings{CPUShares: after.CPUShares}}}
	if after.CPUQuota == 0 {
		return steps
	}
	limit := step{bounded(before.CPUQuota), bounded(after.CPUQuota), qos.Settings{CPUQuota: after.CPUQuota, CPUPeriod: after.CPUPeriod}}
	return append([]step{limit}, steps...)
}

func bounded(limit int64) int64 {
	if limit <= 0 {
		return math.MaxInt64
	}
	return limit
}

// setPod tells the runtime, which may refuse, and then sets the pod's cgroup.
func (z *resize) setPod(ctx context.Context, name v1.ResourceName, s qos.Settings) error {
	if err := z.notify(ctx, s); err != nil {
		return fmt.Errorf("failed to notify runtime for UpdatePodSandboxResources (resource=%s); resize rejected: %w", name, err)
	}
	if err := z.a.Cgroups.SetPod(z.pod.Pod, s); err != nil {
		before := z.a.Cgroups.PodSettings(z.actuated.Cgroup.In(z.pod.Pod))
		return errors.Join(err, z.notify(ctx, before))
	}
	failpoint.Hit("agent/resize-pod-set")
	return nil
}

// notify tells the runtime what the pod's cgroup is set to, without the
// overhead. A runtime that does not know the call need not be told.
func (z *resize) notify(ctx context.Context, s qos.Settings) error {
	_, overhead := qos.SandboxResources(z.pod.Pod, z.a.Cgroups.Node())
	r := &runtimeapi.LinuxContainerResources{CpuShares: int64(s.CPUShares), CpuPeriod: s.CPUPeriod, CpuQuota: s.CPUQuota, MemoryLimitInBytes: s.MemoryBytes}
	if r.CpuShares > 0 && z.pod.Spec.Overhead != nil {
		r.CpuShares -= overhead.GetCpuShares()
	}
	if r.CpuQuota > 0 {
		r.CpuQuota -= overhead.GetCpuQuota()
	}
	if r.MemoryLimitInBytes > 0 {
		r.MemoryLimitInBytes -= overhead.GetMemoryLimitInBytes()
	}
	call, cancel := z.a.call(ctx)
	defer cancel()
	_, err := z.a.Sandboxes.UpdatePodSandboxResources(call, &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: z.pod.Sandbox, Overhead: overhead, Resources: r,
	})
	if code := status.Code(err); code == codes.Unimplemented || code == codes.Unknown && err != nil && strings.Contains(err.Error(), "not implemented") {
		return nil // containerd 2.2 says it with Unknown
	}
	return plain(why(ctx, call, err))
}

// lessFirst orders the containers whose amounts of a resource change.
func (z *resize) lessFirst(name v1.ResourceName) []resized {
	growth := func(c resized) int {
		now, want := allocation.AmountsOf(z.now(c)), allocation.AmountsOf(c.want)
		if name == v1.ResourceMemory {
			return cmp.Or(cmp.Compare(want.MemoryLimit, now.MemoryLimit), cmp.Compare(want.MemoryRequest, now.MemoryRequest))
		}
		return cmp.Or(cmp.Compare(want.CPULimit, now.CPULimit), cmp.Compare(want.CPURequest, now.CPURequest))
	}
	out := slices.DeleteFunc(slices.Clone(z.containers), func(c resized) bool { return growth(c) == 0 })
	slices.SortStableFunc(out, func(a, b resized) int { return cmp.Compare(growth(a), growth(b)) })
	return out
}

func (z *resize) setContainer(ctx context.Context, pod *v1.Pod, c resized, name v1.ResourceName) error {
	target := allocation.With(z.now(c), c.want, name)
	spec := *c.spec
	// Resources that cannot be resized are as in the pod.
	spec.Resources = allocation.With(allocation.With(spec.Resources, target, v1.ResourceMemory), target, v1.ResourceCPU)
	call, cancel := z.a.call(ctx)
	defer cancel()
	_, err := z.a.Containers.UpdateContainerResources(call, &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: c.ID, Linux: qos.ContainerResources(pod, &spec, z.a.Cgroups.Node()),
	})
	if err != nil {
		return fmt.Errorf("update resources of container %s: %w", c.Name, plain(why(ctx, call, err)))
	}
	failpoint.Hit("agent/resize-actuated")
	z.actuated.Containers[c.ID] = target
	z.done()
	return nil
}

// checkMemory refuses limits below what is in use: the kernel would kill for
// them (kubelet: validateMemoryResizeAction).
func (z *resize) checkMemory(ctx context.Context) error {
	before := z.a.Cgroups.PodSettings(z.actuated.Cgroup.In(z.pod.Pod))
	after := z.a.Cgroups.PodSettings(z.pod.Pod)
	podLess := after.MemoryBytes > 0 && after.MemoryBytes < bounded(before.MemoryBytes)
	less := map[string]int64{}
	for _, c := range z.containers {
		now, want := allocation.AmountsOf(z.now(c)).MemoryLimit, allocation.AmountsOf(c.want).MemoryLimit
		if want > 0 && want < bounded(now) {
			less[c.Name] = want
		}
	}
	if !podLess && len(less) == 0 {
		return nil
	}
	call, cancel := z.a.call(ctx)
	defer cancel()
	resp, err := z.a.Sandboxes.PodSandboxStats(call, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: z.pod.Sandbox})
	if err != nil {
		return fmt.Errorf("unable to read memory usage for pod %q: %w", z.pod.Name, plain(why(ctx, call, err)))
	}
	var problems []string
	usage := resp.GetStats().GetLinux().GetMemory().GetUsageBytes()
	switch {
	case !podLess:
	case usage == nil:
		problems = append(problems, "missing pod memory usage")
	case usage.GetValue() >= uint64(after.MemoryBytes):
		problems = append(problems, fmt.Sprintf("attempting to set pod memory limit (%d) below current usage (%d)", after.MemoryBytes, usage.GetValue()))
	}
	for _, c := range resp.GetStats().GetLinux().GetContainers() {
		container := c.GetAttributes().GetMetadata().GetName()
		limit, shrinks := less[container]
		if !shrinks {
			continue
		}
		if used := c.GetMemory().GetUsageBytes(); used == nil {
			problems = append(problems, fmt.Sprintf("missing container %q memory usage", container))
		} else if used.GetValue() >= uint64(limit) {
			problems = append(problems, fmt.Sprintf("attempting to set container %q memory limit (%d) below current usage (%d)", container, limit, used.GetValue()))
		}
	}
	switch len(problems) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("cannot decrease memory limits: %s", problems[0])
	}
	return fmt.Errorf("cannot decrease memory limits: [%s]", strings.Join(problems, ", "))
}
