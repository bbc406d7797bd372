package podreport

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/status"
)

// Merge returns the status that is to be in the API: what the node says, with
// what others have written there, and with times as the API keeps them.
func Merge(node, api v1.PodStatus) v1.PodStatus {
	adopted := status.Adopt(node, api)
	out := *adopted.DeepCopy()
	wholeSecond(out.StartTime)
	for i := range out.Conditions {
		wholeSecond(&out.Conditions[i].LastTransitionTime)
		wholeSecond(&out.Conditions[i].LastProbeTime)
	}
	for _, list := range [][]v1.ContainerStatus{out.InitContainerStatuses, out.ContainerStatuses, out.EphemeralContainerStatuses} {
		for i := range list {
			for _, s := range []*v1.ContainerState{&list[i].State, &list[i].LastTerminationState} {
				if s.Running != nil {
					wholeSecond(&s.Running.StartedAt)
				}
				if s.Terminated != nil {
					wholeSecond(&s.Terminated.StartedAt)
					wholeSecond(&s.Terminated.FinishedAt)
				}
			}
		}
	}
	return out
}

// wholeSecond: the API's times have no fractions.
func wholeSecond(t *metav1.Time) {
	if t != nil && !t.IsZero() {
		*t = metav1.NewTime(t.Truncate(time.Second))
	}
}
