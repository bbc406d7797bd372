package worker

import (
	v1 "k8s.io/api/core/v1"
)

// tellEnded tells of containers that ended between two statuses, each once. The
// kubelet counts those that it shows as terminated for a while
// (pkg/kubelet/status, updateStatusInternal); here also those that wait for
// their restart at once.
func (w *Worker) tellEnded(last, next *v1.PodStatus) {
	if w.config.Ended == nil {
		return
	}
	for _, list := range []struct {
		kind       string
		last, next []v1.ContainerStatus
	}{
		{"init_container", last.InitContainerStatuses, next.InitContainerStatuses},
		{"container", last.ContainerStatuses, next.ContainerStatuses},
		{"ephemeral_container", last.EphemeralContainerStatuses, next.EphemeralContainerStatuses},
	} {
		known := map[string]bool{}
		for i := range list.last {
			if t := ended(&list.last[i]); t != nil {
				known[t.ContainerID] = true
			}
		}
		for i := range list.next {
			if t := ended(&list.next[i]); t != nil && !known[t.ContainerID] {
				w.config.Ended(list.kind, t)
			}
		}
	}
}

// ended is how a container, or the one before it, has ended; nil: none has.
func ended(c *v1.ContainerStatus) *v1.ContainerStateTerminated {
	if c.State.Terminated != nil {
		return c.State.Terminated
	}
	return c.LastTerminationState.Terminated
}
