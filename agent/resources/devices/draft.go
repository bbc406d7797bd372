package devices

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/numa"
)

// allocateTimeout bounds Allocate and GetPreferredAllocation: a plugin that
// hangs keeps one pod from starting, not those after it forever.
const allocateTimeout = 30 * time.Second

// Draft hands devices out to one pod. They are the pod's with Commit; a Draft
// that is not committed leaves nothing behind but what the plugin itself
// remembers of it.
type Draft struct {
	plugins *Plugins
	ctx     context.Context
	uid     string
	given   podDevices
	// reuse are devices of init containers that have ended when later ones run.
	reuse map[string]sets.Set[string]
}

// Draft starts to hand out; ctx is for its calls to plugins.
func (p *Plugins) Draft(ctx context.Context, pod *v1.Pod) *Draft {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &Draft{plugins: p, ctx: ctx, uid: string(pod.UID), given: podDevices{}, reuse: map[string]sets.Set[string]{}}
	for name, container := range p.pods[d.uid] {
		d.given[name] = maps.Clone(container)
	}
	return d
}

// Commit makes the devices the pod's. Without an error they are on disk.
func (d *Draft) Commit() error {
	p := d.plugins
	p.mu.Lock()
	before, had := p.pods[d.uid]
	if len(d.given) == 0 && !had {
		p.mu.Unlock()
		return nil
	}
	p.pods[d.uid] = d.given
	p.mu.Unlock()
	err := p.save()
	if err != nil {
		p.mu.Lock()
		if p.pods[d.uid] = before; !had {
			delete(p.pods, d.uid)
		}
		p.mu.Unlock()
	}
	return err
}

// Allocate gives the container the devices that it asks for, on the given NUMA
// nodes first (kubelet: cm/devicemanager/manager.go, allocateContainerResources).
// A container that has some keeps them.
func (d *Draft) Allocate(pod *v1.Pod, container *v1.Container, nodes numa.Mask) error {
	for _, name := range slices.Sorted(maps.Keys(container.Resources.Limits)) {
		limit := container.Resources.Limits[name]
		if claimed(pod, container.Name, name) {
			continue
		}
		if err := d.allocate(container.Name, string(name), int(limit.Value()), nodes); err != nil {
			return err
		}
	}
	isInit := slices.ContainsFunc(pod.Spec.InitContainers, func(c v1.Container) bool {
		return c.Name == container.Name && (c.RestartPolicy == nil || *c.RestartPolicy != v1.ContainerRestartPolicyAlways)
	})
	for name, a := range d.given[container.Name] {
		if isInit {
			d.reuse[name] = d.reuse[name].Union(a.devices.ids())
		} else {
			d.reuse[name] = d.reuse[name].Difference(a.devices.ids())
		}
	}
	return nil
}

// claimed tells whether the container has the resource of a ResourceClaim that the
// scheduler made for it (kubelet: cm/devicemanager/manager.go,
// isDRAExtendedResource).
func claimed(pod *v1.Pod, container string, name v1.ResourceName) bool {
	s := pod.Status.ExtendedResourceClaimStatus
	return s != nil && slices.ContainsFunc(s.RequestMappings, func(m v1.ContainerExtendedResourceRequest) bool {
		return m.ContainerName == container && m.ResourceName == string(name)
	})
}

func (d *Draft) allocate(container, resource string, count int, nodes numa.Mask) error {
	p := d.plugins
	p.mu.Lock()
	isPlugin, r := p.isPluginResource(resource), p.resources[resource]
	p.mu.Unlock()
	if !isPlugin {
		return nil
	}
	chosen, err := d.choose(container, resource, count, nodes)
	if err != nil || chosen.Len() == 0 {
		return err
	}
	from, err := p.connected(resource)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(d.ctx, allocateTimeout)
	defer cancel()
	began := time.Now()
	answer, err := from.client.Allocate(ctx, &pluginapi.AllocateRequest{
		ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: sets.List(chosen)}}})
	if p.config.Counts != nil {
		p.config.Counts.DevicesAllocated(resource, time.Since(began))
	}
	if err != nil {
		return err
	}
	if len(answer.GetContainerResponses()) == 0 {
		return fmt.Errorf("no containers return in allocation response %v", answer)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	perNode := DevicesPerNUMA{}
	for _, id := range sets.List(chosen) {
		near := nodesOf(r.devices[id])
		if len(near) == 0 {
			near = []int64{noNode}
		}
		for _, node := range near {
			perNode[node] = append(perNode[node], id)
		}
	}
	if d.given[container] == nil {
		d.given[container] = containerDevices{}
	}
	d.given[container][resource] = allocation{perNode, answer.GetContainerResponses()[0]}
	return nil
}

func (p *Plugins) connected(resource string) (*plugin, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.resources[resource]
	if r == nil {
		return nil, fmt.Errorf("unknown Device Plugin %s", resource)
	}
	if r.plugin == nil {
		return nil, fmt.Errorf("endpoint of %s has been stopped", resource)
	}
	return r.plugin, nil
}

// free are the healthy devices that nobody has, this pod neither.
func (d *Draft) free(resource string) sets.Set[string] {
	p := d.plugins
	r := p.resources[resource]
	if r == nil {
		return sets.New[string]()
	}
	free := r.healthyDevices().Difference(p.allocated(resource))
	for _, container := range d.given {
		free = free.Difference(container[resource].devices.ids())
	}
	return free
}

