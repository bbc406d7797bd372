package admit

import (
	"fmt"
	"math"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/qos"
)

const (
	preempting        = "Preempting"
	preemptedMessage  = "Preempted in order to admit critical pod"
	preemptedToTarget = "Pod was preempted by Kubelet to accommodate a critical pod."
)

// preempt chooses who ends for a critical pod: as few guaranteed pods as
// possible, then as few burstable ones, then as few best-effort ones; among
// pods that help as much, those that ask for least
// (pkg/kubelet/preemption, getPodsToPreempt).
func preempt(pod *v1.Pod, others []*v1.Pod, short []shortage) ([]Victim, error) {
	need := needs{}
	for _, s := range short {
		need = append(need, requirement{s.name, s.missing()})
	}
	var classes [3][]*v1.Pod // best effort, burstable, guaranteed
	for _, o := range others {
		if preemptable(pod, o) {
			i := slices.Index([]v1.PodQOSClass{v1.PodQOSBestEffort, v1.PodQOSBurstable, v1.PodQOSGuaranteed}, qos.Class(o))
			classes[i] = append(classes[i], o)
		}
	}
	var chosen [3][]*v1.Pod
	for i := len(classes) - 1; i >= 0; i-- {
		// What must come from this class if all of the lesser ones go, and those
		// of the higher ones that are chosen.
		given := slices.Concat(append(slices.Clone(classes[:i]), chosen[i+1:]...)...)
		picked, left := pick(classes[i], need.without(given...))
		if len(left) > 0 {
			return nil, fmt.Errorf("no set of running pods found to reclaim resources: %v", left)
		}
		chosen[i] = picked
	}
	var victims []Victim
	for _, v := range slices.Concat(chosen[:]...) {
		victims = append(victims, Victim{Pod: v, Stop: disruption.Stop{
			Reason:     preempting,
			Message:    preemptedMessage,
			Conditions: []v1.PodCondition{disruption.Target(v, preemptedToTarget)},
			Event:      &disruption.Event{Reason: preempting, Message: preemptedMessage},
		}})
	}
	return victims, nil
}

func preemptable(by, pod *v1.Pod) bool {
	if by.UID == pod.UID {
		return false
	}
	if disruption.Critical(by) && !disruption.Critical(pod) {
		return true
	}
	return by.Spec.Priority != nil && pod.Spec.Priority != nil && *by.Spec.Priority > *pod.Spec.Priority
}

// pick takes the pod that comes nearest to what is needed until nothing is
// needed or nobody is left.
func pick(from []*v1.Pod, need needs) (picked []*v1.Pod, left needs) {
	from = slices.Clone(from)
	for len(need) > 0 && len(from) > 0 {
		best := 0
		for i := range from {
			d, least := need.distance(from[i]), need.distance(from[best])
			if d < least || (d == least && asksLess(from[i], from[best])) {
				best = i
			}
		}
		need = need.without(from[best])
		picked = append(picked, from[best])
		from = slices.Delete(from, best, best+1)
	}
	return picked, need
}

// asksLess compares the requests for memory, then those for CPU.
func asksLess(a, b *v1.Pod) bool {
	for _, name := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		if x, y := disruption.Request(a, name), disruption.Request(b, name); x != y {
			return x < y
		}
	}
	return false
}

type requirement struct {
	name     v1.ResourceName
	quantity int64 // in the units of amounts
}

// needs are requirements that are not met, all above zero.
type needs []requirement

func (n needs) without(pods ...*v1.Pod) needs {
	var left needs
	for _, r := range n {
		for _, pod := range pods {
			r.quantity -= disruption.Request(pod, r.name)
		}
		if r.quantity > 0 {
			left = append(left, r)
		}
	}
	return left
}

// distance is how much would still be needed without the pod: for each
// requirement the square of the part that is left.
func (n needs) distance(pod *v1.Pod) float64 {
	var d float64
	for _, r := range n {
		if left := float64(r.quantity - disruption.Request(pod, r.name)); left > 0 {
			d += math.Pow(left/float64(r.quantity), 2)
		}
	}
	return d
}

func (n needs) String() string {
	var b strings.Builder
	b.WriteString("[")
	for _, r := range n {
		fmt.Fprintf(&b, "(res: %v, q: %d), ", r.name, r.quantity)
	}
	return b.String() + "]"
}
