package status

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
)

func condition(t v1.PodConditionType, s v1.ConditionStatus) v1.PodCondition {
	return v1.PodCondition{Type: t, Status: s}
}

func TestAdoptTakesFromTheAPIWhatIsNotTheNodes(t *testing.T) {
	node := v1.PodStatus{Phase: v1.PodRunning, PodIP: "10.1.0.2", Conditions: []v1.PodCondition{
		condition(v1.PodReady, v1.ConditionTrue), condition("example.com/old", v1.ConditionTrue),
	}}
	api := v1.PodStatus{
		Phase: v1.PodPending, PodIP: "10.9.9.9", NominatedNodeName: "other",
		Conditions: []v1.PodCondition{
			condition("example.com/gate", v1.ConditionTrue), condition(v1.PodReady, v1.ConditionFalse),
			condition(v1.DisruptionTarget, v1.ConditionTrue),
		},
		ResourceClaimStatuses:                []v1.PodResourceClaimStatus{{Name: "claim"}},
		ExtendedResourceClaimStatus:          &v1.PodExtendedResourceClaimStatus{ResourceClaimName: "claim"},
		NodeAllocatableResourceClaimStatuses: []v1.NodeAllocatableResourceClaimStatus{{}},
	}
	want := v1.PodStatus{
		Phase: v1.PodRunning, PodIP: "10.1.0.2", NominatedNodeName: "other",
		Conditions: []v1.PodCondition{
			condition(v1.PodReady, v1.ConditionTrue), condition("example.com/gate", v1.ConditionTrue), condition(v1.DisruptionTarget, v1.ConditionTrue),
		},
		ResourceClaimStatuses: api.ResourceClaimStatuses, ExtendedResourceClaimStatus: api.ExtendedResourceClaimStatus,
		NodeAllocatableResourceClaimStatuses: api.NodeAllocatableResourceClaimStatuses,
	}
	got := Adopt(node, api)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("adopted (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(got, Adopt(got, api)); diff != "" {
		t.Errorf("adopting it again changes it (-once +twice):\n%s", diff)
	}
}

func TestAdoptNeverLeavesATerminalPhaseOfTheAPI(t *testing.T) {
	for _, c := range []struct{ node, api, want v1.PodPhase }{
		{v1.PodRunning, v1.PodFailed, v1.PodFailed},
		{v1.PodSucceeded, v1.PodFailed, v1.PodFailed},
		{v1.PodFailed, v1.PodSucceeded, v1.PodSucceeded},
		{v1.PodFailed, v1.PodRunning, v1.PodFailed},
		{v1.PodRunning, v1.PodPending, v1.PodRunning},
	} {
		got := Adopt(v1.PodStatus{Phase: c.node, Reason: "node"}, v1.PodStatus{Phase: c.api, Reason: "api"})
		wantReason := "node"
		if c.want == c.api {
			wantReason = "api"
		}
		if got.Phase != c.want || got.Reason != wantReason {
			t.Errorf("node %s, API %s: %s %s", c.node, c.api, got.Phase, got.Reason)
		}
	}
}

func TestTheNodesDisruptionIsToldOnceNothingRuns(t *testing.T) {
	s := v1.PodStatus{Phase: v1.PodRunning, Conditions: []v1.PodCondition{condition(v1.DisruptionTarget, v1.ConditionTrue)}}
	if got := Adopt(s, v1.PodStatus{}); len(got.Conditions) > 0 {
		t.Errorf("told while it runs: %+v", got.Conditions)
	}
	s.Phase = v1.PodFailed
	if got := Adopt(s, v1.PodStatus{}); len(got.Conditions) != 1 {
		t.Errorf("conditions %+v", got.Conditions)
	}
}

func TestWhatWasAdoptedIsNoChange(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"))
	first := Of(in)
	api := *first.DeepCopy()
	api.NominatedNodeName, api.Reason, api.Message = "other", "NodeLost", "not heard of"
	api.ResourceClaimStatuses = []v1.PodResourceClaimStatus{{Name: "claim"}}
	api.Conditions = append(api.Conditions, condition("example.com/gate", v1.ConditionTrue))
	adopted := Adopt(first, api)
	in.Previous = &adopted
	if diff := cmp.Diff(adopted, Of(in)); diff != "" {
		t.Errorf("the next status is another (-adopted +next):\n%s", diff)
	}
}

