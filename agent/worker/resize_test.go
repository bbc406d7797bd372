package worker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/resource"

	"github.com/berth-io/berth/agent/allocation"
	"github.com/berth-io/berth/agent/internal/fakecri"
	"github.com/berth-io/berth/agent/worker"
)

// amounts are requests and limits, the same of both: CPU in thousandths of a
// core, memory in MiB.
func amounts(cpu, memory int64) v1.ResourceRequirements {
	list := v1.ResourceList{
		v1.ResourceCPU:    *apiresource.NewMilliQuantity(cpu, apiresource.DecimalSI),
		v1.ResourceMemory: *apiresource.NewQuantity(memory<<20, apiresource.BinarySI),
	}
	return v1.ResourceRequirements{Requests: list, Limits: list}
}

// sized is a pod of containers that each have the same.
func sized(name string, cpu, memory int64, containers ...string) *v1.Pod {
	p := pod(name, containers...)
	p.Generation = 1
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Resources = amounts(cpu, memory)
	}
	return p
}

// resized is the next generation of a pod, with other amounts of a container.
func resized(p *v1.Pod, container string, r v1.ResourceRequirements) *v1.Pod {
	next := p.DeepCopy()
	next.Generation++
	for i := range next.Spec.Containers {
		if next.Spec.Containers[i].Name == container {
			next.Spec.Containers[i].Resources = r
		}
	}
	return next
}

// roomFor lets pods onto a node with so much CPU, in thousandths of a core.
func roomFor(cpu int64) func(*v1.Pod, []*v1.Pod) (string, bool) {
	return func(pod *v1.Pod, others []*v1.Pod) (string, bool) {
		requests := resource.PodRequests(pod, resource.PodResourcesOptions{})
		used := int64(0)
		for _, o := range others {
			r := resource.PodRequests(o, resource.PodResourcesOptions{UseStatusResources: true})
			used += r.Cpu().MilliValue()
		}
		if requested := requests.Cpu().MilliValue(); used+requested > cpu {
			return fmt.Sprintf("Node didn't have enough resource: cpu, requested: %d, used: %d, capacity: %d", requested, used, cpu), false
		}
		return "", true
	}
}

func condition(k *worker.Worker, t v1.PodConditionType) *v1.PodCondition {
	synctest.Wait()
	for _, c := range k.Pod().Status.Conditions {
		if c.Type == t {
			return &c
		}
	}
	return nil
}

// wantResources checks what the status says of a container: what it is
// allocated, and what it has.
func wantResources(t *testing.T, k *worker.Worker, container string, allocated, has v1.ResourceRequirements) {
	t.Helper()
	synctest.Wait()
	for _, c := range k.Pod().Status.ContainerStatuses {
		if c.Name != container {
			continue
		}
		if got := (v1.ResourceRequirements{Requests: c.AllocatedResources}); allocation.AmountsOf(got).CPURequest != allocation.AmountsOf(allocated).CPURequest ||
			allocation.AmountsOf(got).MemoryRequest != allocation.AmountsOf(allocated).MemoryRequest {
			t.Errorf("%s is allocated %v, want %v", container, allocation.AmountsOf(got), allocation.AmountsOf(allocated))
		}
		if got := allocation.AmountsOf(*c.Resources); got != allocation.AmountsOf(has) {
			t.Errorf("%s has %v, want %v", container, got, allocation.AmountsOf(has))
		}
	}
}

func wantNotResizing(t *testing.T, k *worker.Worker) {
	t.Helper()
	for _, c := range []v1.PodConditionType{v1.PodResizePending, v1.PodResizeInProgress} {
		if got := condition(k, c); got != nil {
			t.Errorf("condition %+v", got)
		}
	}
}

