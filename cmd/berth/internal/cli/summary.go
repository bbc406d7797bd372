package cli

import (
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
)

// summary is a pod's line in a table.
type summary struct{ ready, status, restarts string }

// summarize says in one word how a pod is, by kubectl's rules
// (pkg/printers/internalversion, printPod): the most telling reason wins.
func summarize(p *v1.Pod, now time.Time) summary {
	status := string(p.Status.Phase)
	if p.Status.Reason != "" {
		status = p.Status.Reason
	}
	var restarts int32
	var last time.Time
	count := func(c *v1.ContainerStatus) {
		restarts += c.RestartCount
		if t := c.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	ready, total := 0, len(p.Spec.Containers)
	initializing := false
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		sidecar := i < len(p.Spec.InitContainers) && p.Spec.InitContainers[i].RestartPolicy != nil
		if sidecar {
			total++
			count(c)
			if c.Ready {
				ready++
			}
		}
		if initializing || done(c, sidecar) {
			continue
		}
		initializing = true
		status = initStatus(c, i, len(p.Spec.InitContainers))
	}
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		count(c)
		if c.Ready {
			ready++
		}
		if reason := reasonOf(c.State); reason != "" && !initializing && reason != "PodInitializing" {
			status = reason
		}
	}
	if status == "Completed" && ready > 0 { // one container has ended, others run
		status = "NotReady"
		if isReady(p) {
			status = string(v1.PodRunning)
		}
	}
	s := summary{ready: fmt.Sprintf("%d/%d", ready, total), status: status, restarts: fmt.Sprint(restarts)}
	if restarts > 0 && !last.IsZero() {
		s.restarts += fmt.Sprintf(" (%s ago)", age(last, now))
	}
	return s
}

func done(c *v1.ContainerStatus, sidecar bool) bool {
	if sidecar {
		return c.Started != nil && *c.Started
	}
	return c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
}

func initStatus(c *v1.ContainerStatus, i, n int) string {
	if reason := reasonOf(c.State); reason != "" && reason != "PodInitializing" {
		return "Init:" + reason
	}
	return fmt.Sprintf("Init:%d/%d", i, n)
}

// reasonOf is why a container does not run; empty for one that does.
func reasonOf(s v1.ContainerState) string {
	switch {
	case s.Waiting != nil:
		return s.Waiting.Reason
	case s.Terminated == nil:
		return ""
	case s.Terminated.Reason != "":
		return s.Terminated.Reason
	case s.Terminated.Signal != 0:
		return fmt.Sprintf("Signal:%d", s.Terminated.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", s.Terminated.ExitCode)
}

func isReady(p *v1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.PodReady && c.Status == v1.ConditionTrue
	})
}
