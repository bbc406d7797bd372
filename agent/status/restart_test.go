package status

import (
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
)

// ruled is a pod with container a alone, which has a rule of its own.
func ruled(in Input, action v1.ContainerRestartRuleAction, code int32) Input {
	in.Pod.Spec.Containers = in.Pod.Spec.Containers[:1]
	in.Pod.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{Action: action, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{
		Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{code},
	}}}
	return in
}

func TestAPodWhoseContainerIsToBeStartedAgainHasNotFailed(t *testing.T) {
	for code, want := range map[int32]v1.PodPhase{42: v1.PodRunning, 1: v1.PodFailed, 0: v1.PodSucceeded} {
		in := ruled(input(v1.RestartPolicyNever, phase.Running, exited("a", code)), v1.ContainerRestartRuleActionRestart, 42)
		if got := Of(in).Phase; got != want {
			t.Errorf("exit code %d: %s, want %s", code, got, want)
		}
	}
	always := v1.ContainerRestartPolicyAlways
	in := ruled(input(v1.RestartPolicyNever, phase.Running, exited("a", 0)), v1.ContainerRestartRuleActionRestart, 42)
	in.Pod.Spec.Containers[0].RestartPolicy = &always
	if got := Of(in).Phase; got != v1.PodRunning {
		t.Errorf("its own policy is Always: %s", got)
	}
}

func TestAPodWhoseContainersAllStartAnewSaysSo(t *testing.T) {
	in := ruled(input(v1.RestartPolicyNever, phase.Running, exited("a", 42)), v1.ContainerRestartRuleActionRestartAllContainers, 42)
	step := func(containers ...observed.Container) v1.PodStatus {
		in.Observed = &observed.Pod{Sandboxes: in.Observed.Sandboxes, Containers: containers}
		s := Of(in)
		in.Previous = &s
		if s.Phase != v1.PodRunning {
			t.Errorf("with %d containers: phase %s", len(containers), s.Phase)
		}
		return s
	}
	source := exited("a", 42)
	s := step(source)
	c := find(s.Conditions, v1.AllContainersRestarting)
	if c == nil || c.Status != v1.ConditionTrue || c.Reason != "RestartAllContainersStarted" || c.Message != "container exited with restart policy rule" {
		t.Fatalf("condition %+v", c)
	}
	s = step()
	if c := find(s.Conditions, v1.AllContainersRestarting); c.Status != v1.ConditionFalse {
		t.Errorf("nothing is left, and the condition is %+v", c)
	}
	a := s.ContainerStatuses[0]
	if a.State.Waiting == nil || a.State.Waiting.Reason != "RestartingAllContainers" || a.RestartCount != 1 {
		t.Errorf("removed, it is %+v", a)
	}
	s = step()
	if a := s.ContainerStatuses[0]; a.RestartCount != 1 || a.LastTerminationState.Terminated.ExitCode != 137 {
		t.Errorf("looked at again, it is %+v", a)
	}
	again := running("a")
	again.ID, again.Attempt = "another", 1
	s = step(again)
	if a := s.ContainerStatuses[0]; a.State.Running == nil || a.RestartCount != 1 || a.LastTerminationState.Terminated.Reason != "RestartingAllContainers" {
		t.Errorf("started anew, it is %+v", a)
	}
	if c := find(s.Conditions, v1.PodInitialized); c.Status != v1.ConditionTrue {
		t.Errorf("an initialized pod is %+v", c)
	}
}
