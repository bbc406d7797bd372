package plan

import (
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
)

// Backoff is the crash-loop back-off: the first restart is immediate, the
// following wait Base, 2*Base, ... up to Max; it starts over after a run that
// outlived ResetAfter.
type Backoff struct{ Base, Max, ResetAfter time.Duration }

// KubeletBackoff are the kubelet's figures: 10 s doubling to 5 minutes,
// forgotten after twice the maximum (pkg/kubelet/kubelet.go, backOffPeriod and
// MaxCrashLoopBackOff; client-go's flowcontrol.Backoff for the reset).
var KubeletBackoff = Backoff{Base: 10 * time.Second, Max: 300 * time.Second, ResetAfter: 600 * time.Second}

// next returns from when the container after prev may start, and the delay
// that is then recorded with it. Where prev ended in the future the clock was set
// back: nobody knows how long it has waited, and it waits no longer.
func (b Backoff) next(prev *observed.Container, now time.Time) (from time.Time, recorded time.Duration) {
	if prev.Backoff == 0 || prev.FinishedAt.Sub(prev.CreatedAt) > b.ResetAfter {
		return prev.FinishedAt, b.Base
	}
	from = prev.FinishedAt.Add(prev.Backoff)
	if prev.FinishedAt.After(now) {
		from = now
	}
	return from, min(2*prev.Backoff, b.Max)
}

// nextAttempt is the restart count of the container of that name to be started
// next.
func nextAttempt(in Input, name string) uint32 {
	var n uint32
	if past, ok := in.Past[name]; ok {
		n = past.Attempt + 1
	}
	if last := in.Observed.Container(name); last != nil {
		n = max(n, last.Attempt+1)
	}
	return n
}

// restartsWith counts the restarts of all containers of the pod if next is
// started: what a Job's backoffLimit bounds when its pods restart in place
// (pkg/controller/job, pastBackoffLimitOnFailure). The Job controller ends the
// pod when the last restart that is allowed has begun; here that one has its run.
func restartsWith(in Input, next StartContainer) int64 {
	total := int64(next.Attempt)
	for _, list := range [][]v1.Container{in.Pod.Spec.InitContainers, in.Pod.Spec.Containers} {
		for i := range list {
			if name := list[i].Name; name != next.Container.Name {
				total += max(int64(nextAttempt(in, name))-1, 0)
			}
		}
	}
	return total
}

// CrashLoopBackOff is the reason of a container that waits for its restart.
const CrashLoopBackOff = "CrashLoopBackOff"

// crashLoop is the text that users and their tools know from the kubelet.
func crashLoop(pod *v1.Pod, container string, delay time.Duration) Waiting {
	return Waiting{
		Reason: CrashLoopBackOff,
		Message: fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)",
			delay, container, pod.Name, pod.Namespace, pod.UID),
	}
}

// Sidecar tells whether an init container is restartable: it keeps running
// beside the containers that follow it.
func Sidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// ShouldRestart tells whether a container that exited is to be started again:
// by its own rules, else its own policy, else the pod's.
func ShouldRestart(pod *v1.Pod, c *v1.Container, init bool, exitCode int32) bool {
	switch ruling(c, exitCode) {
	case v1.ContainerRestartRuleActionRestart, v1.ContainerRestartRuleActionRestartAllContainers:
		return true
	}
	policy := pod.Spec.RestartPolicy
	if c.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return exitCode != 0
	}
	// Always, which for a plain init container means until it succeeds.
	return !init || Sidecar(c) || exitCode != 0
}

// ruling is the action of the first of a container's rules that an exit code
// matches; empty: none does.
func ruling(c *v1.Container, exitCode int32) v1.ContainerRestartRuleAction {
	for _, rule := range c.RestartPolicyRules {
		if matches(rule.ExitCodes, exitCode) {
			return rule.Action
		}
	}
	return ""
}

func matches(on *v1.ContainerRestartRuleOnExitCodes, code int32) bool {
	if on == nil {
		return false
	}
	in := slices.Contains(on.Values, code)
	if on.Operator == v1.ContainerRestartRuleOnExitCodesOpNotIn {
		return !in
	}
	return in
}
