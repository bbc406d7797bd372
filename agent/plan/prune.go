package plan

import "github.com/berth-io/berth/agent/observed"

// keepDead is how many dead containers of a name are kept beside the newest:
// one, for `logs --previous`, as the kubelet does.
const keepDead = 1

// prune removes what a running pod has left behind: dead containers beyond
// keepDead, and older sandboxes once they are empty.
func prune(in Input, d *Decision) {
	seen := map[string]int{}
	left := map[string]int{}
	for i := range in.Observed.Containers {
		c := &in.Observed.Containers[i]
		seen[c.Name]++
		if seen[c.Name] > 1+keepDead && c.State == observed.Exited {
			d.act(RemoveContainer{ID: c.ID, Name: c.Name})
			continue
		}
		left[c.SandboxID]++
	}
	for _, s := range in.Observed.Sandboxes[1:] {
		switch {
		case s.Ready:
			d.act(StopSandbox{ID: s.ID})
		case left[s.ID] == 0:
			d.act(RemoveSandbox{ID: s.ID})
		}
	}
}
