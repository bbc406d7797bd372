package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/phase"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/probe"
)

var now = time.Unix(1_000_000, 0)

// input is a pod with containers a and b, and the containers that were observed.
func input(policy v1.RestartPolicy, at phase.Phase, containers ...observed.Container) Input {
	pod := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: policy, Containers: []v1.Container{{Name: "a"}, {Name: "b"}}}}
	return Input{
		Pod: pod, Phase: at, Now: now, RuntimeName: "berth", HostIPs: []string{"10.0.0.1"},
		Previous: &v1.PodStatus{},
		Observed: &observed.Pod{
			Sandboxes:  []observed.Sandbox{{ID: "s", Ready: at < phase.Terminated, IPs: []string{"10.1.0.2"}}},
			Containers: containers,
		},
	}
}

func running(name string) observed.Container {
	return observed.Container{ID: "id-" + name, SandboxID: "s", Name: name, State: observed.Running, StartedAt: now}
}

func exited(name string, code int32) observed.Container {
	return observed.Container{ID: "id-" + name, SandboxID: "s", Name: name, State: observed.Exited, StartedAt: now, FinishedAt: now, ExitCode: code}
}

func TestPhases(t *testing.T) {
	always, onFailure, never := v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever
	for _, c := range []struct {
		name string
		in   Input
		want v1.PodPhase
	}{
		{"nothing started", input(always, phase.Starting), v1.PodPending},
		{"one of two started", input(always, phase.Running, running("a")), v1.PodPending},
		{"all run", input(always, phase.Running, running("a"), running("b")), v1.PodRunning},
		{"one ended, one runs", input(never, phase.Running, running("a"), exited("b", 1)), v1.PodRunning},
		{"all ended and will be restarted", input(always, phase.Running, exited("a", 0), exited("b", 1)), v1.PodRunning},
		{"all succeeded", input(onFailure, phase.Terminated, exited("a", 0), exited("b", 0)), v1.PodSucceeded},
		{"one failed and will be restarted", input(onFailure, phase.Running, exited("a", 0), exited("b", 1)), v1.PodRunning},
		{"one failed for good", input(never, phase.Terminated, exited("a", 0), exited("b", 1)), v1.PodFailed},
		{"stopped by its user, exit codes zero", input(always, phase.Terminated, exited("a", 0), exited("b", 0)), v1.PodSucceeded},
		{"stopped by its user, killed", input(always, phase.Terminated, exited("a", 137), exited("b", 0)), v1.PodFailed},
		{"stopped before all started", input(always, phase.Terminated, exited("a", 0)), v1.PodFailed},
		{"being stopped, still running", input(always, phase.Terminating, running("a"), exited("b", 0)), v1.PodRunning},
	} {
		if got := Of(c.in).Phase; got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAPodWhoseContainersComeBackIsNotOver(t *testing.T) {
	on42 := func(action v1.ContainerRestartRuleAction) []v1.ContainerRestartRule {
		return []v1.ContainerRestartRule{{Action: action, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{
			Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42},
		}}}
	}
	for _, c := range []struct {
		name   string
		change func(*Input)
		want   v1.PodPhase
	}{
		{"none comes back", func(*Input) {}, v1.PodFailed},
		{"one by its rule", func(in *Input) {
			in.Pod.Spec.Containers[0].RestartPolicyRules = on42(v1.ContainerRestartRuleActionRestart)
		}, v1.PodRunning},
		{"one by its policy", func(in *Input) {
			in.Pod.Spec.Containers[0].RestartPolicy = new(v1.ContainerRestartPolicyOnFailure)
		}, v1.PodRunning},
		{"one that was killed for it", func(in *Input) { in.Restarts = map[string]bool{"id-b": true} }, v1.PodRunning},
		{"all of them", func(in *Input) {
			in.Pod.Spec.Containers[0].RestartPolicyRules = on42(v1.ContainerRestartRuleActionRestartAllContainers)
		}, v1.PodRunning},
		{"all of them, but the pod ends", func(in *Input) {
			in.Pod.Spec.Containers[0].RestartPolicyRules = on42(v1.ContainerRestartRuleActionRestartAllContainers)
			in.Phase = phase.Terminated
		}, v1.PodFailed},
	} {
		in := input(v1.RestartPolicyNever, phase.Running, exited("a", 42), exited("b", 0))
		c.change(&in)
		if got := Of(in).Phase; got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestAFailedInitContainerFailsThePodUnlessItsRulesStartItAgain(t *testing.T) {
	in := input(v1.RestartPolicyNever, phase.Running, exited("i", 42))
	in.Pod.Spec.InitContainers = []v1.Container{{Name: "i"}}
	if got := Of(in).Phase; got != v1.PodFailed {
		t.Errorf("without a rule: %s", got)
	}
	in.Pod.Spec.InitContainers[0].RestartPolicy = new(v1.ContainerRestartPolicyOnFailure)
	if got := Of(in).Phase; got != v1.PodPending {
		t.Errorf("with a policy of its own: %s", got)
	}
}

func TestAllContainersRestarting(t *testing.T) {
	in := input(v1.RestartPolicyNever, phase.Running, exited("a", 42), running("b"))
	in.Pod.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{
		Action: v1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{
			Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42},
		},
	}}
	s := Of(in)
	c := find(s.Conditions, v1.AllContainersRestarting)
	if c == nil || c.Status != v1.ConditionTrue || c.Reason != "RestartAllContainersStarted" {
		t.Errorf("while the others are killed: %+v", c)
	}
	a := s.ContainerStatuses[0]
	if a.State.Waiting == nil || a.State.Waiting.Reason != "RestartingAllContainers" || a.LastTerminationState.Terminated == nil || a.LastTerminationState.Terminated.ExitCode != 42 {
		t.Errorf("the container that ended: %+v", a)
	}
	again := running("a")
	again.ID, again.Attempt, again.Round = "id-a1", 1, 1
	in.Observed.Containers = []observed.Container{again, exited("a", 42), exited("b", 137)}
	in.Previous = &s
	s = Of(in)
	if c := find(s.Conditions, v1.AllContainersRestarting); c == nil || c.Status != v1.ConditionFalse {
		t.Errorf("once the first is there again: %+v", c)
	}
	if b := s.ContainerStatuses[1]; b.State.Waiting == nil || b.LastTerminationState.Terminated == nil || s.Phase != v1.PodRunning {
		t.Errorf("pod %s, the container that waits for its turn: %+v", s.Phase, b)
	}
}

func TestATerminalPhaseStays(t *testing.T) {
	in := input(v1.RestartPolicyNever, phase.Terminated)
	in.Previous.Phase = v1.PodSucceeded
	in.Previous.ContainerStatuses = []v1.ContainerStatus{
		{Name: "a", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{Reason: "Completed"}}},
		{Name: "b", State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}},
	}
	s := Of(in)
	if s.Phase != v1.PodSucceeded {
		t.Errorf("phase %s", s.Phase)
	}
	if got := s.ContainerStatuses[0].State.Terminated; got == nil || got.Reason != "Completed" {
		t.Errorf("what is known of a is lost: %+v", s.ContainerStatuses[0].State)
	}
	if got := s.ContainerStatuses[1].State.Terminated; got == nil || got.Reason != "ContainerStatusUnknown" || got.ExitCode != 137 {
		t.Errorf("b was lost while it ran, its status says %+v", s.ContainerStatuses[1].State)
	}
}

