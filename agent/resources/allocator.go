// Package resources gives containers what they have to themselves: CPUs, memory
// of NUMA nodes, devices. It is the kubelet's container manager without cgroups,
// which are agent/qos's.
//
//	allocator.go  admits pods: everything they ask for, or nothing
//	asking.go     admits pods for which device plugins are asked
//	container.go  what a container's configuration gets of it
//	sync.go       brings running containers to the CPUs that all share
//	machine       what the machine has; the node's capacity
//	numa          on which NUMA nodes: the topology manager
//	cpus, memory  the static policies, pure, with their state files
//	devices       device plugins
//	dra           devices of ResourceClaims
//	pluginwatch   registration of plugins of all kinds
//	podresources  the PodResources API
//
// The agent calls Admit or AdmitAsking before a pod's first container, Apply and PreStart before
// each container is created, and runs Run. A restarted agent finds everything in
// the state files: pods that run are not admitted again.
package resources

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/berth-io/berth/agent/resources/cpus"
	"github.com/berth-io/berth/agent/resources/devices"
	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/memory"
	"github.com/berth-io/berth/agent/resources/numa"
)

// Config is what an Allocator is made from.
type Config struct {
	// Dir is the kubelet's directory, where the state files are.
	Dir      string
	Machine  *machine.Info
	CPUs     cpus.Config
	Memory   memory.Config
	Topology numa.Config
	Counts   Counts // nil: nobody counts
	Log      *slog.Logger
}

// Counts are what is counted of allocations (agent/metrics).
type Counts interface {
	// Aligned: a pod's resources were looked for where they are near each other.
	Aligned(took time.Duration, failed bool)
	// CPUsPinned and MemoryPinned: a container was to have some to itself; err is
	// why it has not.
	CPUsPinned(err error)
	MemoryPinned(err error)
	// Bounded: a container, or a pod as a whole, was to have all of something
	// within a NUMA node or on whole cores, where a policy promises that, and has
	// it or not; or it has CPUs with one cache. In the kubelet's words.
	Bounded(scope, boundary string, has bool)
}

// Scopes and boundaries of Counts.Bounded.
const (
	numaNode    = "numa_node"
	physicalCPU = "physical_cpu"
	uncoreCache = "uncore_cache"
)

// uncounted is for who counts nothing.
type uncounted struct{}

func (uncounted) Aligned(time.Duration, bool) {}
func (uncounted) CPUsPinned(error)            {}
func (uncounted) MemoryPinned(error)          {}
func (uncounted) Bounded(_, _ string, _ bool) {}

// Rejection is why a pod cannot run on this node, in the words of the kubelet.
type Rejection struct {
	Reason, Message string
}

// Allocator gives containers their resources. Its methods may be called
// concurrently.
type Allocator struct {
	config  Config
	align   *numa.Aligner
	cpus    *cpus.Policy   // nil with policy none
	memory  *memory.Policy // nil with policy None
	plugins *devices.Plugins
	runtime Runtime
	poke    chan struct{}

	// turns are taken by pods that ask plugins, for as long as those take.
	// deciding is held while it is decided who gets what, without anybody being
	// waited for but the disk. mu is held for a moment only.
	turns       turns
	deciding    sync.Mutex
	admissions  atomic.Uint64 // so far
	mu          sync.Mutex
	changes     uint64 // of the states, so far
	cpuState    cpus.State
	memoryState memory.State

	syncing sync.Mutex
	applied map[string]string // CPUs by container ID, as the runtime was told
}

// New reads the state files, or makes them. A state file that does not fit the
// configuration or the machine is an error, as with the kubelet: the node has to
// be drained and the file removed.
func New(config Config, plugins *devices.Plugins, runtime Runtime) (*Allocator, error) {
	a := &Allocator{config: config, plugins: plugins, runtime: runtime, poke: make(chan struct{}, 1), applied: map[string]string{}}
	if config.CPUs.Policy == "" {
		a.config.CPUs.Policy = cpus.PolicyNone
	}
	if config.Memory.Policy == "" {
		a.config.Memory.Policy = memory.PolicyNone
	}
	if a.config.Counts == nil {
		a.config.Counts = uncounted{}
	}
	var err error
	if a.align, err = numa.NewAligner(config.Topology, config.Machine.NodeIDs(), config.Machine.Distances()); err != nil {
		return nil, err
	}
	if err := a.startCPUs(); err != nil {
		return nil, err
	}
	return a, a.startMemory()
}

func (a *Allocator) cpuFile() string    { return filepath.Join(a.config.Dir, "cpu_manager_state") }
func (a *Allocator) memoryFile() string { return filepath.Join(a.config.Dir, "memory_manager_state") }

