package agent

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/admit"
)

// admitted decides about a new pod, beside the others that were admitted and
// have not ended. It is done under the ledger's lock: no pod is given room that
// another has just grown into.
func (a *Agent) admitted(pod *v1.Pod, others []*v1.Pod) admit.Decision {
	var d admit.Decision
	a.ledger.Admit(pod, func(counted []*v1.Pod) bool {
		d = a.check(pod, together(counted, others))
		return d.Rejection == nil && len(d.Victims) == 0
	})
	return d
}

// fits tells whether a pod that wants other resources has room.
func (a *Agent) fits(pod *v1.Pod, others []*v1.Pod) (message string, ok bool) {
	d := a.check(pod, others)
	switch {
	case d.Rejection != nil:
		return d.Rejection.Message, false
	case len(d.Victims) > 0:
		return "Node didn't have enough resource: " + string(d.Preemptor), false
	}
	return "", true
}

func (a *Agent) check(pod *v1.Pod, others []*v1.Pod) admit.Decision {
	return a.config.Cluster.Admit.Check(admit.Input{
		Pod: pod, Others: others, Node: a.cluster.current(),
		Pressure: a.pressure.evict.Pressure(), ShuttingDown: a.pressure.stopper.ShuttingDown(),
	})
}

// together are the pods that the ledger knows, as it counts them, and those
// whose workers have not told it of them yet.
func together(counted, others []*v1.Pod) []*v1.Pod {
	out := slices.Clone(counted)
	for _, pod := range others {
		if !slices.ContainsFunc(counted, func(p *v1.Pod) bool { return p.UID == pod.UID }) {
			out = append(out, pod)
		}
	}
	return out
}
