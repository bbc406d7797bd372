package node

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Facts are what a node's status is made from.
type Facts struct {
	// Addresses are the node's; with CloudAddresses only until it has some: from
	// then on they are an external cloud provider's to say.
	Addresses             []v1.NodeAddress
	CloudAddresses        bool
	Capacity, Allocatable v1.ResourceList
	Info                  v1.NodeSystemInfo
	Port                  int32 // of the kubelet's API
	Images                []v1.ContainerImage
	Handlers              []v1.NodeRuntimeHandler
	Features              *v1.NodeFeatures
	DeclaredFeatures      []string
	// Problems are why the node cannot run pods; none: it is ready.
	Problems []string
	// Pressure is what the node is short of.
	MemoryPressure, DiskPressure, PIDPressure bool
	VolumesInUse                              []v1.UniqueVolumeName
}

// Status is a node's status by its facts: what is not this node's to say stays
// as it was (pkg/kubelet/nodestatus/setters.go has the conditions' words).
func Status(f Facts, previous v1.NodeStatus, now time.Time) v1.NodeStatus {
	s := *previous.DeepCopy()
	s.Capacity, s.Allocatable = resources(f, previous.Capacity)
	s.NodeInfo = f.Info
	s.DaemonEndpoints.KubeletEndpoint.Port = f.Port
	s.Images, s.RuntimeHandlers, s.Features = f.Images, f.Handlers, f.Features
	s.DeclaredFeatures = f.DeclaredFeatures
	s.VolumesInUse = f.VolumesInUse
	if !f.CloudAddresses || len(previous.Addresses) == 0 {
		s.Addresses = f.Addresses
	}
	ready := v1.NodeCondition{Type: v1.NodeReady, Status: v1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	switch len(f.Problems) {
	case 0:
	case 1:
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", f.Problems[0]
	default:
		ready.Status, ready.Reason, ready.Message = v1.ConditionFalse, "KubeletNotReady", "["+strings.Join(f.Problems, ", ")+"]"
	}
	for _, c := range []v1.NodeCondition{
		pressure(v1.NodeMemoryPressure, f.MemoryPressure, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available",
			"KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
		pressure(v1.NodeDiskPressure, f.DiskPressure, "KubeletHasDiskPressure", "kubelet has disk pressure",
			"KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
		pressure(v1.NodePIDPressure, f.PIDPressure, "KubeletHasInsufficientPID", "kubelet has insufficient PID available",
			"KubeletHasSufficientPID", "kubelet has sufficient PID available"),
		ready, // last, as the kubelet has it
	} {
		setCondition(&s, c, now)
	}
	return s
}

// resources are the node's own, and those that others have given it, of which
// all can be used (pkg/kubelet/nodestatus/setters.go, MachineInfo).
func resources(f Facts, previous v1.ResourceList) (capacity, allocatable v1.ResourceList) {
	capacity, allocatable = maps.Clone(f.Capacity), maps.Clone(f.Allocatable)
	for name, q := range previous {
		if _, own := f.Capacity[name]; own || strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			continue
		}
		if capacity == nil {
			capacity = v1.ResourceList{}
		}
		if allocatable == nil {
			allocatable = v1.ResourceList{}
		}
		capacity[name], allocatable[name] = q, q
	}
	return capacity, allocatable
}

func pressure(t v1.NodeConditionType, on bool, badReason, badMessage, goodReason, goodMessage string) v1.NodeCondition {
	if on {
		return v1.NodeCondition{Type: t, Status: v1.ConditionTrue, Reason: badReason, Message: badMessage}
	}
	return v1.NodeCondition{Type: t, Status: v1.ConditionFalse, Reason: goodReason, Message: goodMessage}
}

func setCondition(s *v1.NodeStatus, c v1.NodeCondition, now time.Time) {
	c.LastHeartbeatTime, c.LastTransitionTime = metav1.NewTime(now), metav1.NewTime(now)
	old := find(s.Conditions, c.Type)
	if old == nil {
		s.Conditions = append(s.Conditions, c)
		return
	}
	if old.Status == c.Status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	*old = c
}

func find(list []v1.NodeCondition, t v1.NodeConditionType) *v1.NodeCondition {
	if i := slices.IndexFunc(list, func(c v1.NodeCondition) bool { return c.Type == t }); i >= 0 {
		return &list[i]
	}
	return nil
}

func ready(s v1.NodeStatus) bool {
	c := find(s.Conditions, v1.NodeReady)
	return c != nil && c.Status == v1.ConditionTrue
}

// Same tells whether two statuses say the same, whenever they were made.
func Same(a, b v1.NodeStatus) bool {
	a, b = *a.DeepCopy(), *b.DeepCopy()
	for _, s := range []*v1.NodeStatus{&a, &b} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
			s.Conditions[i].LastTransitionTime = metav1.Time{}
		}
	}
	return equality.Semantic.DeepEqual(a, b)
}