func TestAPodGrowsBeforeItsContainersAndShrinksAfterThem(t *testing.T) {
	inWorld(t, func(w *world) {
		w.cgroups.Note = w.runtime.Note
		p := sized("web", 100, 64, "a", "b")
		k := w.start(p)
		if k.Pod().Status.ContainerStatuses[0].Resources == nil {
			t.Fatal("no resources in the status")
		}
		w.wantNoEvent("ResizeCompleted")
		mark := w.mark()
		p = resized(p, "a", amounts(200, 128))
		k.Update(p)
		w.wantCalls(mark, "SetPod web shares 0 quota 0 memory 201326592", "UpdateContainerResources a shares 102 quota 10000 memory 134217728",
			"SetPod web shares 0 quota 30000 memory 0", "SetPod web shares 307 quota 0 memory 0",
			"UpdateContainerResources a shares 204 quota 20000 memory 134217728")
		wantResources(t, k, "a", amounts(200, 128), amounts(200, 128))
		wantNotResizing(t, k)
		w.wantEvent("ResizeStarted", `Pod resize started: {"containers":[{"name":"a","resources":{"limits":{"cpu":"200m","memory":"128Mi"},"requests":{"cpu":"200m","memory":"128Mi"}}},{"name":"b"`)
		w.wantEvent("ResizeCompleted", `"generation":2}`)
		mark = w.mark()
		k.Update(resized(p, "a", amounts(100, 64))) // without a pause: back to what it had
		w.wantCalls(mark, "UpdateContainerResources a shares 204 quota 20000 memory 67108864", "SetPod web shares 0 quota 0 memory 134217728",
			"UpdateContainerResources a shares 102 quota 10000 memory 67108864",
			"SetPod web shares 204 quota 0 memory 0", "SetPod web shares 0 quota 20000 memory 0")
		wantResources(t, k, "a", amounts(100, 64), amounts(100, 64))
		wantNotResizing(t, k)
		w.wantRunning("a", "b")
		if n := k.Pod().Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Errorf("restart count %d", n)
		}
		if got := k.Pod().Status.ObservedGeneration; got != 3 {
			t.Errorf("observed generation %d", got)
		}
	})
}

func TestWhatGetsLessIsSetBeforeWhatGetsMore(t *testing.T) {
	inWorld(t, func(w *world) {
		p := sized("web", 100, 64, "a", "b")
		k := w.start(p)
		mark := w.mark()
		k.Update(resized(resized(p, "a", amounts(150, 96)), "b", amounts(50, 32)))
		w.wantCalls(mark, "UpdateContainerResources b shares 102 quota 10000 memory 33554432", "UpdateContainerResources a shares 102 quota 10000 memory 100663296",
			"UpdateContainerResources b shares 51 quota 5000 memory 33554432", "UpdateContainerResources a shares 153 quota 15000 memory 100663296")
	})
}

func TestAContainerWhosePolicySaysSoIsRestartedWithItsNewResources(t *testing.T) {
	inWorld(t, func(w *world) {
		p := sized("web", 100, 64, "a", "b")
		p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{
			{ResourceName: v1.ResourceCPU, RestartPolicy: v1.NotRequired}, {ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer},
		}
		k := w.start(p)
		p = resized(p, "a", amounts(200, 64))
		k.Update(p)
		wantResources(t, k, "a", amounts(200, 64), amounts(200, 64))
		w.wantNoEvent("Killing")
		mark := w.mark()
		k.Update(resized(p, "a", amounts(200, 128)))
		w.wantCalls(mark, "StopContainer a 30s", "CreateContainer a 1", "StartContainer a 1")
		wantResources(t, k, "a", amounts(200, 128), amounts(200, 128))
		wantNotResizing(t, k)
		w.wantEvent("Killing", "Container a resize requires restart")
		if got := w.runtime.Resources("a").GetMemoryLimitInBytes(); got != 128<<20 {
			t.Errorf("it was started with %d bytes", got)
		}
		if got := w.cgroups.Settings("web-uid").MemoryBytes; got != 192<<20 {
			t.Errorf("the pod's cgroup has %d bytes", got)
		}
	})
}

func TestADeferredResizeIsDoneOnceAnotherPodEnds(t *testing.T) {
	inWorld(t, func(w *world) {
		w.fits = roomFor(1000)
		w.restartAgent()
		p := sized("web", 100, 64, "a")
		k, other := w.start(p), w.start(sized("other", 500, 64, "o"))
		mark := w.mark()
		k.Update(resized(p, "a", amounts(600, 64)))
		w.wantCalls(mark)
		c := condition(k, v1.PodResizePending)
		if c == nil || c.Reason != v1.PodReasonDeferred || c.Message != "Node didn't have enough resource: cpu, requested: 600, used: 500, capacity: 1000" || c.ObservedGeneration != 2 {
			t.Errorf("condition %+v", c)
		}
		wantResources(t, k, "a", amounts(100, 64), amounts(100, 64))
		w.wantEvent("ResizeDeferred", `Pod resize Deferred: {"containers":[{"name":"a","resources":{"limits":{"cpu":"600m"`)
		time.Sleep(time.Hour)
		w.wantCalls(mark) // nobody asks all the time
		other.Forget()
		synctest.Wait()
		wantResources(t, k, "a", amounts(600, 64), amounts(600, 64))
		wantNotResizing(t, k)
		if got := len(slices.DeleteFunc(w.reasons(), func(r string) bool { return r != "ResizeDeferred" })); got != 1 {
			t.Errorf("%d events", got)
		}
	})
}

