package cpus

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/numa"
)

const resourceCPU = string(v1.ResourceCPU)

// SMTAlignmentError is why a container is refused with full-pcpus-only.
type SMTAlignmentError struct {
	Requested, PerCore int
	// Available is how many CPUs there are on cores that are free, where they are
	// too few; -1 where the request is no number of whole cores.
	Available int
}

func (e *SMTAlignmentError) Error() string {
	if e.Available >= 0 {
		return fmt.Sprintf("SMT Alignment Error: not enough free physical CPUs: available physical CPUs = %d, requested CPUs = %d, CPUs per core = %d",
			e.Available, e.Requested, e.PerCore)
	}
	return fmt.Sprintf("SMT Alignment Error: requested %d cpus not multiple cpus per core = %d", e.Requested, e.PerCore)
}

// Reason is the reason in the status of a pod that was refused.
func (*SMTAlignmentError) Reason() string { return "SMTAlignmentError" }

// Draft is a change to a state that is not yet in force. It is for one pod:
// what its init containers have had, later containers of the same Draft reuse.
type Draft struct {
	policy *Policy
	state  State
	reuse  cpuset.CPUSet
}

// Draft starts a change. The state that it starts from stays as it is.
func (p *Policy) Draft(s State) *Draft { return &Draft{policy: p, state: s.clone()} }

// State is what the state would become.
func (d *Draft) State() State { return d.state.clone() }

// free are the CPUs that can be handed out.
func (d *Draft) free() cpuset.CPUSet { return d.state.Default.Difference(d.policy.reserved) }

// Pins tells whether Allocate has CPUs to look for: the container is to have some
// to itself, and has none yet.
func (d *Draft) Pins(pod *v1.Pod, container *v1.Container) bool {
	_, has := d.state.Assigned[string(pod.UID)][container.Name]
	return !has && managed(pod) && exclusive(pod, container) > 0
}

// WholeCores tells whether containers get cores that nobody else has a CPU of.
func (d *Draft) WholeCores() bool { return d.policy.options.fullCores }

// OneCache tells whether the container's CPUs share an uncore cache.
func (d *Draft) OneCache(pod *v1.Pod, container *v1.Container) bool {
	have := d.state.Assigned[string(pod.UID)][container.Name]
	caches := map[int]bool{}
	for _, c := range d.policy.machine.CPUs {
		if have.Contains(c.ID) {
			caches[c.UncoreCache] = true
		}
	}
	return len(caches) == 1
}

// Hints says where the container's CPUs could come from. What it has already
// stays where it is.
func (d *Draft) Hints(pod *v1.Pod, container *v1.Container) numa.Hints {
	count := exclusive(pod, container)
	if count == 0 || !managed(pod) {
		return nil
	}
	have, found := d.state.Assigned[string(pod.UID)][container.Name]
	if !found {
		return numa.Hints{resourceCPU: d.policy.hints(d.free(), d.reuse, count)}
	}
	if have.Size() != count {
		return numa.Hints{resourceCPU: {}}
	}
	return numa.Hints{resourceCPU: d.policy.hints(have, cpuset.New(), count)}
}

// PodHints says where the CPUs of all the pod's containers could come from.
func (d *Draft) PodHints(pod *v1.Pod) numa.Hints {
	count := exclusiveOfPod(pod)
	if count == 0 || !managed(pod) {
		return nil
	}
	have := cpuset.New()
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			cpus, found := d.state.Assigned[string(pod.UID)][containers[i].Name]
			if found && cpus.Size() != exclusive(pod, &containers[i]) {
				return numa.Hints{resourceCPU: {}}
			}
			have = have.Union(cpus)
		}
	}
	if have.Size() == count {
		return numa.Hints{resourceCPU: d.policy.hints(have, cpuset.New(), count)}
	}
	return numa.Hints{resourceCPU: d.policy.hints(d.free(), d.reuse.Union(have), count)}
}

// Allocate gives the container its CPUs, on the given NUMA nodes first. A
// container that has some keeps them.
func (d *Draft) Allocate(pod *v1.Pod, container *v1.Container, nodes numa.Mask) error {
	count := exclusive(pod, container)
	if count == 0 || !managed(pod) {
		return nil
	}
	if have, found := d.state.Assigned[string(pod.UID)][container.Name]; found {
		d.reused(pod, container, have)
		return nil
	}
	if err := d.checkCores(count); err != nil {
		return err
	}
	free := d.free().Union(d.reuse)
	cpus := cpuset.New()
	if nodes != 0 {
		near := d.policy.near(nodes, free)
		var err error
		if cpus, err = d.policy.pick(near, min(count, near.Size())); err != nil {
			return err
		}
	}
	rest, err := d.policy.pick(free.Difference(cpus), count-cpus.Size())
	if err != nil {
		return err
	}
	cpus = cpus.Union(rest)
	d.state.Default = d.state.Default.Difference(cpus)
	d.state.assign(string(pod.UID), container.Name, cpus)
	d.reused(pod, container, cpus)
	return nil
}

// checkCores keeps containers from sharing a core where that is asked for.
func (d *Draft) checkCores(count int) error {
	if !d.policy.options.fullCores {
		return nil
	}
	if count%d.policy.perCore != 0 {
		return &SMTAlignmentError{Requested: count, PerCore: d.policy.perCore, Available: -1}
	}
	// A core with a reserved CPU is never handed out. What the pod's init
	// containers had is free again.
	whole := d.state.Default.Difference(d.policy.reservedCores).Union(d.reuse)
	if count > whole.Size() {
		return &SMTAlignmentError{Requested: count, PerCore: d.policy.perCore, Available: whole.Size()}
	}
	return nil
}

// reused remembers what an init container leaves for those after it.
func (d *Draft) reused(pod *v1.Pod, container *v1.Container, cpus cpuset.CPUSet) {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == container.Name && !isSidecar(c) {
			d.reuse = d.reuse.Union(cpus)
			return
		}
	}
	d.reuse = d.reuse.Difference(cpus)
}

// Release takes a container's CPUs back, but for those that another container
// of the pod has as well.
func (d *Draft) Release(podUID, container string) {
	cpus, found := d.state.Assigned[podUID][container]
	if !found {
		return
	}
	delete(d.state.Assigned[podUID], container)
	for _, others := range d.state.Assigned[podUID] {
		cpus = cpus.Difference(others)
	}
	if len(d.state.Assigned[podUID]) == 0 {
		delete(d.state.Assigned, podUID)
	}
	d.state.Default = d.state.Default.Union(cpus)
}
