package admit

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
)

func TestRejectionsHaveTheKubeletsReasonsAndMessages(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	noUsers := false
	strict := v1.SupplementalGroupsPolicyStrict
	affinity := func(values ...string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{
				NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "zone", Operator: v1.NodeSelectorOpIn, Values: values}}}},
			}}}
		}
	}
	port := func(ip string, protocol v1.Protocol) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostIP: ip, Protocol: protocol, HostPort: 80}}
		}
	}
	sidecarPort := func(p *v1.Pod) {
		p.Spec.InitContainers = []v1.Container{
			{Name: "s", RestartPolicy: &always, Ports: []v1.ContainerPort{{HostPort: 80}}},
			{Name: "i", Ports: []v1.ContainerPort{{HostPort: 81}}},
		}
	}
	taint := func(effect v1.TaintEffect) func(*v1.Node) {
		return func(n *v1.Node) { n.Spec.Taints = []v1.Taint{{Key: "k", Value: "v", Effect: effect}} }
	}
	tolerates := func(key string) func(*v1.Pod) {
		return func(p *v1.Pod) { p.Spec.Tolerations = []v1.Toleration{{Key: key, Operator: v1.TolerationOpExists}} }
	}
	sysctls := func(names ...string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{}
			for _, n := range names {
				p.Spec.SecurityContext.Sysctls = append(p.Spec.SecurityContext.Sysctls, v1.Sysctl{Name: n, Value: "1"})
			}
		}
	}
	memory := []v1.NodeConditionType{v1.NodeMemoryPressure}
	disk := []v1.NodeConditionType{v1.NodeDiskPressure, v1.NodeMemoryPressure}
	tests := []struct {
		name   string
		in     Input
		reason string // empty: admitted
		text   string
	}{
		{"a small pod starts", Input{Pod: pod("p", "cpu", "1")}, "", ""},
		{"no node is known", Input{Pod: pod("p"), Node: (*v1.Node)(nil)}, "InvalidNodeInfo", "Kubelet cannot get node info."},

		{"memory pressure rejects best effort", Input{Pod: pod("p"), Pressure: memory}, "Evicted", "The node had condition: [MemoryPressure]. "},
		{"memory pressure admits burstable", Input{Pod: pod("p", "memory", "1Mi"), Pressure: memory}, "", ""},
		{"memory pressure admits who tolerates its taint", Input{Pod: with(pod("p"), tolerates("node.kubernetes.io/memory-pressure")), Pressure: memory}, "", ""},
		{"memory pressure rejects who tolerates another", Input{Pod: with(pod("p"), tolerates("node.kubernetes.io/disk-pressure")), Pressure: memory}, "Evicted", "The node had condition: [MemoryPressure]. "},
		{"disk pressure rejects burstable", Input{Pod: pod("p", "memory", "1Mi"), Pressure: disk}, "Evicted", "The node had condition: [DiskPressure MemoryPressure]. "},
		{"pressure admits critical pods", Input{Pod: with(pod("p"), priority(critical)), Pressure: disk}, "", ""},
		{"pressure admits static pods", Input{Pod: with(pod("p"), static), Pressure: disk}, "", ""},
		{"shutdown rejects all", Input{Pod: with(pod("p"), static), ShuttingDown: true}, "NodeShutdown", "Pod was rejected as the node is shutting down."},

		{"a label of another system", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Labels = map[string]string{"kubernetes.io/os": "windows"} })},
			"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"},
		{"a label of this system", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Labels = map[string]string{"kubernetes.io/os": "linux"} })}, "", ""},
		{"the field of another system", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.Windows} })},
			"PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"},
		{"strict groups without support", Input{Pod: with(pod("p"), func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: &strict}
		})}, "SupplementalGroupsPolicyNotSupported", "SupplementalGroupsPolicy=Strict is not supported in this node"},
		{"strict groups with support", Input{
			Pod:  with(pod("p"), func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: &strict} }),
			Node: node(func(n *v1.Node) { n.Status.Features = &v1.NodeFeatures{SupplementalGroupsPolicy: ptr(true)} }),
		}, "", ""},
		{"a feature that the node has not declared", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Spec.HostNetwork, p.Spec.HostUsers = true, &noUsers })},
			"PodFeatureUnsupported", "Pod requires node features that are not available: UserNamespacesHostNetworkSupport"},
		{"a feature that it has", Input{
			Pod:  with(pod("p"), func(p *v1.Pod) { p.Spec.HostNetwork, p.Spec.HostUsers = true, &noUsers }),
			Node: node(func(n *v1.Node) { n.Status.DeclaredFeatures = []string{"UserNamespacesHostNetworkSupport"} }),
		}, "", ""},

		{"a node selector that matches", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "a"} })}, "", ""},
		{"a node selector that does not", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} })},
			"NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		{"node affinity that matches", Input{Pod: with(pod("p"), affinity("a", "b"))}, "", ""},
		{"node affinity that does not", Input{Pod: with(pod("p"), affinity("b"))}, "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		{"a pod of another node", Input{Pod: with(pod("p"), func(p *v1.Pod) { p.Spec.NodeName = "n2" })},
			"NodeName", "Predicate NodeName failed: node(s) didn't match the requested node name"},
		{"a NoExecute taint", Input{Pod: pod("p"), Node: node(taint(v1.TaintEffectNoExecute))},
			"TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"},
		{"a NoExecute taint that is tolerated", Input{Pod: with(pod("p"), tolerates("k")), Node: node(taint(v1.TaintEffectNoExecute))}, "", ""},
		{"a NoExecute taint and a static pod", Input{Pod: with(pod("p"), static), Node: node(taint(v1.TaintEffectNoExecute))}, "", ""},
		{"a NoSchedule taint is the scheduler's", Input{Pod: pod("p"), Node: node(taint(v1.TaintEffectNoSchedule))}, "", ""},

		{"a port that is taken", Input{Pod: with(pod("p"), port("", "")), Others: []*v1.Pod{with(pod("o"), port("", v1.ProtocolTCP))}},
			"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"},
		{"a port of another protocol", Input{Pod: with(pod("p"), port("", "UDP")), Others: []*v1.Pod{with(pod("o"), port("", ""))}}, "", ""},
		{"a port of another address", Input{Pod: with(pod("p"), port("10.0.0.1", "")), Others: []*v1.Pod{with(pod("o"), port("10.0.0.2", ""))}}, "", ""},
		{"a port of one address and of all", Input{Pod: with(pod("p"), port("10.0.0.1", "")), Others: []*v1.Pod{with(pod("o"), port("0.0.0.0", ""))}},
			"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"},
		{"a sidecar's port", Input{Pod: with(pod("p"), port("", "")), Others: []*v1.Pod{with(pod("o"), sidecarPort)}},
			"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"},
		{"an init container's port is free again", Input{
			Pod:    with(pod("p"), func(p *v1.Pod) { p.Spec.Containers[0].Ports = []v1.ContainerPort{{HostPort: 81}} }),
			Others: []*v1.Pod{with(pod("o"), sidecarPort)},
		}, "", ""},

		{"too little CPU", Input{Pod: pod("p", "cpu", "2500m", "memory", "9Gi"), Others: []*v1.Pod{pod("o", "cpu", "2")}},
			"OutOfcpu", "Node didn't have enough resource: cpu, requested: 2500, used: 2000, capacity: 4000"},
		{"just enough CPU", Input{Pod: pod("p", "cpu", "2"), Others: []*v1.Pod{pod("o", "cpu", "2")}}, "", ""},
		{"too little memory", Input{Pod: pod("p", "memory", "9Gi")},
			"OutOfmemory", "Node didn't have enough resource: memory, requested: 9663676416, used: 0, capacity: 8589934592"},
		{"too little ephemeral storage", Input{Pod: pod("p", "ephemeral-storage", "21Gi")},
			"OutOfephemeral-storage", "Node didn't have enough resource: ephemeral-storage, requested: 22548578304, used: 0, capacity: 21474836480"},
		{"too many pods", Input{Pod: pod("p", "cpu", "10"), Others: []*v1.Pod{pod("1"), pod("2"), pod("3"), pod("4"), pod("5")}},
			"OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 5, capacity: 5"},
		{"an extended resource that the node has too few of", Input{
			Pod:  pod("p", "example.com/gpu", "2"),
			Node: node(func(n *v1.Node) { n.Status.Allocatable["example.com/gpu"] = list("x", "1")["x"] }),
		}, "OutOfexample.com/gpu", "Node didn't have enough resource: example.com/gpu, requested: 2, used: 0, capacity: 1"},
		{"an extended resource that the node does not know", Input{Pod: pod("p", "example.com/gpu", "2")}, "", ""},
		{"an extended resource served by a claim", Input{
			Pod: with(pod("p", "example.com/gpu", "2"), func(p *v1.Pod) {
				p.Status.ExtendedResourceClaimStatus = &v1.PodExtendedResourceClaimStatus{RequestMappings: []v1.ContainerExtendedResourceRequest{{ContainerName: "c", ResourceName: "example.com/gpu"}}}
			}),
			Node: node(func(n *v1.Node) { n.Status.Allocatable["example.com/gpu"] = list("x", "1")["x"] }),
		}, "", ""},
		{"huge pages that the node does not have", Input{Pod: pod("p", "hugepages-2Mi", "2Mi")},
			"OutOfhugepages-2Mi", "Node didn't have enough resource: hugepages-2Mi, requested: 2097152, used: 0, capacity: 0"},
		{"overhead counts", Input{Pod: with(pod("p", "cpu", "4"), func(p *v1.Pod) { p.Spec.Overhead = list("cpu", "1m") })},
			"OutOfcpu", "Node didn't have enough resource: cpu, requested: 4001, used: 0, capacity: 4000"},
		{"what a pod is told to shrink from is still used", Input{
			Pod: pod("p", "cpu", "3"),
			Others: []*v1.Pod{with(pod("o", "cpu", "1"), func(p *v1.Pod) {
				p.Status.ContainerStatuses = []v1.ContainerStatus{{Name: "c", Resources: &v1.ResourceRequirements{Requests: list("cpu", "2")}}}
			})},
		}, "OutOfcpu", "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000"},
		{"a full node is told before its labels", Input{Pod: with(pod("p", "cpu", "5"), affinity("b"))},
			"OutOfcpu", "Node didn't have enough resource: cpu, requested: 5000, used: 0, capacity: 4000"},
		{"a critical pod is told the labels", Input{Pod: with(pod("p", "cpu", "5"), affinity("b"), priority(critical))},
			"NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},

		{"safe sysctls", Input{Pod: with(pod("p"), sysctls("kernel.shm_rmid_forced", "net/ipv4/tcp_rmem"))}, "", ""},
		{"a sysctl that is not safe", Input{Pod: with(pod("p"), sysctls("net.ipv4.tcp_syncookies", "kernel/msgmax"))},
			"SysctlForbidden", `forbidden sysctl: "kernel.msgmax" not allowlisted`},
		{"a network sysctl with the host's network", Input{Pod: with(pod("p"), sysctls("net.ipv4.tcp_rmem"), func(p *v1.Pod) { p.Spec.HostNetwork = true })},
			"SysctlForbidden", `forbidden sysctl: "net.ipv4.tcp_rmem" not allowed with host Net enabled`},
		{"an IPC sysctl with the host's IPC", Input{Pod: with(pod("p"), sysctls("kernel.shm_rmid_forced"), func(p *v1.Pod) { p.Spec.HostIPC = true })},
			"SysctlForbidden", `forbidden sysctl: "kernel.shm_rmid_forced" not allowed with host IPC enabled`},

		{"the resource managers' word", Input{Pod: pod("p"), Allocate: func(*v1.Pod) *Rejection {
			return &Rejection{Reason: "TopologyAffinityError", Message: "Resources cannot be allocated with Topology locality"}
		}}, "TopologyAffinityError", "Resources cannot be allocated with Topology locality"},
		{"the resource managers agree", Input{Pod: pod("p"), Allocate: func(*v1.Pod) *Rejection { return nil }}, "", ""},
	}
	c := checker(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.in.Node == nil && test.reason != InvalidNodeInfo {
				test.in.Node = node()
			}
			d := c.Check(test.in)
			if test.reason == "" {
				if d.Rejection != nil || d.Victims != nil {
					t.Fatalf("decided %+v, want the pod admitted", d.Rejection)
				}
				return
			}
			if d.Rejection == nil {
				t.Fatalf("admitted, want it rejected: %s", test.reason)
			}
			if diff := cmp.Diff([]string{test.reason, test.text}, []string{d.Rejection.Reason, d.Rejection.Message}); diff != "" {
				t.Errorf("reason and message (-want +got):\n%s", diff)
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

func TestLabelsAloneAreReadAnew(t *testing.T) {
	c := checker(t)
	p := with(pod("p"), func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "b"} })
	if r := c.Check(Input{Pod: p, Node: node()}).Rejection; !r.OnlyLabels {
		t.Errorf("%+v: only the labels are in the way", r)
	}
	p.Spec.NodeName = "n2"
	if r := c.Check(Input{Pod: p, Node: node()}).Rejection; r.OnlyLabels {
		t.Errorf("%+v: the name is in the way too", r)
	}
	if r := c.Check(Input{Pod: with(pod("p", "cpu", "9"), func(o *v1.Pod) { o.Spec.NodeSelector = p.Spec.NodeSelector }), Node: node()}).Rejection; r.OnlyLabels {
		t.Errorf("%+v: the node is full too", r)
	}
}

