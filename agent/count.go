package agent

import (
	"strconv"

	v1 "k8s.io/api/core/v1"
)

// notStarted counts pods of which something could not be started.
func (a *Agent) notStarted(pod *v1.Pod) {
	if users := pod.Spec.HostUsers; a.metrics != nil && users != nil && !*users {
		a.metrics.UserNamespaceErrors.Inc()
	}
}

// containerEnded counts a container that ended.
func (a *Agent) containerEnded(kind string, how *v1.ContainerStateTerminated) {
	if a.metrics != nil {
		a.metrics.ContainersTerminated.WithLabelValues(kind, strconv.Itoa(int(how.ExitCode)), how.Reason).Inc()
	}
}
