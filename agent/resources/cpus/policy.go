// Package cpus decides which CPUs a container has to itself: the kubelet's CPU
// manager with its static policy. Containers of guaranteed pods that ask for
// whole CPUs get them exclusively; all others share the rest.
//
//	policy.go      what may be handed out, and to whom
//	draft.go       hands out and takes back, on a copy of the state
//	pick.go        picks CPUs by the machine's layout
//	distribute.go  picks them evenly from NUMA nodes
//	options.go     the policy's options
//	state.go       the state and its file
//
// Everything but Load and Save is pure. agent/resources calls it.
package cpus

import (
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/numa"
)

// Policy is the static policy on one machine.
type Policy struct {
	machine  *machine.Info
	options  options
	perCore  int
	reserved cpuset.CPUSet
	// reservedCores are the reserved CPUs and those that share a core with one.
	reservedCores cpuset.CPUSet
}

// NewStatic is for cpuManagerPolicy: static. Pods are placed by the topology
// manager's policy of that name.
func NewStatic(m *machine.Info, config Config, topologyPolicy string) (*Policy, error) {
	p := &Policy{machine: m, perCore: len(m.CPUs) / m.Cores()}
	var err error
	if p.options, err = config.parseOptions(m, topologyPolicy); err != nil {
		return nil, fmt.Errorf("cpuManagerPolicyOptions: %w", err)
	}
	if p.reserved, err = p.reserve(config); err != nil {
		return nil, fmt.Errorf("cpuManagerPolicy static: %w", err)
	}
	p.reservedCores = wholeCores(m, p.reserved)
	return p, nil
}

// Allocatable are the CPUs that containers can have to themselves.
func (p *Policy) Allocatable() cpuset.CPUSet { return p.machine.Set(nil).Difference(p.reserved) }

// Start checks a state that was loaded against the machine and the
// configuration, or makes the first one from the zero State. A state that does
// not fit is an error: what runs was placed by it.
func (p *Policy) Start(s State) (State, error) {
	all := p.machine.Set(nil)
	if p.options.strictReservation {
		all = all.Difference(p.reserved)
	}
	if s.Default.IsEmpty() && len(s.Assigned) == 0 {
		return State{Default: all}, nil
	}
	if s.Default.IsEmpty() && !p.options.strictReservation {
		return State{}, errors.New("default cpuset cannot be empty")
	}
	present := p.reserved.Intersection(s.Default)
	if p.options.strictReservation && !present.IsEmpty() {
		return State{}, fmt.Errorf("some of strictly reserved cpus: %q are present in defaultCpuSet: %q", present, s.Default)
	}
	if !p.options.strictReservation && !present.Equals(p.reserved) {
		return State{}, fmt.Errorf("not all reserved cpus: %q are present in defaultCpuSet: %q", p.reserved, s.Default)
	}
	known := s.Default
	for uid, containers := range s.Assigned {
		for name, cpus := range containers {
			if !s.Default.Intersection(cpus).IsEmpty() {
				return State{}, fmt.Errorf("pod: %s, container: %s cpuset: %q overlaps with default cpuset %q", uid, name, cpus, s.Default)
			}
			known = known.Union(cpus)
		}
	}
	if !known.Equals(all) {
		return State{}, fmt.Errorf("current set of available CPUs %q doesn't match with CPUs in state %q", all, known)
	}
	return s, nil
}

// exclusive is how many CPUs the container is to have to itself.
func exclusive(pod *v1.Pod, container *v1.Container) int {
	request := container.Resources.Requests[v1.ResourceCPU]
	if qos.Class(pod) != v1.PodQOSGuaranteed || request.Value()*1000 != request.MilliValue() {
		return 0
	}
	return int(request.Value())
}

// exclusiveOfPod is the most CPUs that its containers have at one time.
func exclusiveOfPod(pod *v1.Pod) int {
	peak, running := 0, 0
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if isSidecar(c) {
			running += exclusive(pod, c)
		} else {
			peak = max(peak, running+exclusive(pod, c))
		}
	}
	for i := range pod.Spec.Containers {
		running += exclusive(pod, &pod.Spec.Containers[i])
	}
	return max(peak, running)
}

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

// managed says whether the pod's containers are looked at: with resources of
// the pod as a whole they are not (the kubelet's PodLevelResourceManagers is off
// by default).
func managed(pod *v1.Pod) bool { return !resource.IsPodLevelResourcesSet(pod) }

func (p *Policy) pick(available cpuset.CPUSet, count int) (cpuset.CPUSet, error) {
	if p.options.distributeNodes {
		group := 1
		if p.options.fullCores {
			group = p.perCore
		}
		return distribute(p.machine, available, count, group, p.options.distributeCores)
	}
	return pack(p.machine, available, count, p.options.distributeCores, p.options.alignCaches)
}

// hints are the NUMA nodes that can give count CPUs, all reused ones among them.
func (p *Policy) hints(available, reused cpuset.CPUSet, count int) []numa.Hint {
	nodeOfCPU := map[int]int{}
	perNode := map[int]int{}
	var nodes []int
	for _, c := range p.machine.CPUs {
		if perNode[c.Node]++; perNode[c.Node] == 1 {
			nodes = append(nodes, c.Node)
		}
		nodeOfCPU[c.ID] = c.Node
	}
	least := len(nodes)
	hints := []numa.Hint{}
	numa.EachSubset(nodes, func(m numa.Mask) {
		total, matching := 0, 0
		for _, node := range m.Nodes() {
			total += perNode[node]
		}
		if total >= count {
			least = min(least, m.Count())
		}
		for _, id := range reused.UnsortedList() {
			if !m.Has(nodeOfCPU[id]) {
				return
			}
			matching++
		}
		for _, id := range available.UnsortedList() {
			if m.Has(nodeOfCPU[id]) {
				matching++
			}
		}
		if matching >= count {
			hints = append(hints, numa.Hint{Nodes: m})
		}
	})
	for i := range hints {
		hints[i].Preferred = hints[i].Nodes.Count() == least || p.options.alignSocket && p.onFewestSockets(hints[i].Nodes, least)
	}
	return hints
}

func (p *Policy) onFewestSockets(m numa.Mask, leastNodes int) bool {
	perSocket := p.machine.CPUNodes() / p.machine.Sockets()
	if perSocket == 0 {
		return false
	}
	return len(p.socketsOf(m)) == (leastNodes+perSocket-1)/perSocket
}

func (p *Policy) socketsOf(m numa.Mask) map[int]bool {
	sockets := map[int]bool{}
	for _, c := range p.machine.CPUs {
		if m.Has(c.Node) {
			sockets[c.Socket] = true
		}
	}
	return sockets
}

// near are the CPUs on those nodes or, aligned by socket, on their sockets.
func (p *Policy) near(m numa.Mask, cpus cpuset.CPUSet) cpuset.CPUSet {
	sockets := p.socketsOf(m)
	return cpus.Intersection(p.machine.Set(func(c machine.CPU) bool {
		if p.options.alignSocket {
			return sockets[c.Socket]
		}
		return m.Has(c.Node)
	}))
}
