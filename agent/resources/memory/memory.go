// Package memory decides on which NUMA nodes the memory and huge pages of a
// container of a guaranteed pod are: the kubelet's memory manager with its Static
// policy.
//
//	memory.go  what may be handed out, and the state
//	draft.go   hands out and takes back, on a copy of the state
//	hints.go   where a request could be met
//	state.go   the state's file
//
// Everything but Load and Save is pure. agent/resources calls it.
package memory

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/numa"
)

// The values of KubeletConfiguration.memoryManagerPolicy.
const (
	PolicyNone   = "None"
	PolicyStatic = "Static"
)

// Config is the memory manager's part of KubeletConfiguration.
type Config struct {
	Policy string // empty is None
	// Reserved is reservedMemory: what of each NUMA node no pod may have.
	Reserved map[int]v1.ResourceList
	// Total is what is reserved of the node altogether (machine.Resources.Reserved);
	// Reserved must add up to it.
	Total v1.ResourceList
}

// Table is the account of one resource on one node, in bytes.
type Table struct {
	TotalMemSize   uint64 `json:"total"`
	SystemReserved uint64 `json:"systemReserved"`
	Allocatable    uint64 `json:"allocatable"`
	Reserved       uint64 `json:"reserved"`
	Free           uint64 `json:"free"`
}

// Node is the account of one NUMA node. Its fields, and those of Table and Block,
// have the kubelet's names, which the file's checksum depends on.
type Node struct {
	// NumberOfAssignments is how many blocks lie on the node.
	NumberOfAssignments int `json:"numberOfAssignments"`
	// MemoryMap has memory and the sizes of huge pages.
	MemoryMap map[v1.ResourceName]*Table `json:"memoryMap"`
	// Cells is the group of nodes that the node is used with: itself alone, or
	// those that a block spans. Nodes in use are in one group only.
	Cells []int `json:"cells"`
}

// Block is memory that a container has on a group of nodes.
type Block struct {
	NUMAAffinity []int           `json:"numaAffinity"`
	Type         v1.ResourceName `json:"type"`
	Size         uint64          `json:"size"`
}

// State is who has which memory. A State that was handed out is not changed.
type State struct {
	Nodes map[int]*Node
	// Assigned are blocks by pod UID and container name.
	Assigned map[string]map[string][]Block
}

func (s State) clone() State {
	c := State{Nodes: make(map[int]*Node, len(s.Nodes)), Assigned: make(map[string]map[string][]Block, len(s.Assigned))}
	for id, n := range s.Nodes {
		copied := &Node{NumberOfAssignments: n.NumberOfAssignments, Cells: slices.Clone(n.Cells), MemoryMap: make(map[v1.ResourceName]*Table, len(n.MemoryMap))}
		for name, table := range n.MemoryMap {
			t := *table
			copied.MemoryMap[name] = &t
		}
		c.Nodes[id] = copied
	}
	for uid, containers := range s.Assigned {
		c.Assigned[uid] = make(map[string][]Block, len(containers))
		for name, blocks := range containers {
			c.Assigned[uid][name] = slices.Clone(blocks)
		}
	}
	return c
}

// NodesOf are the NUMA nodes of the container's memory, empty where it may be on
// any.
func (s State) NodesOf(podUID, container string) numa.Mask {
	var m numa.Mask
	for _, b := range s.Assigned[podUID][container] {
		m |= numa.MaskOf(b.NUMAAffinity...)
	}
	return m
}

// Policy is the Static policy on one machine.
type Policy struct{ empty State }

