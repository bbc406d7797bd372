package plan

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/probe"
)

func pod(policy v1.RestartPolicy, names ...string) *v1.Pod {
	p := &v1.Pod{Spec: v1.PodSpec{RestartPolicy: policy}}
	for _, n := range names {
		p.Spec.Containers = append(p.Spec.Containers, v1.Container{Name: n})
	}
	return p
}

func withInit(p *v1.Pod, names ...string) *v1.Pod {
	always := v1.ContainerRestartPolicyAlways
	for _, n := range names {
		c := v1.Container{Name: n}
		if strings.HasPrefix(n, "side") {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	return p
}

func want(t *testing.T, w *world, steps ...string) {
	t.Helper()
	if diff := cmp.Diff(steps, w.did()); diff != "" {
		t.Errorf("actions (-want +got):\n%s", diff)
	}
}

func TestContainersStartInTheirOrder(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a", "b")).settle()
	want(t, w, "create sandbox, attempt 0", "start container a, attempt 0", "start container b, attempt 0")
}

func TestInitContainersRunOneByOneBeforeTheOthers(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyAlways, "a"), "i1", "i2")).settle()
	want(t, w, "create sandbox, attempt 0", "start container i1, attempt 0")
	w.exit("i1", 0, time.Second).settle()
	want(t, w, "start container i2, attempt 0")
	w.exit("i2", 0, time.Second).settle()
	want(t, w, "start container a, attempt 0")
	w.exit("a", 1, time.Second).settle()
	want(t, w, "start container a, attempt 1") // the init containers do not run again
}

func TestAFailedInitContainerIsRetriedWithBackOff(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyAlways, "a"), "i1")).settle()
	w.exit("i1", 1, time.Second).settle().exit("i1", 1, time.Second).settle()
	want(t, w, "create sandbox, attempt 0", "start container i1, attempt 0", "start container i1, attempt 1")
	if got := w.waiting["i1"].Reason; got != "CrashLoopBackOff" {
		t.Errorf("waiting reason %q, want CrashLoopBackOff", got)
	}
	w.wait(10 * time.Second).settle()
	want(t, w, "start container i1, attempt 2", "remove container i1 c2")
}

func TestAFailedInitContainerOfANeverPodEndsIt(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyNever, "a"), "i1")).settle().exit("i1", 1, time.Second).settle()
	if !w.complete {
		t.Error("the pod is not complete")
	}
	want(t, w, "create sandbox, attempt 0", "start container i1, attempt 0")
}

func TestASidecarStartsBeforeAndIsKeptBesideTheOthers(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyNever, "a"), "side", "i1")).settle()
	want(t, w, "create sandbox, attempt 0", "start container side, attempt 0", "start container i1, attempt 0")
	w.exit("side", 0, time.Second).settle() // even while the next init container is at work
	want(t, w, "start container side, attempt 1")
	w.exit("i1", 0, time.Second).settle()
	want(t, w, "start container a, attempt 0")
	w.exit("side", 1, 20*time.Second).settle()
	w.wait(10 * time.Second).settle()
	want(t, w, "start container side, attempt 2", "remove container side c2")
	if w.exit("a", 0, time.Second).settle(); !w.complete {
		t.Error("a running sidecar keeps a pod from completing")
	}
}

func TestASidecarWithAStartupProbeHoldsItsSuccessorsUp(t *testing.T) {
	p := withInit(pod(v1.RestartPolicyAlways, "a"), "side")
	p.Spec.InitContainers[0].StartupProbe = &v1.Probe{}
	w := newWorld(p).settle()
	want(t, w, "create sandbox, attempt 0", "start container side, attempt 0")
	w.probes["side"] = probe.Result{ContainerID: w.obs.Container("side").ID, Started: true, Alive: true}
	w.settle()
	want(t, w, "start container a, attempt 0")
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		policy   v1.RestartPolicy
		code     int32
		restarts bool
	}{
		{v1.RestartPolicyAlways, 0, true},
		{v1.RestartPolicyAlways, 1, true},
		{v1.RestartPolicyOnFailure, 0, false},
		{v1.RestartPolicyOnFailure, 1, true},
		{v1.RestartPolicyNever, 0, false},
		{v1.RestartPolicyNever, 1, false},
	} {
		w := newWorld(pod(c.policy, "a")).settle().exit("a", c.code, time.Second).settle()
		if got := len(w.running()) == 1; got != c.restarts {
			t.Errorf("%s, exit code %d: restarted %v, want %v", c.policy, c.code, got, c.restarts)
		}
		if w.complete == c.restarts {
			t.Errorf("%s, exit code %d: complete %v", c.policy, c.code, w.complete)
		}
	}
}

