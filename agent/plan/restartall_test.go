package plan

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

func on(action v1.ContainerRestartRuleAction, codes ...int32) v1.ContainerRestartRule {
	return v1.ContainerRestartRule{Action: action, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{
		Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: codes,
	}}
}

func TestOneContainerHasAllStartAnew(t *testing.T) {
	p := pod(v1.RestartPolicyNever, "a", "b")
	p.Spec.InitContainers = []v1.Container{{Name: "init"}}
	never := v1.ContainerRestartPolicyNever
	p.Spec.Containers[1].RestartPolicy = &never
	p.Spec.Containers[1].RestartPolicyRules = []v1.ContainerRestartRule{on(v1.ContainerRestartRuleActionRestartAllContainers, 42)}
	w := newWorld(p).settle().exit("init", 0, time.Second).settle()
	sandbox := w.obs.Sandbox().ID
	for n := range 2 {
		w.log = nil
		w.exit("b", 42, time.Second).settle().exit("init", 0, time.Second).settle()
		restarts := []string{"attempt 1", "attempt 2"}[n]
		want(t, w, "kill container a: RestartAllContainers", w.log[1], w.log[2], w.log[3],
			"start container init, "+restarts, "start container a, "+restarts, "start container b, "+restarts)
		if w.obs.Sandbox().ID != sandbox || len(w.obs.Containers) != 3 || w.complete {
			t.Fatalf("containers %+v, complete %v", w.obs.Containers, w.complete)
		}
	}
	if w.exit("b", 1, time.Second).settle(); w.complete || len(w.running()) != 1 {
		t.Errorf("another exit code did something: %v run", w.running())
	}
	if w.exit("a", 0, time.Second).settle(); !w.complete {
		t.Error("the pod does not end")
	}
}

func TestWhoAskedForItIsRemovedLast(t *testing.T) {
	p := pod(v1.RestartPolicyAlways, "a", "b", "c")
	p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{
		on(v1.ContainerRestartRuleActionRestart, 1), on(v1.ContainerRestartRuleActionRestartAllContainers, 1, 42),
	}
	w := newWorld(p).settle()
	id := w.obs.Container("a").ID
	if w.exit("a", 1, time.Second).settle(); len(w.running()) != 3 || w.obs.ByID(id) == nil {
		t.Fatalf("the first rule that matches does not count: %v", w.log)
	}
	w.log = nil
	id = w.obs.Container("a").ID
	w.wait(time.Hour).exit("a", 42, time.Second).settle()
	last := -1
	for i, done := range w.log {
		if done == "remove container a "+id {
			last = i
		}
	}
	// b and c are killed and removed, and the run of a before this one.
	if last != 5 || len(w.running()) != 3 {
		t.Errorf("done %q", w.log)
	}
}

func TestAllStartAnewInANewSandboxWhereTheOldIsGone(t *testing.T) {
	p := pod(v1.RestartPolicyNever, "a")
	p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{on(v1.ContainerRestartRuleActionRestartAllContainers, 42)}
	w := newWorld(p).settle().exit("a", 42, time.Second)
	w.obs.Sandboxes[0].Ready = false
	if w.settle(); w.complete || len(w.running()) != 1 {
		t.Errorf("complete %v, done %q", w.complete, w.log)
	}
}
