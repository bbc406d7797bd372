package admit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/nodedeclaredfeatures"
	"k8s.io/component-helpers/nodedeclaredfeatures/types"
	"k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/qos"
)

const thisOS = "linux"

// node checks what no preemption can change.
func (c *Checker) node(in Input) *Rejection {
	if in.Node == nil {
		return &Rejection{Reason: InvalidNodeInfo, Message: "Kubelet cannot get node info."}
	}
	// The kubelet looks at the pod's labels here, not at its node selector
	// (pkg/kubelet/lifecycle, rejectPodAdmissionBasedOnOSSelector).
	if os, found := in.Pod.Labels[v1.LabelOSStable]; found && os != thisOS {
		return &Rejection{
			Reason:  PodOSSelectorNodeLabelDoesNotMatch,
			Message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
		}
	}
	if os := in.Pod.Spec.OS; os != nil && os.Name != thisOS {
		return &Rejection{Reason: PodOSNotSupported, Message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if strictGroups(in.Pod) && !supportsStrictGroups(in.Node) {
		return &Rejection{
			Reason:  SupplementalGroupsPolicyNotSupported,
			Message: fmt.Sprintf("SupplementalGroupsPolicy=%s is not supported in this node", v1.SupplementalGroupsPolicyStrict),
		}
	}
	return nil
}

func strictGroups(pod *v1.Pod) bool {
	sc := pod.Spec.SecurityContext
	return sc != nil && sc.SupplementalGroupsPolicy != nil && *sc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict
}

func supportsStrictGroups(node *v1.Node) bool {
	f := node.Status.Features
	return f != nil && f.SupplementalGroupsPolicy != nil && *f.SupplementalGroupsPolicy
}

// failure is a check of the scheduler's that the pod did not pass here.
type failure struct{ name, reason string }

func (f failure) rejection() *Rejection {
	return &Rejection{Reason: f.name, Message: fmt.Sprintf("Predicate %s failed: %s", f.name, f.reason)}
}

// nodeFailures are the checks which the scheduler has made too, for pods that
// came past it. Of the taints only NoExecute counts, and not for static pods,
// since nothing would ever start them again.
func nodeFailures(in Input) []failure {
	var failed []failure
	if matches, err := nodeaffinity.GetRequiredNodeAffinity(in.Pod).Match(in.Node); err != nil || !matches {
		failed = append(failed, failure{NodeAffinity, "node(s) didn't match Pod's node affinity/selector"})
	}
	if name := in.Pod.Spec.NodeName; name != "" && name != in.Node.Name {
		failed = append(failed, failure{NodeName, "node(s) didn't match the requested node name"})
	}
	if portsConflict(in.Pod, in.Others) {
		failed = append(failed, failure{NodePorts, "node(s) didn't have free ports for the requested pod ports"})
	}
	if !disruption.Static(in.Pod) {
		_, untolerated := corev1.FindMatchingUntoleratedTaint(logr.Discard(), in.Node.Spec.Taints, in.Pod.Spec.Tolerations,
			func(t *v1.Taint) bool { return t.Effect == v1.TaintEffectNoExecute }, false)
		if untolerated {
			failed = append(failed, failure{TaintToleration, "node(s) had taints that the pod didn't tolerate"})
		}
	}
	return failed
}

// toleratesMemoryPressure: the pod asks for memory or CPU, or says that it
// tolerates the taint of the condition.
func toleratesMemoryPressure(pod *v1.Pod) bool {
	taint := &v1.Taint{Key: v1.TaintNodeMemoryPressure, Effect: v1.TaintEffectNoSchedule}
	return qos.Class(pod) != v1.PodQOSBestEffort ||
		corev1.TolerationsTolerateTaint(logr.Discard(), pod.Spec.Tolerations, taint, false)
}

// hostPort is a port of the host that a pod takes.
type hostPort struct {
	ip       string
	protocol v1.Protocol
	port     int32
}

const allAddresses = "0.0.0.0"

func (p hostPort) conflicts(o hostPort) bool {
	return p.port == o.port && p.protocol == o.protocol &&
		(p.ip == o.ip || p.ip == allAddresses || o.ip == allAddresses)
}

func portsConflict(pod *v1.Pod, others []*v1.Pod) bool {
	wanted := hostPorts(pod)
	if len(wanted) == 0 {
		return false
	}
	return slices.ContainsFunc(others, func(o *v1.Pod) bool {
		for _, taken := range hostPorts(o) {
			if slices.ContainsFunc(wanted, taken.conflicts) {
				return true
			}
		}
		return false
	})
}

// hostPorts are the ports of the containers that run as long as the pod does.
func hostPorts(pod *v1.Pod) []hostPort {
	var ports []hostPort
	add := func(c *v1.Container) {
		for _, p := range c.Ports {
			if p.HostPort <= 0 {
				continue
			}
			hp := hostPort{ip: p.HostIP, protocol: p.Protocol, port: p.HostPort}
			if hp.ip == "" {
				hp.ip = allAddresses
			}
			if hp.protocol == "" {
				hp.protocol = v1.ProtocolTCP
			}
			ports = append(ports, hp)
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return ports
}

// features checks that the node has declared what the pod needs (KEP-5328).
func (c *Checker) features(in Input) *Rejection {
	known := nodedeclaredfeatures.DefaultFramework
	required, err := known.InferForPodScheduling(&types.PodInfo{Spec: &in.Pod.Spec, Status: &in.Pod.Status}, c.version)
	if err != nil {
		return &Rejection{Reason: PodFeatureUnsupported, Message: fmt.Sprintf("Failed to infer pod's feature requirements: %v", err)}
	}
	match, err := known.MatchNode(required, in.Node)
	if err != nil {
		return &Rejection{Reason: PodFeatureUnsupported, Message: fmt.Sprintf("Failed to match pod's feature requirements against the node: %v", err)}
	}
	if !match.IsMatch {
		return &Rejection{
			Reason:  PodFeatureUnsupported,
			Message: "Pod requires node features that are not available: " + strings.Join(match.UnsatisfiedRequirements, ", "),
		}
	}
	return nil
}
