// Package admit decides whether a pod may start on this node, by the kubelet's
// rules, in its order and with its words (pkg/kubelet/lifecycle, canAdmitPod in
// pkg/kubelet/allocation). A rejected pod is failed and stays so.
//
// It is pure: the pod, the other pods and the node come in, a decision comes
// out. Who dispatches pods calls it, once for each pod that has not been
// admitted before. A pod that was is never asked about again, above all not
// when the agent was restarted: the node may have lost labels or room since,
// and a running pod is not to be killed for that.
//
//	admit.go      the chain of checks
//	node.go       operating system, labels, taints, node name, ports
//	resources.go  requests against what the node can allocate
//	preempt.go    who makes room for a critical pod
//	sysctl.go     which kernel parameters a pod may set
//	apparmor.go   AppArmor profiles
//	host.go       what the checks need to know of this host
package admit

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/berth-io/berth/agent/disruption"
)

// Reasons of rejections, which the pod's status shows.
const (
	Evicted                              = "Evicted"
	SysctlForbidden                      = "SysctlForbidden"
	InvalidNodeInfo                      = "InvalidNodeInfo"
	PodOSSelectorNodeLabelDoesNotMatch   = "PodOSSelectorNodeLabelDoesNotMatch"
	PodOSNotSupported                    = "PodOSNotSupported"
	SupplementalGroupsPolicyNotSupported = "SupplementalGroupsPolicyNotSupported"
	UnexpectedAdmissionError             = "UnexpectedAdmissionError"
	NodeAffinity                         = "NodeAffinity"
	NodeName                             = "NodeName"
	NodePorts                            = "NodePorts"
	TaintToleration                      = "TaintToleration"
	OutOfPrefix                          = "OutOf" // and the resource's name
	AppArmor                             = "AppArmor"
	PodFeatureUnsupported                = "PodFeatureUnsupported"
	NodeShutdown                         = "NodeShutdown"
	topologyAffinityError                = "TopologyAffinityError"
)

// messagePrefix begins the message of every rejected pod's status; the event
// has the message without it (pkg/kubelet, rejectPod).
const messagePrefix = "Pod was rejected: "

// Config is what does not change while the agent runs.
type Config struct {
	// AllowedUnsafeSysctls are names, or beginnings of names that end in *, of
	// sysctls that pods may set beside the safe ones.
	AllowedUnsafeSysctls []string
	// KernelVersion is of the form of uname -r; it decides which sysctls are safe.
	KernelVersion string
	// AppArmor says that the host enforces AppArmor profiles.
	AppArmor bool
	// KubernetesVersion is the node's, for example v1.36.3.
	KubernetesVersion string
}

// Checker checks pods.
type Checker struct {
	sysctls  sysctls
	appArmor bool
	version  *version.Version
}

// New returns a Checker, or an error that names the setting which is wrong.
func New(c Config) (*Checker, error) {
	s, err := newSysctls(c.AllowedUnsafeSysctls, c.KernelVersion)
	if err != nil {
		return nil, err
	}
	v, err := version.Parse(c.KubernetesVersion)
	if err != nil {
		return nil, fmt.Errorf("read the Kubernetes version of this node: %w", err)
	}
	return &Checker{sysctls: s, appArmor: c.AppArmor, version: v}, nil
}

// Input is what an admission depends on.
type Input struct {
	Pod *v1.Pod
	// Others are the pods that were admitted and have not ended, with the
	// resources allocated to them in their specs.
	Others []*v1.Pod
	// Node as last seen, its allocatable resources up to date; nil: unknown.
	Node *v1.Node
	// Pressure are the conditions that eviction has set (agent/evict).
	Pressure []v1.NodeConditionType
	// ShuttingDown: the node ends its pods.
	ShuttingDown bool
	// Allocate asks the CPU, memory, device and topology managers for the pod's
	// share; nil: there are none. It is called once, after the checks that are
	// before it in the kubelet, and what it took is the caller's to give back
	// when the pod is rejected.
	Allocate func(pod *v1.Pod) *Rejection
}

// Rejection is why a pod may not start.
type Rejection struct {
	// Reason is for the pod's status, its event and the metric.
	Reason string
	// Message is the event's.
	Message string
	// OnlyLabels: nothing but the node's labels was in the way. They may be out
	// of date; a caller who can read the node anew does that and asks once more.
	OnlyLabels bool
}