func TestTheStatusSaysThatThePodWasRejected(t *testing.T) {
	r := Rejection{Message: "The node had condition: [DiskPressure]. "}
	if got, want := r.StatusMessage(), "Pod was rejected: The node had condition: [DiskPressure]. "; got != want {
		t.Errorf("message %q, want %q", got, want)
	}
}

func TestMetricReasonsAreFew(t *testing.T) {
	for reason, want := range map[string]string{
		"OutOfcpu": "OutOfcpu", "OutOfexample.com/gpu": "OutOfExtendedResources", "NodeAffinity": "Other",
		"TaintToleration": "Other", "TopologyAffinityError": "TopologyAffinityError", "Evicted": "Evicted",
	} {
		if got := (&Rejection{Reason: reason}).MetricReason(); got != want {
			t.Errorf("%s is counted as %s, want %s", reason, got, want)
		}
	}
}

func TestNothingIsAllocatedForAPodThatPressureRejects(t *testing.T) {
	d := checker(t).Check(Input{
		Pod: pod("p"), Node: node(), Pressure: []v1.NodeConditionType{v1.NodePIDPressure},
		Allocate: func(*v1.Pod) *Rejection { t.Error("resources were allocated"); return nil },
	})
	if d.Rejection == nil || d.Rejection.Reason != Evicted {
		t.Errorf("decided %+v, want %s", d.Rejection, Evicted)
	}
}