func TestAPhaseIsNotTerminalWhileThePodHoldsClaims(t *testing.T) {
	in := input(v1.RestartPolicyNever, phase.Terminating, exited("a", 0), exited("b", 0))
	in.Previous.Phase, in.HoldsClaims = v1.PodRunning, true
	if got := Of(in).Phase; got != v1.PodRunning {
		t.Errorf("%s although it holds claims", got)
	}
	in.HoldsClaims = false
	if got := Of(in).Phase; got != v1.PodSucceeded {
		t.Errorf("%s with its claims given back", got)
	}
}

func TestAPhaseIsNotTerminalWhileAnythingRuns(t *testing.T) {
	in := input(v1.RestartPolicyNever, phase.Running, exited("init", 1), running("side"))
	always := v1.ContainerRestartPolicyAlways
	in.Pod.Spec.InitContainers = []v1.Container{{Name: "side", RestartPolicy: &always}, {Name: "init"}}
	in.Previous.Phase = v1.PodPending
	if got := Of(in).Phase; got != v1.PodPending {
		t.Errorf("%s although a sidecar runs", got)
	}
	in.Observed.Containers[1].State = observed.Exited
	if got := Of(in).Phase; got != v1.PodFailed {
		t.Errorf("%s with nothing running", got)
	}

	in = input(v1.RestartPolicyNever, phase.Running, exited("a", 0), exited("b", 0), running("debug"))
	in.Pod.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug"}}}
	in.Previous.Phase = v1.PodRunning
	if got := Of(in).Phase; got != v1.PodRunning {
		t.Errorf("%s although an ephemeral container runs", got)
	}
}

func TestAReasonGoesWithItsPhase(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Terminating, running("a"), running("b"))
	in.Failed = &plan.Waiting{Reason: "DeadlineExceeded", Message: "too long"}
	in.Previous.Phase = v1.PodRunning
	first := Of(in)
	if first.Phase != v1.PodRunning || first.Reason != "" {
		t.Errorf("%s %s while it ends", first.Phase, first.Reason)
	}
	in.Previous, in.Phase = &first, phase.Terminated
	in.Observed.Containers = []observed.Container{exited("a", 137), exited("b", 0)}
	second := Of(in)
	if second.Phase != v1.PodFailed || second.Reason != "DeadlineExceeded" || second.Message != "too long" {
		t.Errorf("%s %s", second.Phase, second.Reason)
	}
	in.Previous, in.Failed = &second, nil // the next agent knows of it from the status alone
	if third := Of(in); third.Reason != "DeadlineExceeded" {
		t.Errorf("reason %q", third.Reason)
	}
}

func TestContainersOfAPodThatIsOverDoNotWait(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Terminated)
	for _, c := range Of(in).ContainerStatuses {
		if c.State.Terminated == nil || c.State.Terminated.ExitCode != 137 || c.State.Terminated.Reason != "ContainerStatusUnknown" {
			t.Errorf("%s: %+v", c.Name, c.State)
		}
	}
	in = input(v1.RestartPolicyAlways, phase.Terminated, exited("one", 1))
	in.Pod.Spec.InitContainers = []v1.Container{{Name: "one"}, {Name: "two"}}
	s := Of(in)
	if s.InitContainerStatuses[0].State.Terminated.ExitCode != 1 || s.InitContainerStatuses[1].State.Waiting == nil || s.ContainerStatuses[0].State.Waiting == nil {
		t.Errorf("what never had its turn has ended: %+v", s)
	}
	if s.Phase != v1.PodFailed {
		t.Errorf("phase %s", s.Phase)
	}
}

func TestARunningInitContainerHasStartedAndIsNotReady(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("init"))
	in.Pod.Spec.InitContainers = []v1.Container{{Name: "init"}}
	if c := Of(in).InitContainerStatuses[0]; !*c.Started || c.Ready {
		t.Errorf("started %v, ready %v", *c.Started, c.Ready)
	}
	in.Observed.Containers[0] = exited("init", 0)
	if c := Of(in).InitContainerStatuses[0]; *c.Started || !c.Ready {
		t.Errorf("ended: started %v, ready %v", *c.Started, c.Ready)
	}
}

func TestAnEphemeralContainerIsNeitherReadyNorStarted(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"), running("debug"))
	in.Pod.Spec.EphemeralContainers = []v1.EphemeralContainer{{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: "debug"}}}
	s := Of(in)
	if c := s.EphemeralContainerStatuses[0]; c.Ready || c.Started != nil || c.State.Running == nil {
		t.Errorf("status %+v", c)
	}
	if find(s.Conditions, v1.PodReady).Status != v1.ConditionTrue {
		t.Error("the pod waits for it")
	}
}
