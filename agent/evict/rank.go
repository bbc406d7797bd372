package evict

import (
	"cmp"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-io/berth/agent/disruption"
	"github.com/berth-io/berth/agent/usage"
)

// Usage of pods, by UID. A pod without numbers goes first: nobody knows what
// it takes.
type Usage map[types.UID]usage.Pod

// rank orders pods, who ends first first: those that use more than they asked
// for, then by priority, then by how much more they use. Processes are asked
// for by nobody: there it is priority, then their number.
func (p Policy) rank(s Signal, pods []*v1.Pod, used Usage) []*v1.Pod {
	what := meanings[s].resource
	type candidate struct {
		pod   *v1.Pod
		known bool
		over  int64 // what it uses above its request
	}
	var candidates []candidate
	for _, pod := range pods {
		u, known := used[pod.UID]
		candidates = append(candidates, candidate{pod, known, p.consumption(s, u) - disruption.Request(pod, what)})
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(index(a.known), index(b.known)),
			first(what != pids && a.over > 0, what != pids && b.over > 0),
			cmp.Compare(disruption.Priority(a.pod), disruption.Priority(b.pod)),
			cmp.Compare(b.over, a.over),
		)
	})
	var ranked []*v1.Pod
	for _, c := range candidates {
		ranked = append(ranked, c.pod)
	}
	return ranked
}

// first puts true before false.
func first(a, b bool) int { return cmp.Compare(index(b), index(a)) }

// consumption is what of the starved resource a pod uses, on a disk only what
// is on the file system in question.
func (p Policy) consumption(s Signal, u usage.Pod) int64 {
	switch meanings[s].resource {
	case v1.ResourceMemory:
		return int64(u.WorkingSet)
	case pids:
		return int64(u.Processes)
	}
	var d usage.Disk
	add := func(part part, size *usage.Disk) {
		if size != nil && slices.Contains(measured(s, p.layout), part) {
			d = d.Plus(*size)
		}
	}
	for _, c := range u.Containers {
		add(rootfs, c.Rootfs)
		add(logs, c.Logs)
	}
	for _, v := range u.Volumes {
		if !v.Memory {
			add(volumes, &v.Disk)
		}
	}
	if meanings[s].resource == inodes {
		return int64(d.Inodes)
	}
	return int64(d.Bytes)
}