func TestAppArmorProfilesNeedAHostThatEnforcesThem(t *testing.T) {
	localhost := func(name *string) *v1.AppArmorProfile {
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: name}
	}
	field := func(profile *v1.AppArmorProfile) *v1.Pod {
		return with(pod("p"), func(p *v1.Pod) {
			p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{AppArmorProfile: profile}
		})
	}
	annotation := func(value string) *v1.Pod {
		return with(pod("p"), func(p *v1.Pod) {
			p.Annotations = map[string]string{"container.apparmor.security.beta.kubernetes.io/c": value}
		})
	}
	podWide := func(profile *v1.AppArmorProfile) *v1.Pod {
		return with(pod("p"), func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{AppArmorProfile: profile} })
	}
	disabled, empty := "Cannot enforce AppArmor: AppArmor is not enabled on the host", "Cannot enforce AppArmor: invalid empty AppArmor profile name: "
	tests := []struct {
		name    string
		pod     *v1.Pod
		on, off string // beginnings of messages; empty: admitted
	}{
		{"none", pod("p"), "", ""},
		{"unconfined", field(&v1.AppArmorProfile{Type: v1.AppArmorProfileTypeUnconfined}), "", ""},
		{"the runtime's", field(&v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}), "", disabled},
		{"a profile of the host", field(localhost(ptr("x"))), "", disabled},
		{"a profile without a name", field(localhost(nil)), empty, disabled},
		{"a pod's profile of blanks", podWide(localhost(ptr(" "))), empty, disabled},
		{"an annotation", annotation("localhost/x"), "", disabled},
		{"an annotation without a name", annotation("localhost/"), empty, disabled},
		{"an unconfined annotation", annotation("unconfined"), "", ""},
	}
	for _, test := range tests {
		for host, want := range map[bool]string{true: test.on, false: test.off} {
			r := checker(t, func(c *Config) { c.AppArmor = host }).Check(Input{Pod: test.pod, Node: node()}).Rejection
			switch {
			case want == "" && r != nil:
				t.Errorf("%s, AppArmor %v: rejected: %s", test.name, host, r.Message)
			case want != "" && (r == nil || r.Reason != AppArmor || !strings.HasPrefix(r.Message, want)):
				t.Errorf("%s, AppArmor %v: got %+v, want %s", test.name, host, r, want)
			}
		}
	}
}

