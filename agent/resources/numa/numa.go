// Package numa decides on which NUMA nodes a container's CPUs, memory and
// devices are to be: the kubelet's topology manager. It is pure: those who hand
// out a resource say with hints where they could, and the best common place
// comes out.
//
//	numa.go    sets of nodes, hints
//	align.go   policies: hints in, the best hint out
//
// Called by agent/resources; the hints come from its cpus, memory and devices.
package numa

import (
	"math/bits"
	"slices"
)

// Mask is a set of NUMA nodes, one bit a node. Zero stands for no preference.
type Mask uint64

// MaxNodes is how many nodes a Mask can tell apart; node IDs are below it.
const MaxNodes = 64

// MaskOf is the set of these nodes, each of which is in 0..MaxNodes-1.
func MaskOf(nodes ...int) Mask {
	var m Mask
	for _, n := range nodes {
		m |= 1 << n
	}
	return m
}

// Nodes lists the set in ascending order.
func (m Mask) Nodes() []int {
	nodes := make([]int, 0, m.Count())
	for rest := uint64(m); rest != 0; rest &= rest - 1 {
		nodes = append(nodes, bits.TrailingZeros64(rest))
	}
	return nodes
}

// Count is how many nodes the set has.
func (m Mask) Count() int { return bits.OnesCount64(uint64(m)) }

// Has says whether the node is in the set. A negative ID never is.
func (m Mask) Has(node int) bool { return node >= 0 && node < MaxNodes && m&(1<<node) != 0 }

// NarrowerThan orders sets: fewer nodes first, then lower ones.
func (m Mask) NarrowerThan(other Mask) bool {
	if m.Count() != other.Count() {
		return m.Count() < other.Count()
	}
	return m < other
}

// EachSubset visits every non-empty subset of the nodes, smaller ones first.
func EachSubset(nodes []int, visit func(Mask)) {
	nodes = slices.Sorted(slices.Values(nodes))
	var pick func(rest []int, have Mask, missing int)
	pick = func(rest []int, have Mask, missing int) {
		if missing == 0 {
			visit(have)
			return
		}
		for i := range rest {
			pick(rest[i+1:], have|1<<rest[i], missing-1)
		}
	}
	for size := 1; size <= len(nodes); size++ {
		pick(nodes, 0, size)
	}
}

// Hint is one place where a resource could be handed out.
type Hint struct {
	// Nodes is zero where the place does not matter.
	Nodes Mask
	// Preferred: it cannot be done with fewer nodes, were the machine empty.
	Preferred bool
}

// Hints are the places by resource. A nil slice means that the resource has no
// preference, an empty one that it can be had nowhere as it is asked for.
type Hints map[string][]Hint