func (a *Allocator) startCPUs() (err error) {
	switch a.config.CPUs.Policy {
	case cpus.PolicyNone:
		if len(a.config.CPUs.Options) > 0 {
			return fmt.Errorf("cpuManagerPolicyOptions: None policy: received unsupported options=%v", a.config.CPUs.Options)
		}
	case cpus.PolicyStatic:
		if a.cpus, err = cpus.NewStatic(a.config.Machine, a.config.CPUs, a.align.Policy()); err != nil {
			return err
		}
	default:
		return fmt.Errorf("cpuManagerPolicy: unknown policy: %q", a.config.CPUs.Policy)
	}
	if a.cpuState, err = cpus.Load(a.cpuFile(), a.config.CPUs.Policy); err != nil {
		return err
	}
	if a.cpus != nil {
		if a.cpuState, err = a.cpus.Start(a.cpuState); err != nil {
			return fmt.Errorf("%s: %w; please drain this node and delete the file before restarting", a.cpuFile(), err)
		}
	}
	return cpus.Save(a.cpuFile(), a.config.CPUs.Policy, a.cpuState)
}

func (a *Allocator) startMemory() (err error) {
	switch a.config.Memory.Policy {
	case memory.PolicyNone:
	case memory.PolicyStatic:
		if a.memory, err = memory.NewStatic(a.config.Machine, a.config.Memory); err != nil {
			return err
		}
	default:
		return fmt.Errorf("memoryManagerPolicy: unknown policy: %q", a.config.Memory.Policy)
	}
	if a.memoryState, err = memory.Load(a.memoryFile(), a.config.Memory.Policy); err != nil {
		return err
	}
	if a.memory != nil {
		if a.memoryState, err = a.memory.Start(a.memoryState); err != nil {
			return fmt.Errorf("%s: %w; please drain this node and delete the file before restarting", a.memoryFile(), err)
		}
	}
	return memory.Save(a.memoryFile(), a.config.Memory.Policy, a.memoryState)
}

// drafts is a change to all resources that is not yet in force.
type drafts struct {
	devices *devices.Draft // nil: the pod asks for none
	cpus    *cpus.Draft
	memory  *memory.Draft
	after   uint64 // the changes of the states before it
}

// Admit gives the containers of a pod that does not Ask all they are to have to
// themselves, or gives nothing and says why. Pods are those that hold resources:
// all that run or may still run, those that are being ended or admitted included;
// what others had is taken back. Asked again for a pod that has its resources, it
// changes nothing. It waits for nobody.
func (a *Allocator) Admit(pod *v1.Pod, pods []*v1.Pod) *Rejection {
	a.deciding.Lock()
	defer a.deciding.Unlock()
	a.admissions.Add(1)
	if err := a.keep(append(pods[:len(pods):len(pods)], pod)); err != nil {
		return rejected(err)
	}
	d := a.draft()
	began := time.Now()
	rejection := a.allocate(d, pod)
	a.config.Counts.Aligned(time.Since(began), rejection != nil)
	if rejection != nil {
		return rejection
	}
	return rejected(a.commit(d))
}

// states are who has what now.
func (a *Allocator) states() (cpus.State, memory.State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cpuState, a.memoryState
}

// draft starts a change of CPUs and memory.
func (a *Allocator) draft() drafts {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := drafts{after: a.changes}
	if a.cpus != nil {
		d.cpus = a.cpus.Draft(a.cpuState)
	}
	if a.memory != nil {
		d.memory = a.memory.Draft(a.memoryState)
	}
	return d
}

