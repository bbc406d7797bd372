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
		split, found := bestSplit(free, nodes, size, count, group)
		if !found {
			continue
		}
		for node, n := range split {
			ids, err := pack(m, cpuset.New(members(p.free, nodeOf, node)...), n, spread, false)
			if err != nil {
				return cpuset.CPUSet{}, err
			}
			p.take(ids.List())
		}
		if p.need != 0 {
			return cpuset.CPUSet{}, errors.New("accounting error, the distribution is not what was asked for")
		}
		return p.result(), nil
	}
	return pack(m, available, count, spread, false)
}

// nodesNeeded are the least and the most NUMA nodes that can be worth a try.
func nodesNeeded(m *machine.Info, count, group, available int) (least, most int) {
	groups := (len(m.CPUs)-1)/group + 1
	perNode := (groups-1)/m.CPUNodes() + 1
	needed := (count-1)/group + 1
	return (needed-1)/perNode + 1, min(needed, available)
}

// bestSplit says how many CPUs to take from each of size nodes, so that what is
// left free is the most balanced.
func bestSplit(free map[int]int, nodes []int, size, count, group int) (map[int]int, bool) {
	var best map[int]int
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
		split := map[int]int{}
		for _, node := range combo {
			left[node] -= each
			split[node] = each
		}
		extra, balance, possible := bestRemainder(left, combo, count-each*size, group)
		if !possible || balance >= bestBalance {
			return
		}
		for node, n := range extra {
			split[node] += n
		}
		best, bestBalance = split, balance
	})
	return best, best != nil
}

// bestRemainder hands out what did not divide evenly, over as many nodes as
// leave the most balanced machine.
func bestRemainder(left map[int]int, combo []int, remainder, group int) (best map[int]int, balance float64, possible bool) {
	if remainder == 0 {
		return nil, deviation(left), true
	}
	var able []int
	for _, node := range combo {
		if left[node] >= group {
			able = append(able, node)
		}
	}
	balance = math.MaxFloat64
	for size := len(able); size >= 1; size-- {
		eachChoice(able, size, func(subset []int) {
			after := maps.Clone(left)
			extra, rest := map[int]int{}, remainder
			for rest > 0 {
				before := rest
				for _, node := range subset {
					if rest > 0 && after[node] >= group {
						after[node] -= group
						extra[node] += group
						rest -= group
					}
				}
				if rest == before {
					return // the subset has no more whole groups
				}
			}
			if d := deviation(after); d < balance {
				best, balance = extra, d
			}
		})
	}
	return best, balance, best != nil
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