// NewStatic is for memoryManagerPolicy: Static.
func NewStatic(m *machine.Info, config Config) (*Policy, error) {
	if err := checkReserved(m, config); err != nil {
		return nil, fmt.Errorf("memoryManagerPolicy Static: %w", err)
	}
	p := &Policy{empty: State{}.clone()}
	for _, n := range m.Nodes {
		if n.ID < 0 || n.ID >= numa.MaxNodes {
			return nil, fmt.Errorf("memoryManagerPolicy Static: NUMA node %d: the number must be below %d", n.ID, numa.MaxNodes)
		}
		reserved := config.Reserved[n.ID]
		node := &Node{MemoryMap: map[v1.ResourceName]*Table{}, Cells: []int{n.ID}}
		var hugeBytes uint64
		for size, count := range n.HugePages {
			name, bytes := machine.HugePages(size), uint64(size*count)
			node.MemoryMap[name] = newTable(bytes, bytes, reserved[name])
			hugeBytes += bytes
		}
		total := uint64(n.MemoryBytes)
		node.MemoryMap[v1.ResourceMemory] = newTable(total, total-min(hugeBytes, total), reserved[v1.ResourceMemory])
		p.empty.Nodes[n.ID] = node
	}
	return p, nil
}

// newTable is the account of a resource of which nothing is handed out.
func newTable(total, usable uint64, reserved resource.Quantity) *Table {
	kept := uint64(reserved.Value())
	usable -= min(kept, usable)
	return &Table{TotalMemSize: total, SystemReserved: kept, Allocatable: usable, Free: usable}
}

// checkReserved holds reservedMemory against what is reserved of the node
// (kubelet: cm/memorymanager/memory_manager.go, validateReservedMemory).
func checkReserved(m *machine.Info, config Config) error {
	sum := v1.ResourceList{}
	for id, list := range config.Reserved {
		if !slices.Contains(m.NodeIDs(), id) {
			return fmt.Errorf("the reserved memory configuration references a NUMA node %d that does not exist on this machine", id)
		}
		for name, q := range list {
			if q.Sign() < 0 || q.Value() == math.MaxInt64 {
				return fmt.Errorf("reservedMemory of NUMA node %d: %s: %v is out of range", id, name, &q)
			}
			q.Add(sum[name])
			sum[name] = q
		}
	}
	names := slices.Collect(maps.Keys(sum))
	for name := range config.Total {
		if isMemory(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		have, want := sum[name], config.Total[name]
		if have.Cmp(want) != 0 {
			return fmt.Errorf("the total amount %q of type %q is not equal to the value %q determined by Node Allocatable feature", have.String(), name, want.String())
		}
	}
	if sum.Memory().Sign() <= 0 {
		return errors.New("you should specify the system reserved memory")
	}
	return nil
}

func isMemory(name v1.ResourceName) bool {
	return name == v1.ResourceMemory || strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix)
}

// Allocatable is what containers can have, a block for each resource of each
// node, in order.
func (p *Policy) Allocatable() []Block {
	var blocks []Block
	for _, id := range slices.Sorted(maps.Keys(p.empty.Nodes)) {
		tables := p.empty.Nodes[id].MemoryMap
		for _, name := range slices.Sorted(maps.Keys(tables)) {
			if tables[name].Allocatable > 0 {
				blocks = append(blocks, Block{NUMAAffinity: []int{id}, Type: name, Size: tables[name].Allocatable})
			}
		}
	}
	return blocks
}

// Start checks a state that was loaded against the machine and the
// configuration, or makes the first one from the zero State. A state that does
// not fit is an error: what runs was placed by it.
func (p *Policy) Start(s State) (State, error) {
	if len(s.Nodes) == 0 {
		if len(s.Assigned) != 0 {
			return State{}, errors.New("machine state can not be empty when it has memory assignments")
		}
		return p.empty.clone(), nil
	}
	expected := p.empty.clone()
	for uid, containers := range s.Assigned {
		for name, blocks := range containers {
			for _, b := range blocks {
				for _, id := range b.NUMAAffinity {
					if n := expected.Nodes[id]; n == nil || n.MemoryMap[b.Type] == nil {
						return State{}, fmt.Errorf("(pod: %s, container: %s) the memory assignment uses %s of NUMA node %d that does not exist", uid, name, b.Type, id)
					}
				}
				expected.reserve(b.NUMAAffinity, b.Type, b.Size)
			}
		}
	}
	if err := sameNodes(s.Nodes, expected.Nodes); err != nil {
		return State{}, fmt.Errorf("the expected machine state is different from the real one: %w", err)
	}
	return s, nil
}

