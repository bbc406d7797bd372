package cpus

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/machine"
)

// level is a part of the machine that a CPU belongs to.
type level func(machine.CPU) int

func coreOf(c machine.CPU) int   { return c.Core }
func cacheOf(c machine.CPU) int  { return c.UncoreCache }
func socketOf(c machine.CPU) int { return c.Socket }
func nodeOf(c machine.CPU) int   { return c.Node }

// picker takes CPUs from a free set one part of the machine at a time. It gives
// the kubelet's answers (cm/cpumanager/cpu_assignment.go): the emptier parts stay
// whole, and equals go by number.
type picker struct {
	machine *machine.Info
	free    []machine.CPU // ascending
	need    int
	taken   []int
	// spread takes CPUs of different cores rather than whole cores.
	spread bool
	// nodesOutside: a NUMA node holds sockets, and not a socket nodes.
	nodesOutside bool
}

func newPicker(m *machine.Info, available cpuset.CPUSet, need int, spread bool) *picker {
	p := &picker{machine: m, need: need, spread: spread, nodesOutside: m.Sockets() >= m.CPUNodes()}
	for _, c := range m.CPUs {
		if available.Contains(c.ID) {
			p.free = append(p.free, c)
		}
	}
	return p
}

func (p *picker) done() bool { return p.need < 1 }

func (p *picker) result() cpuset.CPUSet { return cpuset.New(p.taken...) }

func (p *picker) take(ids []int) {
	p.taken = append(p.taken, ids...)
	p.free = slices.DeleteFunc(p.free, func(c machine.CPU) bool { return slices.Contains(ids, c.ID) })
	p.need -= len(ids)
}

// members are the CPUs of one part.
func members(cpus []machine.CPU, of level, id int) []int {
	var ids []int
	for _, c := range cpus {
		if of(c) == id {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// order lists the parts that have free CPUs and lie in the parent, those with
// fewer free CPUs first.
func (p *picker) order(of level, inParent func(machine.CPU) bool) []int {
	free := map[int]int{}
	var ids []int
	for _, c := range p.free {
		if free[of(c)]++; inParent == nil || inParent(c) {
			ids = append(ids, of(c))
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	slices.SortStableFunc(ids, func(a, b int) int { return cmp.Compare(free[a], free[b]) })
	return ids
}

// within orders parts by their parents first.
func (p *picker) within(of level, parents []int, parent level) []int {
	var ids []int
	for _, id := range parents {
		ids = append(ids, p.order(of, func(c machine.CPU) bool { return parent(c) == id })...)
	}
	return ids
}

func (p *picker) nodes() []int {
	if p.nodesOutside {
		return p.order(nodeOf, nil)
	}
	return p.within(nodeOf, p.sockets(), socketOf)
}

func (p *picker) sockets() []int {
	if p.nodesOutside {
		return p.within(socketOf, p.nodes(), nodeOf)
	}
	return p.order(socketOf, nil)
}

func (p *picker) cores() []int {
	if p.nodesOutside {
		return p.within(coreOf, p.sockets(), socketOf)
	}
	return p.within(coreOf, p.nodes(), nodeOf)
}

func (p *picker) caches() []int { return p.within(cacheOf, p.nodes(), nodeOf) }

// cpus lists single CPUs: those of partly used cores first or, spread, by
// number in each socket.
func (p *picker) cpus() []int {
	parents, parent := p.cores(), level(coreOf)
	if p.spread {
		parents, parent = p.sockets(), socketOf
	}
	var ids []int
	for _, id := range parents {
		ids = append(ids, members(p.free, parent, id)...)
	}
	return ids
}

// takeWhole takes parts that are free altogether while as many CPUs are needed.
func (p *picker) takeWhole(of level, ids []int) {
	for _, id := range ids {
		all := members(p.machine.CPUs, of, id)
		if len(members(p.free, of, id)) == len(all) && p.need >= len(all) {
			p.take(all)
		}
	}
}

// takeCaches takes whole last-level caches, and the rest from one of them.
func (p *picker) takeCaches() {
	size := len(p.machine.CPUs) / p.machine.UncoreCaches()
	for _, id := range p.caches() {
		if p.need >= size {
			p.takeWhole(cacheOf, p.caches())
		}
		if !p.done() {
			p.takeFromCache(id)
		}
		if p.done() {
			return
		}
	}
}

func (p *picker) takeFromCache(id int) {
	perCore := len(p.machine.CPUs) / p.machine.Cores()
	cores := (p.need + perCore - 1) / perCore
	var inCache []int
	for _, c := range p.free {
		if c.UncoreCache == id {
			inCache = append(inCache, c.Core)
		}
	}
	slices.Sort(inCache)
	inCache = slices.Compact(inCache)
	inCache = inCache[:min(cores, len(inCache))]
	var ids []int
	for _, c := range p.free {
		if slices.Contains(inCache, c.Core) {
			ids = append(ids, c.ID)
		}
	}
	if p.need%2 != 0 && perCore > 1 && len(ids) > p.need {
		ids = ids[:len(ids)-1]
	}
	if len(ids) == p.need {
		p.take(ids)
	}
}

func (p *picker) takeSingle() {
	for _, id := range p.cpus() {
		p.take([]int{id})
		if p.done() {
			return
		}
	}
}

// pack takes count CPUs from as few parts of the machine as possible.
func pack(m *machine.Info, available cpuset.CPUSet, count int, spread, alignCaches bool) (cpuset.CPUSet, error) {
	p := newPicker(m, available, count, spread)
	if p.need > len(p.free) {
		return cpuset.CPUSet{}, notEnough(count, len(p.free))
	}
	outer, inner := level(socketOf), level(nodeOf)
	outerIDs, innerIDs := p.sockets, p.nodes
	if p.nodesOutside {
		outer, inner, outerIDs, innerIDs = inner, outer, innerIDs, outerIDs
	}
	for _, step := range []func(){
		func() { p.takeWhole(outer, outerIDs()) },
		func() { p.takeWhole(inner, innerIDs()) },
		func() {
			if alignCaches {
				p.takeCaches()
			}
		},
		func() {
			if !spread {
				p.takeWhole(coreOf, p.cores())
			}
		},
		p.takeSingle,
	} {
		if p.done() {
			break
		}
		step()
	}
	return p.result(), nil
}

func notEnough(requested, available int) error {
	return fmt.Errorf("not enough cpus available to satisfy request: requested=%d, available=%d", requested, available)
}
