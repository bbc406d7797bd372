package plan

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
)

// FuzzAPodIsNeverRunTwice lets containers and sandboxes end in any order and
// checks, after each decision, what must hold whatever happens.
func FuzzAPodIsNeverRunTwice(f *testing.F) {
	f.Add(byte(0), []byte{0, 1, 2, 3, 4, 5})
	f.Add(byte(1), []byte{9, 9, 9, 200, 4, 17, 3})
	f.Add(byte(2), []byte{1, 128, 1, 64, 2})
	f.Add(byte(3), []byte{0, 1, 2, 16, 17, 0, 1, 2, 18, 3})
	f.Fuzz(func(t *testing.T, policy byte, events []byte) {
		policies := []v1.RestartPolicy{v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever}
		w := newWorld(withInit(pod(policies[policy%3], "a", "b"), "i1", "side", "i2"))
		if policy >= 3 {
			for _, c := range []*v1.Container{&w.pod.Spec.Containers[0], &w.pod.Spec.InitContainers[1], &w.pod.Spec.InitContainers[2]} {
				restartsAll(c)
				c.RestartPolicyRules[0].ExitCodes.Values = []int32{1}
			}
		}
		for _, e := range events {
			w.settle()
			check(t, w)
			if w.complete {
				return
			}
			w.wait(time.Duration(e) * time.Second)
			switch {
			case e >= 250 && len(w.obs.Sandboxes) > 0:
				w.obs.Sandboxes[0].Ready = false
			case len(w.obs.Containers) > 0:
				w.exitAt(int(e)%len(w.obs.Containers), int32(e>>4)%2)
			}
		}
		w.settle()
		check(t, w)
	})
}

func check(t *testing.T, w *world) {
	t.Helper()
	seen := map[string]bool{}
	for _, name := range w.running() {
		if seen[name] {
			t.Fatalf("two containers named %s run at once", name)
		}
		seen[name] = true
	}
	sandbox := w.obs.ReadySandbox()
	for i := range w.obs.Containers {
		c := &w.obs.Containers[i]
		if c.State == observed.Running && (sandbox == nil || c.SandboxID != sandbox.ID) {
			t.Fatalf("container %s runs in a sandbox that is not the pod's", c.ID)
		}
		if c.State == observed.Running && c.Round < Round(w.pod, &w.obs) {
			t.Fatalf("container %s of round %d runs on", c.ID, c.Round)
		}
		if (c.Name == "a" || c.Name == "b") && sandbox != nil && c.SandboxID == sandbox.ID && c.Round == Round(w.pod, &w.obs) && !initDone(w, sandbox.ID, c.Round) {
			t.Fatalf("container %s was started before the init containers were done", c.Name)
		}
	}
	if len(w.obs.Containers) > 5*(1+leastDead)+1 {
		t.Fatalf("%d containers are kept", len(w.obs.Containers))
	}
}

// initDone tells whether both plain init containers succeeded in that sandbox and round.
func initDone(w *world, sandbox string, round uint32) bool {
	done := 0
	for _, name := range []string{"i1", "i2"} {
		for i := range w.obs.Containers {
			c := &w.obs.Containers[i]
			if c.Name == name && c.SandboxID == sandbox && c.Round == round && c.State == observed.Exited && c.ExitCode == 0 {
				done++
				break
			}
		}
	}
	return done == 2
}