// StatusMessage is the message of the rejected pod's status.
func (r *Rejection) StatusMessage() string { return messagePrefix + r.Message }

// MetricReason is the label of the kubelet's metric admission_rejections_total:
// the reason where it is one of few (pkg/kubelet, recordAdmissionRejection).
func (r *Rejection) MetricReason() string {
	switch r.Reason {
	case AppArmor, PodOSSelectorNodeLabelDoesNotMatch, PodOSNotSupported, InvalidNodeInfo,
		SupplementalGroupsPolicyNotSupported, UnexpectedAdmissionError, PodFeatureUnsupported,
		Evicted, SysctlForbidden, topologyAffinityError, NodeShutdown,
		OutOfPrefix + string(v1.ResourceCPU), OutOfPrefix + string(v1.ResourceMemory),
		OutOfPrefix + string(v1.ResourceEphemeralStorage), OutOfPrefix + string(v1.ResourcePods):
		return r.Reason
	}
	if strings.HasPrefix(r.Reason, OutOfPrefix) {
		return "OutOfExtendedResources"
	}
	return "Other"
}

// Victim is a pod that must end before the new one may start.
type Victim struct {
	Pod  *v1.Pod
	Stop disruption.Stop
}

// Decision is the answer. Without a rejection and victims the pod may start;
// with victims it may once they have ended.
type Decision struct {
	Rejection *Rejection
	Victims   []Victim
	// Preemptor is the resource for which the victims end: the label of the
	// kubelet's metric preemptions.
	Preemptor v1.ResourceName
}

// Check decides about a new pod.
func (c *Checker) Check(in Input) Decision {
	for _, check := range []func(Input) *Rejection{pressure, c.sysctls.check, allocate, c.node} {
		if r := check(in); r != nil {
			return Decision{Rejection: r}
		}
	}
	d := general(in)
	if d.Rejection != nil {
		return d
	}
	// The kubelet asks these when its victims are dead already. Nobody shall
	// die for a pod that is rejected.
	for _, check := range []func(Input) *Rejection{c.checkAppArmor, c.features, shutdown} {
		if r := check(in); r != nil {
			return Decision{Rejection: r}
		}
	}
	return d
}

// pressure: only critical pods start on a node in need, and under memory
// pressure alone also those that ask for memory or tolerate its taint
// (pkg/kubelet/eviction, Admit).
func pressure(in Input) *Rejection {
	if len(in.Pressure) == 0 || disruption.Critical(in.Pod) {
		return nil
	}
	if len(in.Pressure) == 1 && in.Pressure[0] == v1.NodeMemoryPressure && toleratesMemoryPressure(in.Pod) {
		return nil
	}
	return &Rejection{Reason: Evicted, Message: fmt.Sprintf("The node had condition: %v. ", in.Pressure)}
}

func allocate(in Input) *Rejection {
	if in.Allocate == nil {
		return nil
	}
	return in.Allocate(in.Pod)
}

func shutdown(in Input) *Rejection {
	if !in.ShuttingDown {
		return nil
	}
	return &Rejection{Reason: NodeShutdown, Message: "Pod was rejected as the node is shutting down."}
}

// general is the part in which a shortage of resources, where nothing else is
// in the way, is met by preemption for critical pods.
func general(in Input) Decision {
	short := shortages(in)
	failures := nodeFailures(in)
	critical := disruption.Critical(in.Pod)
	switch {
	case len(short) == 0 && len(failures) == 0:
		return Decision{}
	case len(short) > 0 && !critical:
		return Decision{Rejection: short[0].rejection()}
	case len(failures) > 0:
		r := failures[0].rejection()
		r.OnlyLabels = len(short) == 0 && len(failures) == 1 && failures[0].name == NodeAffinity
		return Decision{Rejection: r}
	}
	victims, err := preempt(in.Pod, in.Others, short)
	if err != nil {
		return Decision{Rejection: &Rejection{
			Reason:  UnexpectedAdmissionError,
			Message: fmt.Sprintf("Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: %v", err),
		}}
	}
	return Decision{Victims: victims, Preemptor: short[0].name}
}