// choose picks devices: those that an init container leaves, then those on the
// given nodes, then others. Where the plugin has a preference, it is asked.
func (d *Draft) choose(container, resource string, count int, nodes numa.Mask) (sets.Set[string], error) {
	p := d.plugins
	p.mu.Lock()
	defer p.mu.Unlock()
	have, had := d.given[container][resource]
	if had && have.devices.ids().Len() != count {
		return nil, fmt.Errorf("pod %q container %q changed request for resource %q from %d to %d", d.uid, container, resource, have.devices.ids().Len(), count)
	}
	r := p.resources[resource]
	if r == nil {
		return nil, fmt.Errorf("cannot allocate unregistered device %s", resource)
	}
	healthy := r.healthyDevices()
	if healthy.Len() == 0 {
		return nil, fmt.Errorf("no healthy devices present; cannot allocate unhealthy devices %s", resource)
	}
	if !healthy.IsSuperset(have.devices.ids()) {
		return nil, fmt.Errorf("previously allocated devices are no longer healthy; cannot allocate unhealthy devices %s", resource)
	}
	if had || count <= 0 {
		return nil, nil
	}
	pick := picked{want: count, ids: sets.New[string]()}
	if pick.from(d.reuse[resource].Intersection(healthy)) {
		return pick.ids, nil
	}
	free := d.free(resource)
	if free.Len() < pick.missing() {
		return nil, fmt.Errorf("requested number of devices unavailable for %s. Requested: %d, Available: %d", resource, pick.missing(), free.Len())
	}
	near, far, anywhere := r.byAffinity(free, nodes)
	pool := near
	if pick.missing() >= near.Len() {
		// All that are near, and more.
		if pick.from(near) {
			return pick.ids, nil
		}
		pool = free
	}
	preferred, err := p.preferred(d.ctx, r, pool.Union(pick.ids), pick.ids, count)
	if err != nil {
		return nil, err
	}
	for _, set := range []sets.Set[string]{preferred.Intersection(pool), near, far, anywhere} {
		if pick.from(set) {
			return pick.ids, nil
		}
	}
	return nil, fmt.Errorf("unexpectedly allocated less resources than required. Requested: %d, Got: %d", count, pick.ids.Len())
}

type picked struct {
	want int
	ids  sets.Set[string]
}

func (p *picked) missing() int { return p.want - p.ids.Len() }

// from takes what is missing, lower IDs first, and says whether it is all.
func (p *picked) from(set sets.Set[string]) bool {
	for _, id := range sets.List(set.Difference(p.ids)) {
		if p.missing() <= 0 {
			break
		}
		p.ids.Insert(id)
	}
	return p.missing() <= 0
}

// preferred asks the plugin, without the lock: it may take its time.
func (p *Plugins) preferred(ctx context.Context, r *pluginResource, available, must sets.Set[string], count int) (sets.Set[string], error) {
	from := r.plugin
	if from == nil || !from.options.GetGetPreferredAllocationAvailable() {
		return nil, nil
	}
	p.mu.Unlock()
	defer p.mu.Lock()
	ctx, cancel := context.WithTimeout(ctx, allocateTimeout)
	defer cancel()
	answer, err := from.client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{{
		AvailableDeviceIDs: sets.List(available), MustIncludeDeviceIDs: sets.List(must), AllocationSize: int32(count)}}})
	if err != nil {
		return nil, fmt.Errorf("device plugin GetPreferredAllocation rpc failed with err: %w", err)
	}
	if len(answer.GetContainerResponses()) == 0 {
		return nil, nil
	}
	return sets.New(answer.GetContainerResponses()[0].GetDeviceIDs()...), nil
}

// byAffinity divides devices into those near the nodes, those near others and
// those near none. A device near several counts where the fewest devices are, so
// that ones that are only there stay for those who need them.
func (r *pluginResource) byAffinity(free sets.Set[string], nodes numa.Mask) (near, far, anywhere sets.Set[string]) {
	if nodes == 0 || !r.aligned() {
		return nil, nil, free
	}
	perNode := map[int64]sets.Set[string]{}
	for id := range free {
		on := nodesOf(r.devices[id])
		if len(on) == 0 {
			on = []int64{noNode}
		}
		for _, node := range on {
			if perNode[node] == nil {
				perNode[node] = sets.New[string]()
			}
			perNode[node].Insert(id)
		}
	}
	rank := func(node int64) int {
		switch {
		case nodes.Has(int(node)):
			return 0
		case node != noNode:
			return 1
		default:
			return 2
		}
	}
	order := slices.SortedFunc(maps.Keys(perNode), func(a, b int64) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(perNode[a].Len(), perNode[b].Len()), cmp.Compare(a, b))
	})
	sorted := [3]sets.Set[string]{sets.New[string](), sets.New[string](), sets.New[string]()}
	for id := range free {
		for _, node := range order {
			if perNode[node].Has(id) {
				sorted[rank(node)].Insert(id)
				break
			}
		}
	}
	return sorted[0], sorted[1], sorted[2]
}

// aligned says whether any of the resource's devices is near a NUMA node.
func (r *pluginResource) aligned() bool {
	for _, d := range r.devices {
		if len(d.GetTopology().GetNodes()) > 0 {
			return true
		}
	}
	return false
}
