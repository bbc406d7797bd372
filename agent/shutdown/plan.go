package shutdown

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/disruption"
)

const (
	reason  = "Terminated"
	message = "Pod was terminated in response to imminent node shutdown."
)

// Period is what pods of at least a priority have to end.
type Period struct {
	Priority int32
	Seconds  int64
}

// Settings are the fields of the kubelet's configuration.
type Settings struct {
	// GracePeriod is shutdownGracePeriod: for all pods. GracePeriodCriticalPods
	// is the part of it that critical pods have for themselves at the end.
	GracePeriod, GracePeriodCriticalPods time.Duration
	// ByPriority is shutdownGracePeriodByPodPriority, instead of the two.
	ByPriority []Period
}

// Periods are in the order of the priorities. There are none where the
// configuration gives pods no time: then nobody ends them.
func (s Settings) Periods() ([]Period, error) {
	if len(s.ByPriority) > 0 {
		if s.GracePeriod != 0 || s.GracePeriodCriticalPods != 0 {
			return nil, errors.New("shutdownGracePeriodByPodPriority cannot be set together with shutdownGracePeriod or shutdownGracePeriodCriticalPods: remove those")
		}
		return inOrder(s.ByPriority)
	}
	if s.GracePeriod < 0 || s.GracePeriodCriticalPods < 0 || s.GracePeriodCriticalPods > s.GracePeriod {
		return nil, fmt.Errorf("shutdownGracePeriodCriticalPods %v must be within shutdownGracePeriod %v, and neither below 0", s.GracePeriodCriticalPods, s.GracePeriod)
	}
	if s.GracePeriod == 0 {
		return nil, nil
	}
	return []Period{
		{Priority: 0, Seconds: int64((s.GracePeriod - s.GracePeriodCriticalPods) / time.Second)},
		{Priority: disruption.SystemCriticalPriority, Seconds: int64(s.GracePeriodCriticalPods / time.Second)},
	}, nil
}

func inOrder(periods []Period) ([]Period, error) {
	sorted := slices.SortedStableFunc(slices.Values(periods), func(a, b Period) int { return cmp.Compare(a.Priority, b.Priority) })
	for i, p := range sorted {
		if p.Seconds < 0 {
			return nil, fmt.Errorf("shutdownGracePeriodByPodPriority: priority %d has a period of %d s; it must not be below 0", p.Priority, p.Seconds)
		}
		if i > 0 && sorted[i-1].Priority == p.Priority {
			return nil, fmt.Errorf("shutdownGracePeriodByPodPriority: priority %d is there twice", p.Priority)
		}
	}
	return sorted, nil
}

// Total is how long the host must wait.
func Total(periods []Period) time.Duration {
	var seconds int64
	for _, p := range periods {
		seconds += p.Seconds
	}
	return time.Duration(seconds) * time.Second
}

// Group is of pods that end together.
type Group struct {
	Period
	Ends []End
}

// End is of one pod.
type End struct {
	Pod *v1.Pod
	// Stop leaves a pod that has succeeded meanwhile as it is: its phase is not
	// Failed then.
	Stop disruption.Stop
}

// Plan returns the groups that have pods, who ends first first. A pod is in
// the group of the highest priority that is not above its own, or in the
// lowest group; it has its own grace period where that is shorter than the
// group's.
func Plan(periods []Period, pods []*v1.Pod) []Group {
	if len(periods) == 0 {
		return nil
	}
	groups := make([]Group, len(periods))
	for i, p := range periods {
		groups[i].Period = p
	}
	for _, pod := range pods {
		i := len(groups) - 1
		for i > 0 && groups[i].Priority > disruption.Priority(pod) {
			i--
		}
		grace := groups[i].Seconds
		if own := pod.Spec.TerminationGracePeriodSeconds; own != nil {
			grace = min(grace, *own)
		}
		groups[i].Ends = append(groups[i].Ends, End{Pod: pod, Stop: disruption.Stop{
			Reason: reason, Message: message, Grace: &grace,
			Conditions: []v1.PodCondition{disruption.Target(pod, message)},
		}})
	}
	return slices.DeleteFunc(groups, func(g Group) bool { return len(g.Ends) == 0 })
}