// sameNodes compares sums over groups of nodes: which node of a group a block's
// bytes were taken from depends on the order.
func sameNodes(have, want map[int]*Node) error {
	if len(have) != len(want) {
		return fmt.Errorf("it has %d NUMA nodes, the machine has %d", len(have), len(want))
	}
	for id, h := range have {
		w := want[id]
		if h == nil || w == nil {
			return fmt.Errorf("NUMA node %d does not exist", id)
		}
		if h.NumberOfAssignments != w.NumberOfAssignments || !sameGroup(h.Cells, w.Cells) || len(h.MemoryMap) != len(w.MemoryMap) {
			return fmt.Errorf("NUMA node %d: %+v, should be %+v", id, *h, *w)
		}
		for name := range w.MemoryMap {
			ht, err := groupTable(have, h.Cells, id, name)
			if err != nil {
				return err
			}
			wt, err := groupTable(want, w.Cells, id, name)
			if err != nil {
				return err
			}
			if ht != wt {
				return fmt.Errorf("%s of NUMA node %d: %+v, should be %+v", name, id, ht, wt)
			}
		}
	}
	return nil
}

// groupTable is the node's table with what is free and reserved in its group.
func groupTable(nodes map[int]*Node, group []int, id int, name v1.ResourceName) (Table, error) {
	var sum Table
	for _, member := range append(slices.Clone(group), id) {
		if nodes[member] == nil || nodes[member].MemoryMap[name] == nil {
			return Table{}, fmt.Errorf("%s of NUMA node %d does not exist", name, member)
		}
	}
	for _, member := range group {
		t := nodes[member].MemoryMap[name]
		sum.Free += t.Free
		sum.Reserved += t.Reserved
	}
	t := nodes[id].MemoryMap[name]
	sum.TotalMemSize, sum.SystemReserved, sum.Allocatable = t.TotalMemSize, t.SystemReserved, t.Allocatable
	return sum, nil
}

func sameGroup(a, b []int) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// requested is what the container asks for in bytes, in the order of names.
func requested(container *v1.Container) []Block {
	var blocks []Block
	for name, q := range container.Resources.Requests {
		if isMemory(name) && q.Sign() >= 0 {
			blocks = append(blocks, Block{Type: name, Size: uint64(q.Value())})
		}
	}
	slices.SortFunc(blocks, func(a, b Block) int { return strings.Compare(string(a.Type), string(b.Type)) })
	return blocks
}

// requestedByPod is the most that the pod's containers have at one time.
func requestedByPod(pod *v1.Pod) []Block {
	running, peak := map[v1.ResourceName]uint64{}, map[v1.ResourceName]uint64{}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		for _, b := range requested(c) {
			if isSidecar(c) {
				running[b.Type] += b.Size
			} else {
				peak[b.Type] = max(peak[b.Type], running[b.Type]+b.Size)
			}
		}
	}
	for i := range pod.Spec.Containers {
		for _, b := range requested(&pod.Spec.Containers[i]) {
			running[b.Type] += b.Size
		}
	}
	var blocks []Block
	for name, size := range running {
		blocks = append(blocks, Block{Type: name, Size: max(size, peak[name])})
	}
	slices.SortFunc(blocks, func(a, b Block) int { return strings.Compare(string(a.Type), string(b.Type)) })
	return blocks
}

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

func isInit(pod *v1.Pod, name string) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c v1.Container) bool { return c.Name == name && !isSidecar(&c) })
}

// managed says whether the pod's containers are looked at.
func managed(pod *v1.Pod) bool {
	return qos.Class(pod) == v1.PodQOSGuaranteed && !resourcehelper.IsPodLevelResourcesSet(pod)
}

// Equal compares two states.
func (s State) Equal(other State) bool { return reflect.DeepEqual(s.clone(), other.clone()) }
