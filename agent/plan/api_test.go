package plan

import (
	"strconv"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/podspec"
)

// hashed gives running containers the hashes they would have been made with.
func hashed(w *world) *world {
	for i := range w.obs.Containers {
		for j := range w.pod.Spec.Containers {
			if c := &w.pod.Spec.Containers[j]; c.Name == w.obs.Containers[i].Name {
				w.obs.Containers[i].Hash = strconv.FormatUint(podspec.Hash(c), 16)
			}
		}
	}
	return w
}

func debug(name, target string) v1.EphemeralContainer {
	return v1.EphemeralContainer{EphemeralContainerCommon: v1.EphemeralContainerCommon{Name: name}, TargetContainerName: target}
}

func TestAnEphemeralContainerStartsOnceAndHoldsNothingUp(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyNever, "a"), "i1"))
	w.pod.Spec.EphemeralContainers = []v1.EphemeralContainer{debug("debug", "")}
	w.settle() // not even an init container
	want(t, w, "create sandbox, attempt 0", "start container i1, attempt 0", "start container debug, attempt 0")
	w.exit("debug", 1, time.Second).settle()
	want(t, w)
	w.exit("i1", 0, time.Second).settle()
	want(t, w, "start container a, attempt 0")
	if w.exit("a", 0, time.Second).settle(); !w.complete {
		t.Error("the pod is not complete")
	}
}

func TestAnEphemeralContainerWaitsForItsTarget(t *testing.T) {
	w := newWorld(withInit(pod(v1.RestartPolicyAlways, "a"), "i1"))
	w.pod.Spec.EphemeralContainers = []v1.EphemeralContainer{debug("debug", "a")}
	w.settle()
	if got := w.waiting["debug"].Message; got != "unable to find target container a" {
		t.Errorf("waiting for %q", got)
	}
	w.exit("i1", 0, time.Second).settle()
	if got := w.running(); len(got) != 2 {
		t.Errorf("%q run", got)
	}
}

func TestAnEphemeralContainerOfBeforeTheBootIsNotStartedAgain(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a"))
	w.pod.Spec.EphemeralContainers = []v1.EphemeralContainer{debug("debug", "")}
	w.past["debug"] = Past{}
	want(t, w.settle(), "create sandbox, attempt 0", "start container a, attempt 0")
}

func TestAContainerThatIsAnotherNowIsRestartedWhateverThePolicy(t *testing.T) {
	for _, policy := range []v1.RestartPolicy{v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever} {
		w := hashed(newWorld(pod(policy, "a", "b")).settle())
		w.did()
		w.settle()
		want(t, w) // the same
		w.pod.Spec.Containers[0].Image = "other"
		w.settle()
		want(t, w, "kill container a: Killing", "start container a, attempt 1")
	}
}

func TestAContainerThatIsAnotherNowDoesNotWaitForTheBackOffOfTheOld(t *testing.T) {
	w := newWorld(pod(v1.RestartPolicyAlways, "a")).settle()
	w.exit("a", 1, time.Second).settle()
	hashed(w).exit("a", 1, time.Second).settle()
	if got := w.waiting["a"].Reason; got != "CrashLoopBackOff" {
		t.Fatalf("waiting for %q", got)
	}
	w.pod.Spec.Containers[0].Image = "other"
	if w.settle(); len(w.running()) != 1 {
		t.Error("it waits")
	}
}
