package memory

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/resources/numa"
)

// Draft is a change to a state that is not yet in force. It is for one pod:
// what its init containers have had, later containers of the same Draft reuse.
type Draft struct {
	state State
	reuse map[numa.Mask]map[v1.ResourceName]uint64
}

// Draft starts a change. The state that it starts from stays as it is.
func (p *Policy) Draft(s State) *Draft {
	return &Draft{state: s.clone(), reuse: map[numa.Mask]map[v1.ResourceName]uint64{}}
}

// State is what the state would become.
func (d *Draft) State() State { return d.state.clone() }

// Hints says where the container's memory could come from. What it has already
// stays where it is.
func (d *Draft) Hints(pod *v1.Pod, container *v1.Container) numa.Hints {
	if !managed(pod) {
		return nil
	}
	wanted := requested(container)
	if have, found := d.state.Assigned[string(pod.UID)][container.Name]; found {
		return sameHints(have, wanted)
	}
	return spread(wanted, d.hints(wanted))
}

// PodHints says where the memory of all the pod's containers could come from.
func (d *Draft) PodHints(pod *v1.Pod) numa.Hints {
	wanted := requestedByPod(pod)
	if !managed(pod) || len(wanted) == 0 {
		return nil
	}
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if have, found := d.state.Assigned[string(pod.UID)][containers[i].Name]; found {
				return at(wanted, have)
			}
		}
	}
	return spread(wanted, d.hints(wanted))
}

func spread(wanted []Block, hints []numa.Hint) numa.Hints {
	all := numa.Hints{}
	for _, b := range wanted {
		all[string(b.Type)] = hints
	}
	return all
}

// sameHints is where the blocks are. Where they are not what is wanted, there is
// no preference: they are kept all the same.
func sameHints(have, wanted []Block) numa.Hints {
	all := numa.Hints{}
	for _, w := range wanted {
		i := slices.IndexFunc(have, func(h Block) bool { return h.Type == w.Type && h.Size == w.Size })
		if i < 0 || len(have) != len(wanted) {
			return nil
		}
		all[string(w.Type)] = []numa.Hint{{Nodes: numa.MaskOf(have[i].NUMAAffinity...), Preferred: true}}
	}
	return all
}

// at keeps a pod's memory where the first of its containers has it.
func at(wanted, have []Block) numa.Hints {
	all := numa.Hints{}
	for _, w := range wanted {
		all[string(w.Type)] = nil
		for _, h := range have {
			if h.Type == w.Type {
				all[string(w.Type)] = []numa.Hint{{Nodes: numa.MaskOf(h.NUMAAffinity...), Preferred: true}}
			}
		}
	}
	return all
}

// Pins tells whether Allocate has memory to look for: the container is to have
// some to itself, and has none yet.
func (d *Draft) Pins(pod *v1.Pod, container *v1.Container) bool {
	_, has := d.state.Assigned[string(pod.UID)][container.Name]
	return !has && managed(pod) && len(requested(container)) > 0
}

// Allocate gives the container its memory, by the hint where it names nodes. A
// container that has some keeps it.
func (d *Draft) Allocate(pod *v1.Pod, container *v1.Container, hint numa.Hint) error {
	if !managed(pod) {
		return nil
	}
	uid := string(pod.UID)
	if have, found := d.state.Assigned[uid][container.Name]; found {
		d.reused(pod, container.Name, have)
		return nil
	}
	blocks := requested(container)
	if len(blocks) == 0 {
		return nil
	}
	nodes, err := d.place(hint, blocks)
	if err != nil {
		return err
	}
	for i := range blocks {
		b := &blocks[i]
		b.NUMAAffinity = nodes.Nodes()
		d.state.reserve(b.NUMAAffinity, b.Type, b.Size-min(b.Size, d.reuse[nodes][b.Type]))
	}
	d.reused(pod, container.Name, blocks)
	if d.state.Assigned[uid] == nil {
		d.state.Assigned[uid] = map[string][]Block{}
	}
	d.state.Assigned[uid][container.Name] = blocks
	d.shrinkInit(pod, container.Name, blocks)
	return nil
}

// reused remembers what an init container leaves for those after it.
func (d *Draft) reused(pod *v1.Pod, container string, blocks []Block) {
	for _, b := range blocks {
		m := numa.MaskOf(b.NUMAAffinity...)
		if d.reuse[m] == nil {
			d.reuse[m] = map[v1.ResourceName]uint64{}
		}
		if left := d.reuse[m][b.Type]; isInit(pod, container) {
			d.reuse[m][b.Type] = max(left, b.Size)
		} else {
			d.reuse[m][b.Type] = left - min(left, b.Size)
		}
	}
}

// shrinkInit books what a container reuses on its account alone: bytes that are
// on two accounts would be given back twice.
func (d *Draft) shrinkInit(pod *v1.Pod, container string, blocks []Block) {
	for _, b := range blocks {
		rest := b.Size
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			if c.Name == container {
				break
			}
			if isSidecar(c) {
				continue
			}
			for j := range d.state.Assigned[string(pod.UID)][c.Name] {
				have := &d.state.Assigned[string(pod.UID)][c.Name][j]
				if have.Type != b.Type || !sameGroup(have.NUMAAffinity, b.NUMAAffinity) {
					continue
				}
				moved := min(have.Size, rest)
				have.Size -= moved
				rest -= moved
			}
		}
	}
}

// Release takes a container's memory back.
func (d *Draft) Release(podUID, container string) {
	for _, b := range d.state.Assigned[podUID][container] {
		d.state.free(b)
	}
	delete(d.state.Assigned[podUID], container)
	if len(d.state.Assigned[podUID]) == 0 {
		delete(d.state.Assigned, podUID)
	}
}

// reserve books size bytes on a group of nodes, lower ones first.
func (s *State) reserve(group []int, name v1.ResourceName, size uint64) {
	for _, id := range group {
		n := s.Nodes[id]
		n.NumberOfAssignments++
		n.Cells = slices.Clone(group)
		t := n.MemoryMap[name]
		if t == nil {
			continue // nothing of it was wanted: what is wanted was covered
		}
		taken := min(t.Free, size)
		t.Free -= taken
		t.Reserved += taken
		size -= taken
	}
}

func (s *State) free(b Block) {
	size := b.Size
	for _, id := range b.NUMAAffinity {
		n := s.Nodes[id]
		if n.NumberOfAssignments--; n.NumberOfAssignments == 0 {
			n.Cells = []int{id}
		}
		t := n.MemoryMap[b.Type]
		if t == nil {
			continue
		}
		given := min(t.Reserved, size)
		t.Reserved -= given
		t.Free += given
		size -= given
	}
}
