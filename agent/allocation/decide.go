package allocation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/berth-io/berth/agent/qos"
)

// retry decides about all who wait, the first first. One that does not fit
// does not keep those after it waiting.
func (l *Ledger) retry(trigger string) {
	var waiting []*entry
	for _, e := range l.pods {
		if e.wanted != nil && e.verdict.Outcome != Allocated && e.verdict.Outcome != Infeasible {
			waiting = append(waiting, e)
		}
	}
	slices.SortFunc(waiting, order)
	for _, e := range waiting {
		verdict, detail := l.decide(e)
		if verdict == e.verdict {
			continue
		}
		l.count(e.verdict, verdict, detail, trigger)
		e.verdict = verdict
		if verdict.Outcome == Deferred && e.since.IsZero() {
			e.since = time.Now()
		}
		if e.wake != nil {
			e.wake()
		}
	}
}

// What makes the ledger look again at those who wait, in the words of the
// kubelet's metric (pkg/kubelet/allocation/allocation_manager.go).
const (
	podUpdated    = "pod_updated"
	podResized    = "pod_resized"
	podTerminated = "pod_terminated"
	podsRemoved   = "pods_removed"
	periodic      = "periodic_retry"
)

func (l *Ledger) count(before, after Verdict, detail, trigger string) {
	switch {
	case l.config.Counts == nil:
	case after.Outcome == Infeasible:
		l.config.Counts.ResizeInfeasible(detail)
	case after.Outcome == Allocated && before.Outcome == Deferred:
		l.config.Counts.ResizeAccepted(trigger)
	}
}

// order is the kubelet's: who asks for no more than it has, then by priority,
// guaranteed before burstable, and who has waited longest (pkg/kubelet/allocation,
// sortPendingResizes). Names make it total.
func order(a, b *entry) int {
	return cmp.Or(
		compareBool(grows(a), grows(b)),
		cmp.Compare(priority(b.pod), priority(a.pod)),
		compareBool(guaranteed(b.pod), guaranteed(a.pod)),
		compareWaiting(a.since, b.since),
		strings.Compare(a.pod.Namespace+"/"+a.pod.Name+"/"+string(a.pod.UID), b.pod.Namespace+"/"+b.pod.Name+"/"+string(b.pod.UID)),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// compareWaiting puts one that asks for the first time after those who wait.
func compareWaiting(a, b time.Time) int {
	if a.IsZero() || b.IsZero() {
		return compareBool(a.IsZero(), b.IsZero())
	}
	return a.Compare(b)
}

func grows(e *entry) bool {
	has, wants := requests(e.pod, false), requests(e.wanted, false)
	return wants.Cpu().Cmp(*has.Cpu()) > 0 || wants.Memory().Cmp(*has.Memory()) > 0
}

func priority(pod *v1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

func guaranteed(pod *v1.Pod) bool { return qos.Class(pod) == v1.PodQOSGuaranteed }

// decide tells whether a pod may have what it wants (kubelet:
// pkg/kubelet/allocation/handlers.go, then what it asks of a new pod). Detail is
// why it never may, as the kubelet's metric has it.
func (l *Ledger) decide(e *entry) (v Verdict, detail string) {
	has, wants := Of(e.pod), Of(e.wanted)
	if l.swaps(e.pod, e.wanted) {
		return Verdict{Infeasible, "In-place resize of containers with swap is not supported."}, "swap_limitation"
	}
	if guaranteed(e.wanted) {
		if l.config.StaticCPU && changes(has, wants, v1.ResourceCPU) {
			return Verdict{Infeasible, static("CPU")}, "guaranteed_pod_cpu_manager_static_policy"
		}
		if l.config.StaticMemory && changes(has, wants, v1.ResourceMemory) {
			return Verdict{Infeasible, static("Memory")}, "guaranteed_pod_memory_manager_static_policy"
		}
	}
	message, ok := l.config.Fits(e.wanted, l.others(string(e.wanted.UID)))
	if !ok {
		return Verdict{Deferred, message}, ""
	}
	return Verdict{Outcome: Allocated}, ""
}

func static(manager string) string {
	return fmt.Sprintf("Resize is infeasible for Guaranteed Pods alongside %s Manager policy \"static\"", manager)
}

// changes tells whether a container requests another amount. In a guaranteed
// pod limits are as requests.
func changes(has, wants Resources, name v1.ResourceName) bool {
	for container, w := range wants.Containers {
		if wanted := w.Requests[name]; !wanted.Equal(has.Containers[container].Requests[name]) {
			return true
		}
	}
	return false
}

// swaps tells whether a container that may swap would have to share out the
// swap anew while it runs.
func (l *Ledger) swaps(has, wants *v1.Pod) bool {
	if l.config.Swaps == nil {
		return false
	}
	now := Of(has)
	for _, list := range [][]v1.Container{wants.Spec.Containers, wants.Spec.InitContainers} {
		for i := range list {
			c := &list[i]
			old := *c
			old.Resources = now.Containers[c.Name]
			request := c.Resources.Requests[v1.ResourceMemory]
			if request.Equal(old.Resources.Requests[v1.ResourceMemory]) || restarts(c, v1.ResourceMemory) {
				continue
			}
			if l.config.Swaps(wants, c) || l.config.Swaps(has, &old) {
				return true
			}
		}
	}
	return false
}

func restarts(c *v1.Container, name v1.ResourceName) bool {
	return slices.ContainsFunc(c.ResizePolicy, func(p v1.ContainerResizePolicy) bool {
		return p.ResourceName == name && p.RestartPolicy == v1.RestartContainer
	})
}

// others are all pods but one that have not ended, in a fixed order.
func (l *Ledger) others(uid string) []*v1.Pod {
	var out []*v1.Pod
	for u, e := range l.pods {
		if u != uid && !ended(e.pod) {
			out = append(out, e.counted())
		}
	}
	slices.SortFunc(out, func(a, b *v1.Pod) int { return strings.Compare(string(a.UID), string(b.UID)) })
	return out
}

func ended(pod *v1.Pod) bool {
	return pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed
}

// gaveBack tells whether a pod counts less than before.
func gaveBack(before, after *v1.Pod) bool {
	if ended(after) {
		return !ended(before)
	}
	had, has := requests(before, true), requests(after, true)
	return has.Cpu().Cmp(*had.Cpu()) < 0 || has.Memory().Cmp(*had.Memory()) < 0
}

// requests are a pod's, counted is the larger of what it is allocated and what
// it has, as the scheduler reckons.
func requests(pod *v1.Pod, counted bool) v1.ResourceList {
	return resource.PodRequests(pod, resource.PodResourcesOptions{
		UseStatusResources: counted, InPlacePodLevelResourcesVerticalScalingEnabled: counted,
	})
}