func TestADeadlineFailsThePod(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Terminated, exited("a", 0), exited("b", 0))
	in.Failed = &plan.Waiting{Reason: "DeadlineExceeded", Message: "too long"}
	if s := Of(in); s.Phase != v1.PodFailed || s.Reason != "DeadlineExceeded" || s.Message != "too long" {
		t.Errorf("phase %s, reason %q, message %q", s.Phase, s.Reason, s.Message)
	}
}

func TestInitContainersHoldThePodPending(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("i"))
	in.Pod.Spec.InitContainers = []v1.Container{{Name: "i"}}
	s := Of(in)
	if s.Phase != v1.PodPending {
		t.Errorf("phase %s", s.Phase)
	}
	if got := s.ContainerStatuses[0].State.Waiting.Reason; got != "PodInitializing" {
		t.Errorf("a waits for %q", got)
	}
	want := v1.PodCondition{Type: v1.PodInitialized, Status: v1.ConditionFalse, Reason: "ContainersNotInitialized",
		Message: "containers with incomplete status: [i]", LastTransitionTime: metav1.Time{Time: now}}
	if diff := cmp.Diff(want, *find(s.Conditions, v1.PodInitialized)); diff != "" {
		t.Errorf("Initialized (-want +got):\n%s", diff)
	}
}

