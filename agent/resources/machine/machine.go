// Package machine knows what the kernel says of the machine in /sys and /proc:
// CPUs and how they share cores, caches, sockets and NUMA nodes, memory, huge
// pages, swap, process IDs. It is read once, at start.
//
//	machine.go   what there is
//	read.go      reads it
//	capacity.go  the node's capacity and what of it pods may use: pure
package machine

import (
	"slices"

	"k8s.io/utils/cpuset"
)

// Info is what the machine has.
type Info struct {
	CPUs  []CPU  // online ones, in ascending order
	Nodes []Node // in ascending order; at least one
	// MemoryBytes and SwapBytes are the machine's.
	MemoryBytes, SwapBytes int64
	// HugePages is the number of pages of each size in bytes.
	HugePages map[int64]int64
	// MaxPIDs is how many tasks the kernel allows; zero where it does not say.
	MaxPIDs int64
}

// CPU is one logical CPU.
type CPU struct {
	ID     int
	Node   int // NUMA node
	Socket int
	// Core is the lowest CPU that shares this one's core.
	Core int
	// UncoreCache is the last-level cache where a NUMA node has several of
	// them, and the socket elsewhere.
	UncoreCache int
}

// Node is one NUMA node.
type Node struct {
	ID          int
	MemoryBytes int64
	HugePages   map[int64]int64 // pages of each size in bytes
	// Distances to other nodes, by their ID; nil where the kernel does not say.
	Distances []uint64
}

// NodeIDs are the NUMA nodes in ascending order.
func (i *Info) NodeIDs() []int {
	ids := make([]int, len(i.Nodes))
	for n := range i.Nodes {
		ids[n] = i.Nodes[n].ID
	}
	return ids
}

// Distances are those of all nodes, by their ID.
func (i *Info) Distances() map[int][]uint64 {
	distances := make(map[int][]uint64, len(i.Nodes))
	for _, n := range i.Nodes {
		distances[n.ID] = n.Distances
	}
	return distances
}

// Set are the CPUs for which keep is true; nil keeps all.
func (i *Info) Set(keep func(CPU) bool) cpuset.CPUSet {
	var ids []int
	for _, c := range i.CPUs {
		if keep == nil || keep(c) {
			ids = append(ids, c.ID)
		}
	}
	return cpuset.New(ids...)
}

// count is how many different values the CPUs have.
func (i *Info) count(value func(CPU) int) int {
	values := make([]int, len(i.CPUs))
	for n, c := range i.CPUs {
		values[n] = value(c)
	}
	slices.Sort(values)
	return len(slices.Compact(values))
}

// Cores is the number of physical cores.
func (i *Info) Cores() int { return i.count(func(c CPU) int { return c.Core }) }

// Sockets is the number of sockets.
func (i *Info) Sockets() int { return i.count(func(c CPU) int { return c.Socket }) }

// CPUNodes is the number of NUMA nodes that have CPUs.
func (i *Info) CPUNodes() int { return i.count(func(c CPU) int { return c.Node }) }

// UncoreCaches is the number of last-level caches.
func (i *Info) UncoreCaches() int { return i.count(func(c CPU) int { return c.UncoreCache }) }
