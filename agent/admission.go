package agent

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/admit"
	"github.com/berth-io/berth/agent/dispatch"
)

// admission decides about new pods.
type admission struct {
	check func(pod *v1.Pod, others []*v1.Pod, node *v1.Node, allocate func(*v1.Pod) *admit.Rejection) admit.Decision
	give  giver
	// node is this node as it was last seen, read reads it anew; nil: it could not.
	node     func() *v1.Node
	read     func(ctx context.Context) *v1.Node
	rejected func(*admit.Rejection)
}

// giver gives containers what they are to have to themselves.
type giver interface {
	// Asks tells whether others have to be asked for that.
	Asks(pod *v1.Pod) bool
	ask(ctx context.Context, pod *v1.Pod, active func() []*v1.Pod) *admit.Rejection
	// allocate asks nobody.
	allocate(pod *v1.Pod, others []*v1.Pod) *admit.Rejection
}

// answers are what others have said for a pod.
type answers struct {
	allocated bool // it was given what it asks for, or refused
	refused   *admit.Rejection
	reread    bool     // the node was read anew
	node      *v1.Node // nil: it could not be
}

// knowing decides about a new pod beside the others, which hold room on this
// node. The dispatcher calls it with the ledger's lock held, and asks without.
func (a *admission) knowing(known answers) dispatch.Admit {
	return func(pod *v1.Pod, others []*v1.Pod) (admit.Decision, dispatch.Ask) {
		next := known
		if !known.allocated && a.give.Asks(pod) {
			return admit.Decision{}, func(ctx context.Context, active func() []*v1.Pod) dispatch.Admit {
				next.refused, next.allocated = a.give.ask(ctx, pod, active), true
				return a.knowing(next)
			}
		}
		node := known.node
		if node == nil {
			node = a.node()
		}
		d := a.check(pod, others, node, func(pod *v1.Pod) *admit.Rejection {
			if known.allocated {
				return known.refused
			}
			return a.give.allocate(pod, others)
		})
		if d.Rejection != nil && d.Rejection.OnlyLabels && !known.reread {
			// The watch may be behind (pkg/kubelet/lifecycle, generalFilter).
			return admit.Decision{}, func(ctx context.Context, _ func() []*v1.Pod) dispatch.Admit {
				next.node, next.reread = a.read(ctx), true
				return a.knowing(next)
			}
		}
		if d.Rejection != nil {
			a.rejected(d.Rejection)
		}
		return d, nil
	}
}

// admit decides about new pods; nil: all of them may start.
func (a *Agent) admit() dispatch.Admit {
	if a.cluster == nil {
		return nil
	}
	decider := &admission{
		check: a.check, give: a.exclusive,
		node:     func() *v1.Node { return a.cluster.current(a.exclusive) },
		read:     func(ctx context.Context) *v1.Node { return a.cluster.read(ctx, a.exclusive) },
		rejected: func(r *admit.Rejection) { a.counts.Rejected(r.MetricReason()) },
	}
	return decider.knowing(answers{})
}

// fits tells whether a pod that wants other resources has room. For a critical
// pod others make room: what it wants is granted when they have ended
// (pkg/kubelet/allocation, canAdmitPod, which preempts for a resize as well).
func (a *Agent) fits(pod *v1.Pod, others []*v1.Pod) (message string, ok bool) {
	return room(a.check(pod, others, a.cluster.current(a.exclusive), nil), func(v admit.Victim) {
		go a.pods.Disrupt(v.Pod.UID, v.Stop) // not now: the ledger is locked
	})
}

// room reads a decision about a resize.
func room(d admit.Decision, preempt func(admit.Victim)) (message string, ok bool) {
	if d.Rejection != nil {
		return d.Rejection.Message, false
	}
	for _, v := range d.Victims {
		preempt(v)
	}
	if len(d.Victims) > 0 {
		return "Node didn't have enough resource: " + string(d.Preemptor), false
	}
	return "", true
}

func (a *Agent) check(pod *v1.Pod, others []*v1.Pod, node *v1.Node, allocate func(*v1.Pod) *admit.Rejection) admit.Decision {
	return a.config.Cluster.Admit.Check(admit.Input{
		Pod: pod, Others: others, Node: node,
		Pressure: a.pressure.evict.Pressure(), ShuttingDown: a.pressure.stopper.ShuttingDown(),
		Allocate: allocate,
	})
}

// nodeTimeout bounds one reading of the node for a pod that its labels keep out.
const nodeTimeout = 10 * time.Second

// read reads the node from the API server; nil where that does not work.
func (k *cluster) read(ctx context.Context, e *exclusive) *v1.Node {
	ctx, cancel := context.WithTimeout(ctx, nodeTimeout)
	defer cancel()
	node, err := k.config.Client.CoreV1().Nodes().Get(ctx, k.nodeName, metav1.GetOptions{})
	if err != nil {
		k.log.Warn("a pod is rejected by the node's labels as they were last seen", "err", err)
		return nil
	}
	return k.withResources(node, e)
}