func TestACrashLoopShowsTheLastEnd(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, exited("a", 3), running("b"))
	in.Waiting = map[string]plan.Waiting{"a": {Reason: "CrashLoopBackOff", Message: "back-off 10s"}}
	in.TerminationMessages = map[string]string{"id-a": "bye"}
	c := Of(in).ContainerStatuses[0]
	if c.State.Waiting == nil || c.State.Waiting.Reason != "CrashLoopBackOff" {
		t.Fatalf("state %+v", c.State)
	}
	if last := c.LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Message != "bye" {
		t.Errorf("last state %+v", last)
	}
}

func TestReadinessFollowsTheProbeOfThisVeryContainer(t *testing.T) {
	for _, c := range []struct {
		name   string
		result map[string]probe.Result
		want   bool
	}{
		{"no result yet", nil, false},
		{"result of an earlier container", map[string]probe.Result{"a": {ContainerID: "old", Started: true, Ready: true}}, false},
		{"not ready", map[string]probe.Result{"a": {ContainerID: "id-a", Started: true}}, false},
		{"ready", map[string]probe.Result{"a": {ContainerID: "id-a", Started: true, Ready: true}}, true},
	} {
		in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"))
		in.Pod.Spec.Containers[0].ReadinessProbe = &v1.Probe{}
		in.Probes = c.result
		s := Of(in)
		if got := s.ContainerStatuses[0].Ready; got != c.want {
			t.Errorf("%s: container ready %v", c.name, got)
		}
		if got := find(s.Conditions, v1.PodReady).Status == v1.ConditionTrue; got != c.want {
			t.Errorf("%s: pod ready %v", c.name, got)
		}
	}
}

func TestReadinessGatesAreKeptAndCounted(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"))
	in.Pod.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "example.com/gate"}}
	ready := func() *v1.PodCondition { s := Of(in); return find(s.Conditions, v1.PodReady) }
	if c := ready(); c.Status != v1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("without the gate's condition: %+v", c)
	}
	in.Previous.Conditions = []v1.PodCondition{{Type: "example.com/gate", Status: v1.ConditionTrue}}
	if c := ready(); c.Status != v1.ConditionTrue {
		t.Errorf("with the gate open: %+v", c)
	}
	s := Of(in)
	if find(s.Conditions, "example.com/gate") == nil {
		t.Error("the gate's condition is dropped")
	}
}

func TestTransitionTimesMoveOnlyWithTheStatus(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Running, running("a"), running("b"))
	first := Of(in)
	in.Previous, in.Now = &first, now.Add(time.Hour)
	second := Of(in)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("an hour without change changed the status (-first +second):\n%s", diff)
	}
	in.Observed.Containers[0].State = observed.Exited
	in.Previous = &second
	third := Of(in)
	if got := find(third.Conditions, v1.PodReady).LastTransitionTime; !got.Time.Equal(in.Now) {
		t.Errorf("Ready changed at %v", got)
	}
	if got := find(third.Conditions, v1.PodScheduled).LastTransitionTime; !got.Time.Equal(now) {
		t.Errorf("PodScheduled changed at %v", got)
	}
}

func TestRestartCountsSurviveAReboot(t *testing.T) {
	in := input(v1.RestartPolicyAlways, phase.Starting)
	in.Previous.ContainerStatuses = []v1.ContainerStatus{{Name: "a", RestartCount: 7}}
	if got := Of(in).ContainerStatuses[0].RestartCount; got != 7 {
		t.Errorf("restart count %d, want 7", got)
	}
}
