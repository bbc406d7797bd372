package podreport

import (
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/status"
)

// maxMessages is how many bytes of termination messages a pod's status holds,
// which its containers share (pkg/kubelet/container/runtime.go,
// MaxPodTerminationMessageLogLength).
const maxMessages = 12 << 10

// Merge returns the status that is to be in the API: what the node says, with
// what others have written there, in the form that the API keeps
// (pkg/kubelet/status/status_manager.go, normalizeStatus). What it returns is
// the same again once it is in the API.
func Merge(node, api v1.PodStatus) v1.PodStatus {
	adopted := status.Adopt(node, api)
	out := *adopted.DeepCopy()
	wholeSecond(out.StartTime)
	for i := range out.Conditions {
		wholeSecond(&out.Conditions[i].LastTransitionTime)
		wholeSecond(&out.Conditions[i].LastProbeTime)
	}
	byName := func(a, b v1.ContainerStatus) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(out.ContainerStatuses, byName) // init containers stay in the order they run in
	slices.SortFunc(out.EphemeralContainerStatuses, byName)
	lists := [][]v1.ContainerStatus{out.InitContainerStatuses, out.ContainerStatuses, out.EphemeralContainerStatuses}
	share := maxMessages / max(1, len(lists[0])+len(lists[1])+len(lists[2]))
	for _, list := range lists {
		for i := range list {
			normalize(&list[i].State, share)
			normalize(&list[i].LastTerminationState, share)
		}
	}
	return out
}

func normalize(s *v1.ContainerState, share int) {
	if s.Waiting != nil {
		s.Waiting.Message = text(s.Waiting.Message)
	}
	if s.Running != nil {
		wholeSecond(&s.Running.StartedAt)
	}
	if t := s.Terminated; t != nil {
		wholeSecond(&t.StartedAt)
		wholeSecond(&t.FinishedAt)
		t.Message = text(t.Message)
		if len(t.Message) > share {
			t.Message = strings.ToValidUTF8(t.Message[:share], "") // a character may have been cut
		}
	}
}

// text is what JSON makes of what a container wrote.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// wholeSecond: the API's times have no fractions.
func wholeSecond(t *metav1.Time) {
	if t != nil && !t.IsZero() {
		*t = metav1.NewTime(t.Truncate(time.Second))
	}
}