func TestAClockThatIsSetBackDoesNotHoldUpARestart(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle().exit("a", 1, time.Second).settle().exit("a", 1, time.Second).settle()
	if len(w.running()) != 0 || w.waiting["a"].Reason != CrashLoopBackOff {
		t.Fatalf("it does not wait: %v", w.waiting)
	}
	w.now = w.now.Add(-time.Hour)
	if w.settle(); len(w.running()) != 1 {
		t.Errorf("it waits until %s, it is %s", w.wake, w.now)
	}
}

func TestAContainersOwnRulesOverruleThePods(t *testing.T) {
	p := pod(v1.RestartPolicyNever, "a")
	p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{
		Action:    v1.ContainerRestartRuleActionRestart,
		ExitCodes: &v1.ContainerRestartRuleOnExitCodes{Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	w := newWorld(p).settle().exit("a", 42, time.Second).settle()
	if len(w.running()) != 1 {
		t.Error("exit code 42 did not restart the container")
	}
	if w.exit("a", 1, time.Second).settle(); !w.complete {
		t.Error("exit code 1 did not end the pod")
	}
}

func TestBackOffDoublesFromTenSecondsToFiveMinutesAndIsForgotten(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.exit("a", 1, time.Second).settle()
	if len(w.running()) != 1 {
		t.Fatal("the first restart is not immediate")
	}
	for _, delay := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		delay *= time.Second
		w.exit("a", 1, time.Second).settle()
		if !w.wake.Equal(w.now.Add(delay)) {
			t.Fatalf("restart after %v, want %v", w.wake.Sub(w.now), delay)
		}
		if !strings.HasPrefix(w.waiting["a"].Message, "back-off "+delay.String()+" restarting failed container=a pod=web_default(uid)") {
			t.Errorf("message %q", w.waiting["a"].Message)
		}
		w.wait(delay - time.Second).settle()
		if len(w.running()) != 0 {
			t.Fatalf("restarted before the back-off of %v was over", delay)
		}
		w.wait(time.Second).settle()
		if len(w.running()) != 1 {
			t.Fatalf("not restarted after the back-off of %v", delay)
		}
	}
	w.exit("a", 1, 11*time.Minute).settle()
	if len(w.running()) != 1 {
		t.Fatal("a run of eleven minutes does not reset the back-off")
	}
}

func TestAFailedLivenessProbeKillsAndRestarts(t *testing.T) {
	grace := int64(3)
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.did()
	w.probes["a"] = probe.Result{ContainerID: w.obs.Container("a").ID, Kind: "Liveness", Grace: &grace}
	w.settle()
	want(t, w, "kill container a: Liveness", "start container a, attempt 1")
}

func TestAProbeResultOfAnotherContainerCountsForNothing(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.did()
	w.probes["a"] = probe.Result{ContainerID: "of the run before"}
	w.settle()
	want(t, w)
}

func TestALivenessKillRestartsAnOnFailurePodThatExitsWithZero(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyOnFailure, "a")).settle()
	id := w.obs.Container("a").ID
	w.probes["a"] = probe.Result{ContainerID: id, Kind: "Liveness"}
	d := Run(Input{Pod: w.pod, Observed: &w.obs, Probes: w.probes, Backoff: KubeletBackoff, Now: w.now})
	w.restarts[d.Actions[0].(KillContainer).ID] = true
	w.exit("a", 0, time.Second).settle()
	if len(w.running()) != 1 {
		t.Error("the container was not started again")
	}
}

func TestALostSandboxIsReplacedAndInitContainersRunAgain(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyAlways, "a"), "i1")).settle().exit("i1", 0, time.Second).settle()
	w.did()
	w.obs.Sandboxes[0].Ready = false
	w.settle()
	want(t, w, "stop sandbox s1", "create sandbox, attempt 1", "start container i1, attempt 1")
	w.exit("i1", 0, time.Second).settle()
	want(t, w, "start container a, attempt 1")
}

