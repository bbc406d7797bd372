package resources

import (
	"context"
	"maps"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/cpuset"

	"github.com/berth-io/berth/agent/resources/devices"
	"github.com/berth-io/berth/agent/resources/memory"
)

// Apply puts what the container has been given into its configuration: CPUs,
// memory nodes, devices and what they need. A container with CPUs to itself is
// not throttled. Environment and annotations of the pod count before those of
// devices.
func (a *Allocator) Apply(pod *v1.Pod, container *v1.Container, config *runtimeapi.ContainerConfig) {
	uid := string(pod.UID)
	cpuState, memoryState := a.states()
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if config.Linux.Resources == nil {
		config.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	r := config.Linux.Resources
	if set := cpuState.Of(uid, container.Name); !set.IsEmpty() {
		r.CpusetCpus = set.String()
	}
	if _, exclusive := cpuState.Assigned[uid][container.Name]; exclusive && r.CpuPeriod != 0 {
		r.CpuQuota = -1
	}
	if nodes := memoryState.NodesOf(uid, container.Name).Nodes(); len(nodes) > 0 {
		texts := make([]string, len(nodes))
		for i, node := range nodes {
			texts[i] = strconv.Itoa(node)
		}
		r.CpusetMems = strings.Join(texts, ",")
	}
	o := a.plugins.Options(uid, container.Name)
	config.Devices = append(config.Devices, o.Devices...)
	config.Mounts = append(o.Mounts, config.Mounts...)
	config.Envs = append(o.Envs, config.Envs...)
	config.CDIDevices = append(config.CDIDevices, o.CDIDevices...)
	if len(o.Annotations) > 0 {
		maps.Copy(o.Annotations, config.Annotations)
		config.Annotations = o.Annotations
	}
}

// PreStart lets device plugins that ask for it prepare the container's devices.
// It is called before the container is created, and waits for them.
func (a *Allocator) PreStart(ctx context.Context, pod *v1.Pod, container *v1.Container) error {
	return a.plugins.PreStart(ctx, string(pod.UID), container)
}

// ExclusiveCPUs says whether a container of the pod has CPUs to itself; the pod's
// cgroup is not throttled then.
func (a *Allocator) ExclusiveCPUs(pod *v1.Pod) bool {
	state, _ := a.states()
	return len(state.Assigned[string(pod.UID)]) > 0
}

// Health is the allocatedResourcesStatus of the container's status.
func (a *Allocator) Health(podUID, container string) []v1.ResourceStatus {
	return a.plugins.Health(podUID, container)
}

// Container is what a container has to itself.
type Container struct {
	CPUs    cpuset.CPUSet
	Memory  []memory.Block
	Devices []devices.Device
}

// Of is what the container has to itself.
func (a *Allocator) Of(podUID, container string) Container {
	cpuState, memoryState := a.states()
	return Container{
		CPUs:    cpuState.Assigned[podUID][container],
		Memory:  memoryState.Assigned[podUID][container],
		Devices: a.plugins.Of(podUID, container),
	}
}

// CPUs are how many containers share, and how many some have to themselves; none
// with the policy none.
func (a *Allocator) CPUs() (shared, exclusive int) {
	if a.cpus == nil {
		return 0, 0
	}
	state, _ := a.states()
	for _, containers := range state.Assigned {
		for _, set := range containers {
			exclusive += set.Size()
		}
	}
	return state.Default.Intersection(a.cpus.Allocatable()).Size(), exclusive
}

// CPUsByNode are how many CPUs of each NUMA node containers have to themselves.
func (a *Allocator) CPUsByNode() map[int]int {
	if a.cpus == nil {
		return nil
	}
	taken := cpuset.New()
	state, _ := a.states()
	for _, containers := range state.Assigned {
		for _, set := range containers {
			taken = taken.Union(set)
		}
	}
	byNode := map[int]int{}
	for _, c := range a.config.Machine.CPUs {
		if taken.Contains(c.ID) {
			byNode[c.Node]++
		}
	}
	return byNode
}

// Allocatable is what containers of this node can have to themselves.
func (a *Allocator) Allocatable() Container {
	c := Container{Devices: a.plugins.Allocatable()}
	if a.cpus != nil {
		c.CPUs = a.cpus.Allocatable()
	}
	if a.memory != nil {
		c.Memory = a.memory.Allocatable()
	}
	return c
}