func TestACriticalPodIsNotRejectedForAppArmorAfterItsVictimsDied(t *testing.T) {
	p := with(pod("p", "cpu", "3"), priority(critical), func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}}
	})
	d := checker(t).Check(Input{Pod: p, Node: node(), Others: []*v1.Pod{pod("o", "cpu", "2")}})
	if d.Rejection == nil || d.Rejection.Reason != AppArmor || d.Victims != nil {
		t.Errorf("decided %+v", d)
	}
}

func TestACriticalPodMakesRoom(t *testing.T) {
	tests := []struct {
		name   string
		pod    *v1.Pod
		others []*v1.Pod
		want   []string
	}{
		{"the pod that comes nearest", pod("p", "memory", "3Gi"),
			[]*v1.Pod{pod("big", "memory", "4Gi"), pod("small", "memory", "1Gi"), pod("right", "memory", "3Gi")}, []string{"right"}},
		{"best effort cannot help with memory", pod("p", "memory", "3Gi"),
			[]*v1.Pod{pod("be"), pod("bu", "memory", "7Gi")}, []string{"bu"}},
		{"burstable before guaranteed", pod("p", "cpu", "1", "memory", "1Gi"),
			[]*v1.Pod{with(pod("g", "cpu", "2", "memory", "1Gi"), guaranteed), pod("b", "cpu", "2")}, []string{"b"}},
		{"guaranteed too where burstable is not enough", pod("p", "cpu", "4", "memory", "1Gi"),
			[]*v1.Pod{with(pod("g", "cpu", "2", "memory", "1Gi"), guaranteed), pod("b", "cpu", "2")}, []string{"b", "g"}},
		{"a best-effort pod for a place", pod("p"),
			[]*v1.Pod{pod("b1", "cpu", "1"), pod("b2", "cpu", "1m"), pod("be"), pod("b3", "cpu", "1"), pod("b4", "cpu", "1")}, []string{"be"}},
		{"the one that asks for least of equals", pod("p", "cpu", "2"),
			[]*v1.Pod{pod("a", "cpu", "2", "memory", "2Gi"), pod("b", "cpu", "2", "memory", "1Gi")}, []string{"b"}},
		{"two resources by one pod", pod("p", "cpu", "3", "memory", "5Gi"),
			[]*v1.Pod{pod("c", "cpu", "1"), pod("m", "memory", "3Gi"), pod("both", "cpu", "2", "memory", "3Gi")}, []string{"both"}},
		{"a critical pod of less priority", with(pod("p", "cpu", "3"), priority(critical+1000)),
			[]*v1.Pod{with(pod("o", "cpu", "2"), priority(critical))}, []string{"o"}},
	}
	c := checker(t)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.pod.Spec.Priority == nil {
				priority(critical)(test.pod)
			}
			d := c.Check(Input{Pod: test.pod, Node: node(), Others: test.others})
			if d.Rejection != nil {
				t.Fatalf("rejected: %+v", d.Rejection)
			}
			if diff := cmp.Diff(test.want, names(d.Victims)); diff != "" {
				t.Errorf("victims (-want +got):\n%s", diff)
			}
			for _, v := range d.Victims {
				if v.Stop.Reason != "Preempting" || v.Stop.Message != "Preempted in order to admit critical pod" || v.Stop.Grace != nil {
					t.Errorf("stop %+v", v.Stop)
				}
				if len(v.Stop.Conditions) != 1 || v.Stop.Conditions[0].Type != v1.DisruptionTarget || v.Stop.Conditions[0].Reason != "TerminationByKubelet" {
					t.Errorf("conditions %+v", v.Stop.Conditions)
				}
			}
		})
	}
}