func TestALostSandboxEndsANeverPod(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyNever, "a")).settle()
	w.did()
	w.obs.Sandboxes[0].Ready = false
	if w.settle(); !w.complete {
		t.Error("the pod runs again")
	}
	want(t, w, "stop sandbox s1")
}

func TestALostSandboxAfterSuccessIsNotReplaced(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyOnFailure, "a")).settle().exit("a", 0, time.Second)
	w.did()
	w.obs.Sandboxes[0].Ready = false
	if w.settle(); !w.complete {
		t.Error("the pod runs again")
	}
	want(t, w)
}

func TestAContainerThatWasOnlyCreatedIsMadeAgain(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.did()
	w.obs.Containers[0].State = observed.Created
	w.settle()
	want(t, w, "remove container a c2", "start container a, attempt 0")
}

func TestOneDeadContainerIsKeptForItsLogs(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	for range 4 {
		w.exit("a", 1, time.Hour).settle()
	}
	if n := len(w.obs.Containers); n != 2 {
		t.Errorf("%d containers are kept, want the running one and one dead", n)
	}
}

func TestAFailureIsNotRetriedBeforeItsTime(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a", "b"))
	retry := w.now.Add(time.Minute)
	w.failures["a"] = Failure{Waiting: Waiting{"ErrImagePull", "no such image"}, RetryAt: retry}
	w.settle()
	want(t, w, "create sandbox, attempt 0", "start container b, attempt 0") // b is not held up
	if w.waiting["a"].Reason != "ErrImagePull" || !w.wake.Equal(retry) {
		t.Errorf("waiting %v until %v", w.waiting["a"], w.wake)
	}
	w.wait(time.Minute).settle()
	want(t, w, "start container a, attempt 0")
}

func TestAPodFailureHoldsEverythingUp(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a"))
	w.failures[PodFailure] = Failure{RetryAt: w.now.Add(time.Second)}
	w.settle()
	want(t, w)
}

func TestAttemptsGoOnAfterAReboot(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a"))
	w.past["a"] = Past{Attempt: 7}
	w.settle()
	want(t, w, "create sandbox, attempt 0", "start container a, attempt 8")
}

func TestStopKillsSidecarsLastAndInReverse(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyAlways, "a", "b"), "side1", "side2")).settle()
	d := Stop(w.pod, &w.obs, "Killing", "")
	order := map[string][]string{}
	for _, a := range d.Actions {
		k := a.(KillContainer)
		for _, id := range k.After {
			order[k.Name] = append(order[k.Name], w.obs.ByID(id).Name)
		}
		slices.Sort(order[k.Name])
	}
	if diff := cmp.Diff(map[string][]string{"side2": {"a", "b"}, "side1": {"a", "b", "side2"}}, order); diff != "" {
		t.Errorf("who waits for whom (-want +got):\n%s", diff)
	}
}

func TestStopEndsWithTheSandbox(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.did()
	for !Stop(w.pod, &w.obs, "Killing", "").Complete {
		w.do(Stop(w.pod, &w.obs, "Killing", "").Actions[0])
	}
	want(t, w, "kill container a: Killing", "stop sandbox s1")
	for !Remove(&w.obs).Complete {
		w.do(Remove(&w.obs).Actions[0])
	}
	want(t, w, "remove container a c2", "remove sandbox s1")
}

func TestANeverPodThatRanBeforeTheBootHasHadItsRun(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyNever, "a"))
	w.past["a"] = Past{}
	if w.settle(); !w.complete {
		t.Error("the pod runs again")
	}
	want(t, w)
}

func TestAContainerThatSucceededBeforeTheBootIsNotRunAgain(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyOnFailure, "a", "b", "c"))
	w.past["a"], w.past["b"], w.past["c"] = Past{Exited: true}, Past{Exited: true, ExitCode: 1}, Past{Attempt: 2}
	w.settle()
	want(t, w, "create sandbox, attempt 0", "start container b, attempt 1", "start container c, attempt 3")
}

