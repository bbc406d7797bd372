package plan

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
)

// Rule returns the first of a container's own rules that is for an exit code;
// nil: none is (pkg/api/v1/pod, FindMatchingContainerRestartRule).
func Rule(c *v1.Container, exitCode int32) *v1.ContainerRestartRule {
	i := slices.IndexFunc(c.RestartPolicyRules, func(r v1.ContainerRestartRule) bool { return matches(r.ExitCodes, exitCode) })
	if i < 0 {
		return nil
	}
	return &c.RestartPolicyRules[i]
}

// MayRestartAll tells whether a container's rules may want all containers of the
// pod started anew (KEP-5532).
func MayRestartAll(pod *v1.Pod) bool {
	for c := range resizable(pod) {
		for _, r := range c.RestartPolicyRules {
			if r.Action == v1.ContainerRestartRuleActionRestartAllContainers {
				return true
			}
		}
	}
	return false
}

// RestartsAll tells whether a container has ended so that all have to start anew.
// It is the last to be removed: until nothing is left that tells so.
func RestartsAll(pod *v1.Pod, obs *observed.Pod) bool {
	for c := range resizable(pod) {
		if last := obs.Container(c.Name); last != nil && restartsAll(c, last) {
			return true
		}
	}
	return false
}

func restartsAll(c *v1.Container, last *observed.Container) bool {
	if last.State != observed.Exited {
		return false
	}
	r := Rule(c, last.ExitCode)
	return r != nil && r.Action == v1.ContainerRestartRuleActionRestartAllContainers
}

// reset kills and removes all containers but ephemeral ones, in the order of the
// kubelet: those that have not asked for it first, the pod's before its init
// containers (pkg/kubelet/kuberuntime, computePodActions). The sandbox and the
// logs stay.
func reset(in Input, d *Decision) {
	var victims, sources []Action
	for _, list := range [][]v1.Container{in.Pod.Spec.Containers, in.Pod.Spec.InitContainers} {
		for i := range list {
			c := &list[i]
			last := in.Observed.Container(c.Name)
			for j := range in.Observed.Containers {
				o := &in.Observed.Containers[j]
				switch {
				case o.Name != c.Name:
				case runs(o):
					d.act(KillContainer{ID: o.ID, Name: o.Name, Reason: "RestartAllContainers", Message: "killing", Grace: new(int64), Restart: true})
				case o.ID == last.ID && restartsAll(c, o):
					sources = append(sources, RemoveContainer{ID: o.ID, Name: o.Name, Reset: true})
				default:
					victims = append(victims, RemoveContainer{ID: o.ID, Name: o.Name, Reset: true})
				}
			}
		}
	}
	if len(d.Actions) == 0 {
		d.Actions = slices.Concat(victims, sources)
	}
}
