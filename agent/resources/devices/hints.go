package devices

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/component-helpers/resource"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/numa"
)

// Hints says where the container's devices could come from (kubelet:
// cm/devicemanager/topology_hints.go).
func (d *Draft) Hints(_ *v1.Pod, container *v1.Container) numa.Hints {
	return d.hintsFor(container.Resources.Limits, func(name string) sets.Set[string] {
		return d.given[container.Name][name].devices.ids()
	})
}

// PodHints says where the devices of all the pod's containers could come from.
func (d *Draft) PodHints(pod *v1.Pod) numa.Hints {
	limits := resource.PodLimits(pod, resource.PodResourcesOptions{ExcludeOverhead: true})
	return d.hintsFor(limits, func(name string) sets.Set[string] {
		have := sets.New[string]()
		for _, container := range d.given {
			have = have.Union(container[name].devices.ids())
		}
		return have
	})
}

func (d *Draft) hintsFor(limits v1.ResourceList, has func(name string) sets.Set[string]) numa.Hints {
	p := d.plugins
	p.mu.Lock()
	defer p.mu.Unlock()
	hints := numa.Hints{}
	for resourceName, limit := range limits {
		name, count := string(resourceName), int(limit.Value())
		if !p.isPluginResource(name) {
			continue
		}
		r := p.resources[name]
		if r == nil || !r.aligned() {
			hints[name] = nil
			continue
		}
		have, reuse, free := has(name), d.reuse[name], d.free(name)
		switch {
		case have.Len() == count && count > 0:
			hints[name] = p.hints(r, have, nil, count)
		case have.Len() > 0, free.Union(reuse).Len() < count:
			hints[name] = []numa.Hint{}
		default:
			hints[name] = p.hints(r, free, reuse, count)
		}
	}
	return hints
}

// hints are the groups of nodes with count of the available devices, all reused
// ones among them.
func (p *Plugins) hints(r *pluginResource, available, reuse sets.Set[string], count int) []numa.Hint {
	var known numa.Mask
	for _, d := range r.devices {
		known |= maskOf(d)
	}
	nodes := slices.DeleteFunc(known.Nodes(), func(n int) bool { return !slices.Contains(p.config.Nodes, n) })
	if len(nodes) == 0 {
		nodes = p.config.Nodes
	}
	near := func(d *pluginapi.Device, m numa.Mask) bool { return maskOf(d)&m != 0 }
	least := len(nodes)
	hints := []numa.Hint{}
	numa.EachSubset(nodes, func(m numa.Mask) {
		total, matching := 0, 0
		for _, d := range r.devices {
			if near(d, m) {
				total++
			}
		}
		if total >= count {
			least = min(least, m.Count())
		}
		for id := range reuse {
			if d := r.devices[id]; d.GetTopology() == nil {
				continue
			} else if !near(d, m) {
				return
			}
			matching++
		}
		for id := range available {
			if near(r.devices[id], m) {
				matching++
			}
		}
		if matching >= count {
			hints = append(hints, numa.Hint{Nodes: m})
		}
	})
	for i := range hints {
		hints[i].Preferred = hints[i].Nodes.Count() == least
	}
	return hints
}