func TestALeftoverThatCannotBeRemovedHoldsNothingUp(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	for range 2 {
		w.exit("a", 1, time.Hour)
		w.failures[PruneFailure] = Failure{RetryAt: w.now.Add(2 * time.Hour)}
		w.settle()
	}
	if len(w.running()) != 1 || len(w.obs.Containers) != 3 {
		t.Errorf("%v run of %d", w.running(), len(w.obs.Containers))
	}
	if w.wait(3 * time.Hour).settle(); len(w.obs.Containers) != 2 {
		t.Errorf("%d containers are kept, want the running one and one dead", len(w.obs.Containers))
	}
}

func TestAsManyDeadContainersStayAsAreToAndOneInAnyCase(t *testing.T) {
	for keep, want := range map[int]int{-1: 2, 0: 2, 1: 2, 3: 4} {
		w := newWorld(pod(v1.RestartPolicyAlways, "a", "b"))
		w.keepDead = keep
		w.settle()
		for range 6 {
			w.exit("a", 1, time.Hour).settle()
		}
		if got := len(w.obs.Containers) - 1; got != want { // b never ended
			t.Errorf("keep %d: %d containers are there, want %d", keep, got, want)
		}
	}
}

func TestALostSandboxIsStoppedBeforeItsSuccessorIsMade(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.exit("a", 1, time.Second)
	w.obs.Sandboxes[0].Ready = false
	d := Run(Input{Pod: w.pod, Observed: &w.obs, Backoff: KubeletBackoff, Now: w.now})
	if diff := cmp.Diff([]Action{CreateSandbox{Attempt: 1, Replaces: "s1"}}, d.Actions); diff != "" {
		t.Error(diff)
	}
}

func TestTheSandboxThatStillRunsSomethingIsTheOneThatIsStopped(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.do(CreateSandbox{Attempt: 1})
	w.did()
	w.obs.Sandboxes[0].Ready, w.obs.Sandboxes[1].Ready = false, false
	w.settle()
	if log := w.did(); len(log) == 0 || log[0] != "stop sandbox s1" {
		t.Errorf("did %q", log)
	}
}

func TestRestartsBeyondABackoffLimitEndThePodAsFailed(t *testing.T) {
	for _, c := range []struct {
		name  string
		limit int64
		pod   *v1.Pod
		exits []string // containers that fail, one after the other, each restarted if it may be
		fails bool
	}{
		{"no restart, limit 0", 0, pod(v1.RestartPolicyOnFailure, "a"), nil, false},
		{"the first, limit 0", 0, pod(v1.RestartPolicyOnFailure, "a"), []string{"a"}, true},
		{"as many as the limit", 2, pod(v1.RestartPolicyOnFailure, "a"), []string{"a", "a"}, false},
		{"one more than the limit", 2, pod(v1.RestartPolicyOnFailure, "a"), []string{"a", "a", "a"}, true},
		{"of two containers together", 2, pod(v1.RestartPolicyOnFailure, "a", "b"), []string{"a", "b", "a"}, true},
		{"of an init container", 1, withInit(pod(v1.RestartPolicyOnFailure, "a"), "i1"), []string{"i1", "i1"}, true},
		{"a Never pod has none", 0, pod(v1.RestartPolicyNever, "a"), []string{"a"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(c.pod)
			w.limit = &c.limit
			w.settle()
			for _, name := range c.exits {
				w.exit(name, 1, time.Hour).settle()
			}
			if got := w.failed != nil; got != c.fails {
				t.Fatalf("failed %v, want %v", got, c.fails)
			}
			if c.fails && *w.failed != (Waiting{"BackoffLimitExceeded", "Job has reached the specified backoff limit"}) {
				t.Errorf("%+v", *w.failed)
			}
		})
	}
}

func TestABackoffLimitDoesNotWaitForTheBackOff(t *testing.T) {
	limit := int64(1)
	w := newWorld(pod(v1.RestartPolicyOnFailure, "a"))
	w.limit = &limit
	w.settle().exit("a", 1, time.Second).settle()
	if w.exit("a", 1, time.Second).settle(); w.failed == nil {
		t.Error("a pod whose restarts are used up waits for its back-off")
	}
}

func TestRestartsOfBeforeTheBootCountForTheLimit(t *testing.T) {
	limit := int64(3)
	w := newWorld(pod(v1.RestartPolicyOnFailure, "a"))
	w.limit, w.past["a"] = &limit, Past{Attempt: 3, Exited: true, ExitCode: 1}
	if w.settle(); w.failed == nil {
		t.Error("the fourth restart is not refused")
	}
}