func TestWhereNobodyCanGoACriticalPodIsRejected(t *testing.T) {
	d := checker(t).Check(Input{
		Pod: with(pod("p", "cpu", "3"), priority(critical)), Node: node(),
		Others: []*v1.Pod{with(pod("o", "cpu", "2"), priority(critical))},
	})
	want := Rejection{Reason: UnexpectedAdmissionError, Message: "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 1000), ]"}
	if d.Rejection == nil || *d.Rejection != want {
		t.Errorf("got %+v, want %+v", d.Rejection, want)
	}
}

// Victims make enough room, none of them is critical unless of lower priority,
// and without any one of them the room is not enough in its class's order.
func TestVictimsAlwaysMakeRoomAndNoneDiesInVain(t *testing.T) {
	c := checker(t)
	r := rand.New(rand.NewPCG(1, 2))
	quantities := []string{"1", "250m", "500m", "2"}
	sizes := []string{"64Mi", "512Mi", "1Gi", "3Gi"}
	preempted := 0
	for range 2000 {
		var others []*v1.Pod
		for i := range r.IntN(5) {
			o := pod("o" + string(rune('0'+i)))
			if r.IntN(4) > 0 {
				o = pod(o.Name, "cpu", quantities[r.IntN(4)], "memory", sizes[r.IntN(4)])
			}
			if r.IntN(3) == 0 {
				guaranteed(o)
			}
			if r.IntN(5) == 0 {
				priority(critical)(o)
			}
			others = append(others, o)
		}
		p := with(pod("p", "cpu", quantities[r.IntN(4)], "memory", sizes[r.IntN(4)]), priority(critical))
		in := Input{Pod: p, Node: node(func(n *v1.Node) { n.Status.Allocatable = list("cpu", "3", "memory", "4Gi", "pods", "5") }), Others: others}
		d := c.Check(in)
		if d.Rejection != nil {
			continue
		}
		left := slices.DeleteFunc(slices.Clone(others), func(o *v1.Pod) bool { return slices.Contains(names(d.Victims), o.Name) })
		after := in
		after.Others = left
		if again := c.Check(after); again.Rejection != nil || len(again.Victims) > 0 {
			t.Fatalf("after %v are gone: %+v", names(d.Victims), again)
		}
		for _, v := range d.Victims {
			preempted++
			if v.Pod.Spec.Priority != nil {
				t.Fatalf("critical pod %s is a victim", v.Pod.Name)
			}
		}
	}
	if preempted < 100 {
		t.Fatalf("only %d victims: the test shows nothing", preempted)
	}
}