func TestADeferredResizeThatIsTakenBackLeavesNothing(t *testing.T) {
	inWorld(t, func(w *world) {
		w.fits = roomFor(1000)
		w.restartAgent()
		p := sized("web", 100, 64, "a")
		k := w.start(p)
		grown := resized(p, "a", amounts(2000, 64))
		k.Update(grown)
		if condition(k, v1.PodResizePending) == nil {
			t.Error("it is not pending")
		}
		k.Update(resized(grown, "a", amounts(100, 64)))
		wantNotResizing(t, k)
		w.wantNoEvent("ResizeStarted")
	})
}

func TestAMemoryLimitBelowWhatIsUsedIsRefusedAndTriedAgain(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Uses("a", 40<<20)
		p := sized("web", 100, 64, "a")
		k := w.start(p)
		mark := w.mark()
		p = resized(p, "a", amounts(200, 32))
		k.Update(p)
		w.wantCalls(mark)
		const message = `cannot decrease memory limits: [attempting to set pod memory limit (33554432) below current usage (41943040), attempting to set container "a" memory limit (33554432) below current usage (41943040)]`
		c := condition(k, v1.PodResizeInProgress)
		if c == nil || c.Reason != v1.PodReasonError || c.Message != message || c.ObservedGeneration != 2 {
			t.Errorf("condition %+v", c)
		}
		w.wantEvent("ResizeError", "Pod resize error: ")
		wantResources(t, k, "a", amounts(200, 32), amounts(100, 64))
		w.runtime.Uses("a", 20<<20)
		time.Sleep(time.Minute)
		wantResources(t, k, "a", amounts(200, 32), amounts(200, 32))
		wantNotResizing(t, k)
		w.wantRunning("a")
	})
}

func TestARefusedMemoryLimitIsTakenBack(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Uses("a", 40<<20)
		p := sized("web", 100, 64, "a")
		k := w.start(p)
		p = resized(p, "a", amounts(100, 32))
		k.Update(p)
		if condition(k, v1.PodResizeInProgress) == nil {
			t.Error("it is not in progress")
		}
		k.Update(resized(p, "a", amounts(100, 64)))
		wantNotResizing(t, k)
		wantResources(t, k, "a", amounts(100, 64), amounts(100, 64))
	})
}

func TestAContainerThatStartsWhileAResizeIsRefusedLeavesThePodsCgroup(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Uses("a", 40<<20)
		p := sized("web", 100, 64, "a", "b")
		k := w.start(p)
		k.Update(resized(p, "a", amounts(100, 32)))
		w.runtime.Exit("b", 1)
		w.wantRunning("a", "b")
		if got := w.cgroups.Settings("web-uid").MemoryBytes; got != 128<<20 {
			t.Errorf("the pod's cgroup has %d bytes", got)
		}
		if condition(k, v1.PodResizeInProgress) == nil {
			t.Error("it is no longer in progress")
		}
	})
}

func TestARestartedAgentGoesOnWithAResize(t *testing.T) {
	for _, step := range []struct{ method, match string }{
		{"UpdatePodSandboxResources", "cpu_quota"}, {"UpdateContainerResources", "memory_limit_in_bytes:134217728"}, {"UpdateContainerResources", "cpu_quota:20000"},
	} {
		inWorld(t, func(w *world) {
			p := sized("web", 100, 64, "a", "b")
			k := w.start(p)
			mend := w.runtime.Fail(step.method, step.match, errors.New("not now"))
			k.Update(resized(p, "a", amounts(200, 128)))
			c := condition(k, v1.PodResizeInProgress)
			if c == nil || !strings.Contains(c.Message, "not now") {
				t.Errorf("%s: condition %+v", step.match, c)
			}
			mark := w.mark()
			w.restartAgent()
			mend()
			time.Sleep(time.Minute)
			k = w.worker("web")
			wantResources(t, k, "a", amounts(200, 128), amounts(200, 128))
			wantNotResizing(t, k)
			w.wantRunning("a", "b")
			for _, call := range w.runtime.Calls()[mark:] {
				if !strings.HasPrefix(call, "UpdateContainerResources a") {
					t.Errorf("%s: %s", step.match, call)
				}
			}
			if got := w.cgroups.Settings("web-uid"); got.MemoryBytes != 192<<20 || got.CPUQuota != 30000 || got.CPUShares != 307 {
				t.Errorf("%s: the pod's cgroup has %+v", step.match, got)
			}
		})
	}
}