// changed tells whether the kubelet makes an event of a condition that was
// another before, or not there (nil). Of conditions of others it does not tell,
// nor of what a controller says of a node that it does not hear of.
func changed(before, now *v1.NodeCondition) bool {
	switch {
	case now.Status == v1.ConditionUnknown:
		return false
	case now.Type == v1.NodeReady: // a node that is new is not told of: it is not ready yet
		return before != nil && before.Status != now.Status
	case slices.Contains([]v1.NodeConditionType{v1.NodeMemoryPressure, v1.NodeDiskPressure, v1.NodePIDPressure}, now.Type):
		return before == nil || before.Status != now.Status
	}
	return false
}

// eventReason is the kubelet's reason for an event about a condition.
func eventReason(c *v1.NodeCondition) string {
	if c.Type != v1.NodeReady {
		return strings.Replace(c.Reason, "Kubelet", "Node", 1)
	}
	if c.Status == v1.ConditionTrue {
		return "NodeReady"
	}
	return "NodeNotReady"
}

func schedulableReason(unschedulable bool) string {
	if unschedulable {
		return "NodeNotSchedulable"
	}
	return "NodeSchedulable"
}

const (
	// maxNames are names of one image in the status
	// (pkg/kubelet/nodestatus/setters.go, MaxNamesPerImageInNodeStatus).
	maxNames = 5
)

// Images are the largest images, at most as many as given, any number for -1.
func Images(list []*runtimeapi.Image, atMost int) []v1.ContainerImage {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b *runtimeapi.Image) int {
		return cmp.Or(cmp.Compare(b.GetSize(), a.GetSize()), strings.Compare(a.GetId(), b.GetId()))
	})
	if atMost >= 0 && len(list) > atMost {
		list = list[:atMost]
	}
	var out []v1.ContainerImage
	for _, image := range list {
		names := slices.Concat(image.GetRepoDigests(), image.GetRepoTags())
		out = append(out, v1.ContainerImage{Names: names[:min(len(names), maxNames)], SizeBytes: int64(image.GetSize())})
	}
	return out
}

// Runtime reads what a runtime's status says for the node: why it cannot run
// pods, its handlers and features.
func Runtime(s *runtimeapi.StatusResponse) (problems []string, handlers []v1.NodeRuntimeHandler, features *v1.NodeFeatures) {
	problems = conditionProblems(s.GetStatus())
	for _, h := range s.GetRuntimeHandlers() {
		f := h.GetFeatures()
		handlers = append(handlers, v1.NodeRuntimeHandler{Name: h.GetName(), Features: &v1.NodeRuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: new(f.GetRecursiveReadOnlyMounts()), UserNamespaces: new(f.GetUserNamespaces()),
		}})
	}
	if f := s.GetFeatures(); f != nil {
		features = &v1.NodeFeatures{SupplementalGroupsPolicy: new(f.GetSupplementalGroupsPolicy())}
	}
	return problems, handlers, features
}

// conditionProblems words a runtime's conditions as the kubelet does
// (pkg/kubelet/runtime.go).
func conditionProblems(s *runtimeapi.RuntimeStatus) []string {
	var problems []string
	for _, want := range []struct{ name, problem string }{
		{runtimeapi.RuntimeReady, "container runtime not ready: "},
		{runtimeapi.NetworkReady, "container runtime network not ready: "},
	} {
		i := slices.IndexFunc(s.GetConditions(), func(c *runtimeapi.RuntimeCondition) bool { return c.GetType() == want.name })
		if i < 0 {
			problems = append(problems, want.problem+"condition "+want.name+" is not reported")
			continue
		}
		if c := s.GetConditions()[i]; !c.GetStatus() {
			problems = append(problems, want.problem+want.name+"=false reason:"+c.GetReason()+" message:"+c.GetMessage())
		}
	}
	return problems
}