func containers(pod *v1.Pod) []*v1.Container {
	var all []*v1.Container
	for i := range pod.Spec.InitContainers {
		all = append(all, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		all = append(all, &pod.Spec.Containers[i])
	}
	return all
}

var misaligned = &Rejection{Reason: "TopologyAffinityError", Message: "Resources cannot be allocated with Topology locality"}

func (a *Allocator) allocate(d drafts, pod *v1.Pod) *Rejection {
	var hint numa.Hint
	aligned := true
	if a.align.Scope() == numa.ScopePod {
		if hint, aligned = a.align.Merge(d.podHints(a.align, pod)); !aligned {
			a.within(numa.ScopePod, false)
			return misaligned
		}
	}
	for _, c := range containers(pod) {
		if a.align.Scope() == numa.ScopeContainer {
			if hint, aligned = a.align.Merge(d.hints(a.align, pod, c)); !aligned {
				a.within(numa.ScopeContainer, false)
				return misaligned
			}
		}
		if err := d.allocate(pod, c, hint, a.config.Counts); err != nil {
			return rejected(err)
		}
		if a.align.Scope() == numa.ScopeContainer {
			a.within(numa.ScopeContainer, true)
		}
	}
	if a.align.Scope() == numa.ScopePod {
		a.within(numa.ScopePod, true)
	}
	return nil
}

// within counts whether all is of one NUMA node, where the policy promises that.
func (a *Allocator) within(scope string, has bool) {
	if a.align.Policy() == numa.PolicySingleNode {
		a.config.Counts.Bounded(scope, numaNode, has)
	}
}

func (d drafts) hints(align *numa.Aligner, pod *v1.Pod, c *v1.Container) []numa.Hints {
	if align.Policy() == numa.PolicyNone {
		return nil
	}
	var hints []numa.Hints
	if d.devices != nil {
		hints = append(hints, d.devices.Hints(pod, c))
	}
	if d.cpus != nil {
		hints = append(hints, d.cpus.Hints(pod, c))
	}
	if d.memory != nil {
		hints = append(hints, d.memory.Hints(pod, c))
	}
	return hints
}

func (d drafts) podHints(align *numa.Aligner, pod *v1.Pod) []numa.Hints {
	if align.Policy() == numa.PolicyNone {
		return nil
	}
	var hints []numa.Hints
	if d.devices != nil {
		hints = append(hints, d.devices.PodHints(pod))
	}
	if d.cpus != nil {
		hints = append(hints, d.cpus.PodHints(pod))
	}
	if d.memory != nil {
		hints = append(hints, d.memory.PodHints(pod))
	}
	return hints
}

func (d drafts) allocate(pod *v1.Pod, c *v1.Container, hint numa.Hint, counts Counts) error {
	if d.devices != nil {
		if err := d.devices.Allocate(pod, c, hint.Nodes); err != nil {
			return err
		}
	}
	if d.cpus != nil {
		pins := d.cpus.Pins(pod, c)
		err := d.cpus.Allocate(pod, c, hint.Nodes)
		if pins {
			counts.CPUsPinned(err)
			if d.cpus.WholeCores() {
				counts.Bounded(numa.ScopeContainer, physicalCPU, err == nil)
			}
			if err == nil && d.cpus.OneCache(pod, c) {
				counts.Bounded(numa.ScopeContainer, uncoreCache, true) // nothing promises it: there is no failure
			}
		}
		if err != nil {
			return err
		}
	}
	if d.memory == nil {
		return nil
	}
	pins := d.memory.Pins(pod, c)
	err := d.memory.Allocate(pod, c, hint)
	if pins {
		counts.MemoryPinned(err)
	}
	return err
}

// rejected puts an error into the kubelet's words; nil for none.
func rejected(err error) *Rejection {
	if err == nil {
		return nil
	}
	var named interface {
		error
		Reason() string
	}
	if errors.As(err, &named) {
		return &Rejection{Reason: named.Reason(), Message: named.Error()}
	}
	return &Rejection{Reason: "UnexpectedAdmissionError", Message: fmt.Sprintf("Allocate failed due to %v, which is unexpected", err)}
}

// commit writes what was decided, then lets it be in force. Killed in between,
// the agent finds a pod with a part of its resources, which the pod keeps when it
// is admitted, and loses when it is not wanted any more.
func (a *Allocator) commit(d drafts) error {
	before, beforeMemory := a.states()
	cpuState, memoryState := before, beforeMemory
	if d.cpus != nil {
		cpuState = d.cpus.State()
	}
	if d.memory != nil {
		memoryState = d.memory.State()
	}
	if err := a.save(cpuState, memoryState); err != nil {
		return errors.Join(err, a.save(before, beforeMemory))
	}
	if d.devices != nil {
		if err := d.devices.Commit(); err != nil {
			return errors.Join(err, a.save(before, beforeMemory))
		}
	}
	return nil
}

// save writes those states that are others than before and puts them in force.
func (a *Allocator) save(cpuState cpus.State, memoryState memory.State) error {
	before, beforeMemory := a.states()
	if a.cpus != nil && !cpuState.Equal(before) {
		if err := cpus.Save(a.cpuFile(), a.config.CPUs.Policy, cpuState); err != nil {
			return err
		}
		a.mu.Lock()
		a.cpuState = cpuState
		a.changes++
		a.mu.Unlock()
		a.Poke()
	}
	if a.memory != nil && !memoryState.Equal(beforeMemory) {
		if err := memory.Save(a.memoryFile(), a.config.Memory.Policy, memoryState); err != nil {
			return err
		}
		a.mu.Lock()
		a.memoryState = memoryState
		a.changes++
		a.mu.Unlock()
	}
	return nil
}

// keep takes back what all but those pods have.
func (a *Allocator) keep(pods []*v1.Pod) error {
	names := map[string]sets.Set[string]{}
	uids := sets.New[string]()
	for _, pod := range pods {
		uids.Insert(string(pod.UID))
		names[string(pod.UID)] = sets.New[string]()
		for _, c := range containers(pod) {
			names[string(pod.UID)].Insert(c.Name)
		}
	}
	if err := a.plugins.Keep(uids); err != nil {
		return err
	}
	cpuState, memoryState := a.states()
	d := a.draft()
	for uid, owners := range cpuState.Assigned {
		for name := range owners {
			if d.cpus != nil && !names[uid].Has(name) {
				d.cpus.Release(uid, name)
			}
		}
	}
	for uid, owners := range memoryState.Assigned {
		for name := range owners {
			if d.memory != nil && !names[uid].Has(name) {
				d.memory.Release(uid, name)
			}
		}
	}
	return a.commit(d)
}
