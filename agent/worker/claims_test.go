package worker_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
)

// withClaim is a pod that runs to its end and uses a ResourceClaim.
func withClaim(name string) *v1.Pod {
	p := pod(name, "a")
	p.Spec.RestartPolicy = v1.RestartPolicyNever
	claim := "gpu"
	p.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "gpu", ResourceClaimName: &claim}}
	return p
}

func TestNoSandboxIsMadeBeforeClaimsArePrepared(t *testing.T) {
	inWorld(t, func(w *world) {
		w.claims.Set(errors.New("prepare dynamic resources: DRA driver gpu.example.com is not registered"))
		k := w.start(withClaim("job"))
		w.wantCalls(0)
		w.wantEvent("FailedPrepareDynamicResources", "Failed to prepare dynamic resources: prepare dynamic resources: DRA driver gpu.example.com is not registered")
		if got := waitingReason(k, "a"); got != "ContainerCreating" {
			t.Errorf("the container waits with %s", got)
		}
		w.claims.Set(nil)
		time.Sleep(2 * time.Second)
		w.wantRunning("a")
		if got := w.runtime.CDIDevices("a"); !slices.Equal(got, []string{"example.com/gpu=job"}) {
			t.Errorf("the container has the devices %q", got)
		}
	})
}

func TestAPodIsNotOverBeforeItsClaimsAreUnprepared(t *testing.T) {
	inWorld(t, func(w *world) {
		k := w.start(withClaim("job"))
		w.claims.Set(errors.New("unprepare dynamic resources: DRA driver gpu.example.com is not registered"))
		w.runtime.Exit("a", 0)
		time.Sleep(time.Minute)
		w.wantRunning()
		if got := phaseOf(k); got != v1.PodRunning || k.Settled() {
			t.Errorf("the pod is %s, settled: %v, although it holds a claim", got, k.Settled())
		}
		w.wantEvent("FailedUnprepareDynamicResources", "is not registered")
		w.restartAgent()
		k = w.worker("job")
		if got := phaseOf(k); got != v1.PodRunning {
			t.Errorf("the pod is %s after a restart although it holds a claim", got)
		}
		w.claims.Set(nil)
		time.Sleep(time.Minute)
		if got := phaseOf(k); got != v1.PodSucceeded || !k.Settled() {
			t.Errorf("the pod is %s, settled: %v, with its claim unprepared", got, k.Settled())
		}
		k.Forget()
		w.wantNothingLeft(k)
	})
}

func TestAPodThatNeverStartedLetsGoOfItsClaims(t *testing.T) {
	inWorld(t, func(w *world) {
		w.claims.Set(errors.New("NodePrepareResources: no power"))
		k := w.start(withClaim("job"))
		w.claims.Set(nil)
		k.Forget()
		synctest.Wait()
		if w.claims.Holds("job-uid") {
			t.Error("claims are held")
		}
		w.wantNothingLeft(k)
	})
}
