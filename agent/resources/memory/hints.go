package memory

import (
	"errors"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/resources/numa"
)

var (
	errNoDefault  = errors.New("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available")
	errNoExtended = errors.New("[memorymanager] failed to find NUMA nodes to extend the current topology hint")
	errDefault    = errors.New("[memorymanager] failed to find the default preferred hint")
	errExtended   = errors.New("[memorymanager] failed to find the extended preferred hint")
	errViolates   = errors.New("[memorymanager] preferred hint violates NUMA node allocation")
)

// hints are the groups of nodes that can give what is wanted (kubelet:
// cm/memorymanager/policy_static.go, calculateHints). All resources go to the
// same group, so that each has the same hints.
func (d *Draft) hints(wanted []Block) []numa.Hint {
	hints := []numa.Hint{}
	least := len(d.state.Nodes)
	numa.EachSubset(slices.Collect(maps.Keys(d.state.Nodes)), func(m numa.Mask) {
		if !d.covers(m, wanted, func(t *Table) uint64 { return t.Allocatable }, nil) {
			return
		}
		least = min(least, m.Count())
		// A node that is used in a group is used in that group only.
		nodes := m.Nodes()
		if len(nodes) == 1 && len(d.state.Nodes[nodes[0]].Cells) > 1 {
			return
		}
		if d.violates(m) || !d.covers(m, wanted, func(t *Table) uint64 { return t.Free }, d.reuse[m]) {
			return
		}
		hints = append(hints, numa.Hint{Nodes: m})
	})
	for i := range hints {
		hints[i].Preferred = hints[i].Nodes.Count() == least
	}
	return hints
}

// covers says whether the nodes together have what is wanted.
func (d *Draft) covers(m numa.Mask, wanted []Block, amount func(*Table) uint64, besides map[v1.ResourceName]uint64) bool {
	for _, b := range wanted {
		sum := besides[b.Type]
		for _, id := range m.Nodes() {
			if n := d.state.Nodes[id]; n != nil && n.MemoryMap[b.Type] != nil {
				sum += amount(n.MemoryMap[b.Type])
			}
		}
		if sum < b.Size {
			return false
		}
	}
	return true
}

// violates says whether a node of the group is in use in another group.
func (d *Draft) violates(m numa.Mask) bool {
	nodes := m.Nodes()
	if len(nodes) == 1 {
		return false
	}
	return slices.ContainsFunc(nodes, func(id int) bool {
		n := d.state.Nodes[id]
		return n != nil && n.NumberOfAssignments > 0 && (len(n.Cells) == 1 || !sameGroup(n.Cells, nodes))
	})
}

// place decides on the group, starting from what the topology manager said.
func (d *Draft) place(hint numa.Hint, wanted []Block) (numa.Mask, error) {
	if hint.Nodes == 0 {
		first, found := bestOf(d.hints(wanted))
		if !found {
			return 0, errNoDefault
		}
		if !first.Preferred && hint.Preferred {
			return 0, errDefault
		}
		hint = first
	}
	if !d.covers(hint.Nodes, wanted, func(t *Table) uint64 { return t.Free }, d.reuse[hint.Nodes]) {
		wider, found := bestOf(slices.DeleteFunc(d.hints(wanted), func(h numa.Hint) bool { return h.Nodes&hint.Nodes != hint.Nodes }))
		if !found {
			return 0, errNoExtended
		}
		if !wider.Preferred && hint.Preferred {
			return 0, errExtended
		}
		hint = wider
	}
	if d.violates(hint.Nodes) {
		return 0, errViolates
	}
	return hint.Nodes, nil
}

func bestOf(hints []numa.Hint) (numa.Hint, bool) {
	if len(hints) == 0 {
		return numa.Hint{}, false
	}
	best := hints[0]
	for _, h := range hints[1:] {
		if h.Preferred != best.Preferred && h.Preferred || h.Preferred == best.Preferred && h.Nodes.NarrowerThan(best.Nodes) {
			best = h
		}
	}
	return best, true
}
