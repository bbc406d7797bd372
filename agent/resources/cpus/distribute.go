package cpus

import (
	"errors"
	"maps"
	"math"
	"slices"

	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/machine"
)

// distribute takes count CPUs from as few NUMA nodes as can give them evenly,
// in groups of the given size (kubelet: cm/cpumanager/cpu_assignment.go,
// takeByTopologyNUMADistributed, KEP-2902). What does not divide evenly goes to
// the nodes that are left the most balanced. It packs where no nodes can.
func distribute(m *machine.Info, available cpuset.CPUSet, count, group int, spread bool) (cpuset.CPUSet, error) {
	if count%group != 0 {
		return pack(m, available, count, spread, false)
	}
	p := newPicker(m, available, count, spread)
	if p.done() {
		return p.result(), nil
	}
	if p.need > len(p.free) {
		return cpuset.CPUSet{}, notEnough(count, len(p.free))
	}
	nodes := p.nodes()
	free := map[int]int{}
	for _, c := range p.free {
		free[c.Node]++
	}
	least, most := nodesNeeded(m, count, group, len(nodes))
	for size := least; size <= most; size++ {
		if split := bestSplit(free, nodes, size, count, group); split != nil {
			return p.takeSplit(split, count, group)
		}
	}
	return pack(m, available, count, spread, false)
}

// split is how CPUs are taken from nodes: evenly from all, then what does not
// divide evenly from some.
type split struct{ nodes, remainder []int }

// takeSplit packs what it takes from each node.
func (p *picker) takeSplit(s *split, count, group int) (cpuset.CPUSet, error) {
	take := func(node, n int) error {
		ids, err := pack(p.machine, cpuset.New(members(p.free, nodeOf, node)...), n, p.spread, false)
		p.take(ids.List())
		return err
	}
	for _, node := range s.nodes {
		if err := take(node, count/len(s.nodes)/group*group); err != nil {
			return cpuset.CPUSet{}, err
		}
	}
	for !p.done() {
		before := p.need
		for _, node := range s.remainder {
			if p.done() || len(members(p.free, nodeOf, node)) < group {
				continue
			}
			if err := take(node, group); err != nil {
				return cpuset.CPUSet{}, err
			}
		}
		if p.need == before {
			return cpuset.CPUSet{}, errors.New("accounting error, not enough CPUs allocated")
		}
	}
	return p.result(), nil
}

// nodesNeeded are the least and the most NUMA nodes that can be worth a try.
func nodesNeeded(m *machine.Info, count, group, available int) (least, most int) {
	groups := (len(m.CPUs)-1)/group + 1
	perNode := (groups-1)/m.CPUNodes() + 1
	needed := (count-1)/group + 1
	return (needed-1)/perNode + 1, min(needed, available)
}

// bestSplit chooses size of the nodes, so that what is left free is the most
// balanced; nil where no choice can give the CPUs evenly.
func bestSplit(free map[int]int, nodes []int, size, count, group int) *split {
	var best *split
	bestBalance := math.MaxFloat64
	each := count / size / group * group
	eachChoice(nodes, size, func(combo []int) {
		groups, total := 0, 0
		for _, node := range combo {
			groups += free[node] / group
			total += free[node]
			if free[node] < each {
				return
			}
		}
		if bestBalance == 0 || total < count || groups*group < count {
			return
		}
		left := maps.Clone(free)
		for _, node := range combo {
			left[node] -= each
		}
		if remainder, balance := bestRemainder(left, combo, count-each*size, group); balance < bestBalance {
			best, bestBalance = &split{combo, remainder}, balance
		}
	})
	return best
}

// bestRemainder chooses who gives what did not divide evenly: as many of the
// nodes as leave the most balanced machine. Without a choice the balance is the
// largest number.
func bestRemainder(left map[int]int, combo []int, remainder, group int) (best []int, balance float64) {
	if remainder == 0 {
		return nil, deviation(left)
	}
	able := slices.DeleteFunc(slices.Clone(combo), func(node int) bool { return left[node] < group })
	balance = math.MaxFloat64
	for size := len(able); size >= 1; size-- {
		eachChoice(able, size, func(subset []int) {
			after := maps.Clone(left)
			for rest := remainder; rest > 0; {
				before := rest
				for _, node := range subset {
					if rest > 0 && after[node] >= group {
						after[node] -= group
						rest -= group
					}
				}
				if rest == before {
					return // the subset has no more whole groups
				}
			}
			if d := deviation(after); d < balance {
				best, balance = subset, d
			}
		})
	}
	return best, balance
}

// eachChoice visits the ways to choose size of the nodes, in their order.
func eachChoice(nodes []int, size int, visit func([]int)) {
	var choose func(rest, have []int)
	choose = func(rest, have []int) {
		if len(have) == size {
			visit(have)
			return
		}
		for i := range rest {
			choose(rest[i+1:], append(slices.Clip(have), rest[i]))
		}
	}
	choose(nodes, nil)
}

// deviation is the standard deviation, to three places so that rounding does
// not decide.
func deviation(values map[int]int) float64 {
	round := func(x float64) float64 { return math.Round(x*1000) / 1000 }
	var sum, squares float64
	for _, v := range values {
		sum += float64(v)
	}
	mean := round(sum / float64(len(values)))
	for _, v := range values {
		squares += (float64(v) - mean) * (float64(v) - mean)
	}
	return round(math.Sqrt(squares / float64(len(values))))
}
