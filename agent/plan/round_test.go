package plan

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
)

// restartsAll gives a container the rule that exit code 42 restarts all.
func restartsAll(c *v1.Container) {
	c.RestartPolicyRules = append(c.RestartPolicyRules, v1.ContainerRestartRule{
		Action:    v1.ContainerRestartRuleActionRestartAllContainers,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	})
}

// roundPod has an init container, a sidecar and two containers, of which a has the rule.
func roundPod(policy v1.RestartPolicy) *v1.Pod {
	p := withInit(pod(policy, "a", "b"), "i1", "side")
	restartsAll(&p.Spec.Containers[0])
	return p
}

func TestAContainerThatRestartsAllEndsTheRoundAndThePodBeginsAnew(t *testing.T) {
	for _, policy := range []v1.RestartPolicy{v1.RestartPolicyNever, v1.RestartPolicyOnFailure, v1.RestartPolicyAlways} {
		w := newWorld(roundPod(policy)).settle().exit("i1", 0, time.Second).settle()
		w.did()
		w.exit("a", 42, time.Second).settle()
		want(t, w, "kill container b: RestartAllContainers", "kill container side: RestartAllContainers", "start container i1, attempt 1")
		w.exit("i1", 0, time.Second).settle()
		want(t, w, "start container side, attempt 1", "start container a, attempt 1", "start container b, attempt 1")
		w.exit("a", 42, time.Second).settle() // and once more, without a back-off
		want(t, w, "kill container b: RestartAllContainers", "kill container side: RestartAllContainers",
			"start container i1, attempt 2", "remove container i1 c2")
		if w.complete {
			t.Errorf("%s: the pod is complete", policy)
		}
	}
}

func TestAnotherExitCodeRestartsOneContainerAlone(t *testing.T) {
	w := newWorld(roundPod(v1.RestartPolicyAlways)).settle().exit("i1", 0, time.Second).settle()
	w.did()
	w.exit("a", 1, time.Second).settle()
	want(t, w, "start container a, attempt 1")
}

func TestTheFirstRuleThatMatchesCounts(t *testing.T) {
	p := pod(v1.RestartPolicyNever, "a", "b")
	p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{
		Action:    v1.ContainerRestartRuleActionRestart,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpNotIn, Values: []int32{0}},
	}}
	restartsAll(&p.Spec.Containers[0])
	w := newWorld(p).settle()
	w.did()
	w.exit("a", 42, time.Second).settle()
	want(t, w, "start container a, attempt 1")
}

func TestAnInitContainerThatRestartsAllBeginsWithTheFirst(t *testing.T) {
	p := withInit(pod(v1.RestartPolicyNever, "a"), "side", "i1", "i2")
	restartsAll(&p.Spec.InitContainers[2])
	w := newWorld(p).settle().exit("i1", 0, time.Second).settle()
	w.did()
	w.exit("i2", 42, time.Second).settle()
	want(t, w, "kill container side: RestartAllContainers", "start container side, attempt 1", "start container i1, attempt 1")
	w.exit("i1", 0, time.Second).settle().exit("i2", 0, time.Second).settle()
	want(t, w, "start container i2, attempt 1", "start container a, attempt 0")
}

func TestContainersKilledForARoundDoNotEndTheNext(t *testing.T) {
	p := pod(v1.RestartPolicyNever, "a", "b")
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].RestartPolicyRules = []v1.ContainerRestartRule{{
			Action:    v1.ContainerRestartRuleActionRestartAllContainers,
			ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpNotIn, Values: []int32{0}},
		}}
	}
	w := newWorld(p).settle()
	w.did()
	w.exit("a", 1, time.Second).settle() // b ends with 143 when it is killed, which its rule matches
	want(t, w, "kill container b: RestartAllContainers", "start container a, attempt 1", "start container b, attempt 1")
}

func TestAnAgentThatDiedBetweenTwoRoundsGoesOn(t *testing.T) {
	w := newWorld(roundPod(v1.RestartPolicyNever)).settle().exit("i1", 0, time.Second).settle()
	w.exit("a", 42, time.Second)
	w.settle()
	clear(w.restarts) // what the agent knew of the containers that it killed
	w.obs.Container("i1").State = observed.Created
	w.did()
	w.settle()
	want(t, w, "remove container i1 c6", "start container i1, attempt 1")
	if w.complete {
		t.Error("the pod is complete")
	}
}