func TestARestartedAgentKnowsWhatIsDoneAndWhatIsDeferred(t *testing.T) {
	inWorld(t, func(w *world) {
		w.fits = roomFor(1000)
		w.restartAgent()
		p := sized("web", 100, 64, "a")
		k := w.start(p)
		p = resized(p, "a", amounts(500, 64))
		k.Update(p)
		wantNotResizing(t, k)
		p = resized(p, "a", amounts(1500, 64))
		k.Update(p)
		since := condition(k, v1.PodResizePending).LastTransitionTime
		mark := w.mark()
		time.Sleep(time.Minute)
		w.restartAgent()
		k = w.worker("web")
		c := condition(k, v1.PodResizePending)
		if c == nil || c.LastTransitionTime.Unix() != since.Unix() {
			t.Errorf("condition %+v", c)
		}
		k.Update(p)
		wantResources(t, k, "a", amounts(500, 64), amounts(500, 64))
		if c := condition(k, v1.PodResizePending); c == nil || c.Reason != v1.PodReasonDeferred {
			t.Errorf("condition %+v", c)
		}
		w.wantCalls(mark)
		k.Update(resized(p, "a", amounts(900, 64)))
		wantResources(t, k, "a", amounts(900, 64), amounts(900, 64))
	})
}

func TestACheckpointFromBeforeResizesIsOfAPodThatHasWhatItIsAllocated(t *testing.T) {
	inWorld(t, func(w *world) {
		p := sized("web", 100, 64, "a")
		p.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceCPU, RestartPolicy: v1.RestartContainer}}
		w.start(p)
		mark := w.mark()
		w.stopAgent()
		kept, errs := w.kept.Load()
		if len(errs) > 0 || len(kept) != 1 {
			t.Fatal(errs)
		}
		kept[0].Actuated = allocation.Actuated{}
		if err := w.kept.Save(kept[0], true); err != nil {
			t.Fatal(err)
		}
		w.startAgent()
		w.restartAgent()
		w.wantCalls(mark)
		w.wantRunning("a")
		wantNotResizing(t, w.worker("web"))
	})
}

func TestAnInitContainerIsResizedWhileItRuns(t *testing.T) {
	inWorld(t, func(w *world) {
		w.runtime.Program("init", fakecri.Program{Exits: true, RunsFor: time.Minute})
		p := sized("web", 100, 64, "a")
		p.Spec.InitContainers = []v1.Container{container("init")}
		p.Spec.InitContainers[0].Resources = amounts(100, 64)
		k := w.start(p)
		p = p.DeepCopy()
		p.Generation++
		p.Spec.InitContainers[0].Resources = amounts(200, 64)
		k.Update(p)
		synctest.Wait()
		s := k.Pod().Status.InitContainerStatuses[0]
		if got := allocation.AmountsOf(*s.Resources); got.CPULimit != 200 {
			t.Errorf("it has %v", got)
		}
		if got := w.runtime.Resources("init").GetCpuQuota(); got != 20000 {
			t.Errorf("quota %d", got)
		}
		time.Sleep(time.Minute)
		w.wantRunning("a")
		wantNotResizing(t, k)
	})
}

func TestThePodLevelIsResizedAndItsContainersInheritItsLimits(t *testing.T) {
	inWorld(t, func(w *world) {
		p := pod("web", "a")
		p.Generation = 1
		level := amounts(100, 64)
		p.Spec.Resources = &level
		k := w.start(p)
		if got := w.runtime.Resources("a").GetCpuQuota(); got != 10000 {
			t.Errorf("quota %d", got)
		}
		next := p.DeepCopy()
		next.Generation++
		grown := amounts(200, 128)
		next.Spec.Resources = &grown
		k.Update(next)
		synctest.Wait()
		if r := w.runtime.Resources("a"); r.GetCpuQuota() != 20000 || r.GetMemoryLimitInBytes() != 128<<20 {
			t.Errorf("the container has %v", r)
		}
		if got := w.cgroups.Settings("web-uid"); got.MemoryBytes != 128<<20 || got.CPUQuota != 20000 {
			t.Errorf("the pod has %+v", got)
		}
		s := k.Pod().Status
		if got := allocation.AmountsOf(*s.Resources); got != allocation.AmountsOf(grown) || s.AllocatedResources.Cpu().MilliValue() != 200 {
			t.Errorf("status %v, allocated %v", got, s.AllocatedResources)
		}
		wantNotResizing(t, k)
	})
}

func TestAPodThatHasNotStartedYetStartsWithWhatItIsAllocatedThen(t *testing.T) {
	inWorld(t, func(w *world) {
		release := w.runtime.Hang("RunPodSandbox", "")
		p := sized("web", 100, 64, "a")
		k := w.start(p)
		k.Update(resized(p, "a", amounts(200, 128)))
		release()
		wantResources(t, k, "a", amounts(200, 128), amounts(200, 128))
		if got := w.cgroups.Settings("web-uid").MemoryBytes; got != 128<<20 {
			t.Errorf("the pod's cgroup has %d bytes", got)
		}
		wantNotResizing(t, k)
	})
}