func TestSysctlPatternsAreChecked(t *testing.T) {
	allows := func(name string, patterns ...string) bool {
		t.Helper()
		s, err := newSysctls(patterns, "6.1")
		if err != nil {
			t.Fatal(err)
		}
		_, found := s.find(name)
		return found
	}
	if !allows("kernel.msgmax", "kernel.msg*") || !allows("net.core.somaxconn", "net/core/somaxconn") || allows("net.core.x", "net.ipv4.*") {
		t.Error("allowed sysctls are not those of the patterns")
	}
	for pattern, want := range map[string]string{
		"Kernel.msg":              "must be a sysctl's name",
		"":                        "must be a sysctl's name",
		"kernel.*.x":              "must be a sysctl's name",
		"vm.swappiness":           "not known to be separate",
		strings.Repeat("a.", 130): "at most 253 characters",
	} {
		if _, err := newSysctls([]string{"kernel.sem", pattern}, "6.1"); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "allowedUnsafeSysctls[1]") {
			t.Errorf("%q: error %v, want one with %q and the field", pattern, err, want)
		}
	}
}

func TestOldKernelsHaveFewerSafeSysctls(t *testing.T) {
	s, err := newSysctls(nil, "4.9.0-19-amd64")
	if err != nil {
		t.Fatal(err)
	}
	_, keepalive := s.find("net.ipv4.tcp_keepalive_time")
	_, rmem := s.find("net.ipv4.tcp_rmem")
	if !keepalive || rmem {
		t.Errorf("tcp_keepalive_time %v, tcp_rmem %v; want true, false", keepalive, rmem)
	}
}

func FuzzSysctls(f *testing.F) {
	f.Add("kernel.msg*", "kernel/msgmax")
	f.Add("net.*", "net.ipv4.conf.eth0/1.forwarding")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		s, err := newSysctls([]string{pattern}, "6.1")
		if err != nil {
			return
		}
		p := with(pod("p"), func(p *v1.Pod) {
			p.Spec.HostNetwork, p.Spec.HostIPC = true, true
			p.Spec.SecurityContext = &v1.PodSecurityContext{Sysctls: []v1.Sysctl{{Name: name}}}
		})
		if s.check(Input{Pod: p}) == nil {
			t.Errorf("pattern %q lets a pod set %q of the host", pattern, name)
		}
	})
}
