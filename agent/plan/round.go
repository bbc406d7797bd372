package plan

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
)

// A pod's containers run in rounds. One that ends with an exit code for which it
// has a rule RestartAllContainers ends the round: what still runs is killed, and
// the next round begins as the pod did, with the first init container. Each
// container carries the number of its round, so that the observed containers
// alone tell how far a pod has come.
//
// The kubelet removes the containers of the round before
// (pkg/kubelet/kuberuntime, getContainersToReset); here they stay, as the last
// run of each, for its status and log.

// Round is the round that a pod is in, counted from 0.
func Round(pod *v1.Pod, obs *observed.Pod) uint32 {
	var round uint32
	for c := range resizable(pod) {
		for i := range obs.Containers {
			o := &obs.Containers[i]
			if o.Name != c.Name {
				continue
			}
			round = max(round, o.Round)
			if o.State == observed.Exited && ruling(c, o.ExitCode) == v1.ContainerRestartRuleActionRestartAllContainers {
				round = max(round, o.Round+1)
			}
		}
	}
	return round
}

// MayRestartAll tells whether a container of the pod has such a rule.
func MayRestartAll(pod *v1.Pod) bool {
	for c := range resizable(pod) {
		for _, rule := range c.RestartPolicyRules {
			if rule.Action == v1.ContainerRestartRuleActionRestartAllContainers {
				return true
			}
		}
	}
	return false
}

// endRound kills, without a grace period, what still runs of a round before, in
// the kubelet's order, and tells whether there was anything: the next round waits
// for that.
func endRound(in Input, d *Decision) bool {
	if in.round == 0 {
		return false
	}
	for _, list := range [][]v1.Container{in.Pod.Spec.Containers, in.Pod.Spec.InitContainers} {
		for i := range list {
			cur := in.Observed.Container(list[i].Name)
			switch {
			case cur == nil || cur.Round >= in.round:
			case runs(cur):
				d.act(KillContainer{ID: cur.ID, Name: cur.Name, Reason: "RestartAllContainers", Message: "killing", Grace: new(int64), Restart: true})
			case cur.State == observed.Created:
				d.act(RemoveContainer{ID: cur.ID, Name: cur.Name})
			}
		}
	}
	return len(d.Actions) > 0
}
