package plan

import "github.com/berth-io/berth/agent/observed"

// leastDead is how many dead containers of a name are kept beside the newest
// whatever is set: one, for `logs --previous` (pkg/kubelet, minDeadContainerInPod).
const leastDead = 1

// stopOlder stops sandboxes that a newer one has replaced, so that nothing of
// the pod runs twice.
func stopOlder(in Input, d *Decision) {
	for _, s := range in.Observed.Sandboxes[1:] {
		if s.Ready {
			d.act(StopSandbox{ID: s.ID})
		}
	}
}

// prune removes what a running pod has left behind: dead containers beyond
// those to keep, and older sandboxes once they are empty.
func prune(in Input, d *Decision) {
	if f, ok := in.Failures[PruneFailure]; ok && f.RetryAt.After(in.Now) {
		d.wakeAt(f.RetryAt)
		return
	}
	keep := max(in.KeepDead, leastDead)
	seen := map[string]int{}
	left := map[string]int{}
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		seen[c.Name]++
		if seen[c.Name] > 1+keep && c.State == observed.Exited {
			d.act(RemoveContainer{ID: c.ID, Name: c.Name})
			continue
		}
		left[c.SandboxID]++
	}
	for _, s := range in.Observed.Sandboxes[1:] {
		if !s.Ready && left[s.ID] == 0 {
			d.act(RemoveSandbox{ID: s.ID})
		}
	}
}
