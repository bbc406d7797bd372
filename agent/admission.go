package agent

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/admit"
)

// admitted decides about a new pod beside the others, which hold room on this
// node. The dispatcher asks with the ledger's lock held.
func (a *Agent) admitted(pod *v1.Pod, others []*v1.Pod) admit.Decision {
	d := a.check(pod, others, func(pod *v1.Pod) *admit.Rejection { return a.exclusive.allocate(pod, others) })
	if d.Rejection != nil {
		a.counts.Rejected(d.Rejection.MetricReason())
	}
	return d
}

// fits tells whether a pod that wants other resources has room.
func (a *Agent) fits(pod *v1.Pod, others []*v1.Pod) (message string, ok bool) {
	d := a.check(pod, others, nil)
	switch {
	case d.Rejection != nil:
		return d.Rejection.Message, false
	case len(d.Victims) > 0:
		return "Node didn't have enough resource: " + string(d.Preemptor), false
	}
	return "", true
}

func (a *Agent) check(pod *v1.Pod, others []*v1.Pod, allocate func(*v1.Pod) *admit.Rejection) admit.Decision {
	return a.config.Cluster.Admit.Check(admit.Input{
		Pod: pod, Others: others, Node: a.cluster.current(a.exclusive),
		Pressure: a.pressure.evict.Pressure(), ShuttingDown: a.pressure.stopper.ShuttingDown(),
		Allocate: allocate,
	})
}
