// Package devices hands out what device plugins have: the kubelet's device
// manager. A plugin registers, tells what devices there are and how they are, and
// says what a container needs to use those that it was given.
//
//	plugins.go     what plugins and devices there are, who has which
//	server.go      registration, and following a plugin
//	draft.go       hands out, for one pod
//	hints.go       on which NUMA nodes that could be
//	container.go   what a container needs for its devices, and their health
//	checkpoint.go  the file with all that
//
// A plugin that goes away or comes back changes nothing for containers that run:
// what they were given is in the checkpoint. agent/resources calls it, and the
// node's status asks for Capacity.
package devices

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/machine"
	"github.com/berth-io/berth/agent/resources/numa"
)

// stoppedGrace is how long a plugin may be away before the node no longer has
// its resource (kubelet: cm/devicemanager/endpoint.go).
const stoppedGrace = 5 * time.Minute

// Config is what Plugins are made from.
type Config struct {
	// Dir is KUBELETDIR/device-plugins, made where it is missing.
	Dir string
	// Nodes are the machine's NUMA nodes.
	Nodes []int
	// CapacityChanged is called when the node's devices are others than before,
	// and HealthChanged with the pods whose devices became healthy or unhealthy.
	// Both may be nil. They are called one at a time and must not block for long.
	CapacityChanged func()
	HealthChanged   func(podUIDs []string)
	Counts          Counts // nil: nobody counts
	Log             *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Counts are what is counted of device plugins (agent/metrics).
type Counts interface {
	// DevicePluginRegistered: a plugin asks to be one.
	DevicePluginRegistered(resource string)
	// DevicesAllocated: a plugin was asked for devices.
	DevicesAllocated(resource string, took time.Duration)
}

// Plugins are the device plugins of this node. Its methods may be called
// concurrently, but there may be one Draft of a resource at a time. Run is called
// once.
type Plugins struct {
	config Config
	first  bool

	// saving serialises writes of the checkpoint.
	saving sync.Mutex
	// following counts the goroutines that follow plugins; none is added once
	// stopping is set.
	following sync.WaitGroup

	mu        sync.Mutex
	stopping  bool
	resources map[string]*pluginResource
	// removed are resources that the node had: it goes on to say that it has none.
	removed sets.Set[string]
	pods    map[string]podDevices
}

// pluginResource is one resource and its plugin.
type pluginResource struct {
	plugin  *plugin   // nil while there is none
	stopped time.Time // since when there is none
	devices map[string]*pluginapi.Device
}

type (
	podDevices       map[string]containerDevices // by container name
	containerDevices map[string]allocation       // by resource name
)

// allocation is what a container was given of one resource. It is not changed.
type allocation struct {
	devices  DevicesPerNUMA
	response *pluginapi.ContainerAllocateResponse
}

// New reads the checkpoint and starts nothing. A checkpoint that is damaged is
// set aside with a warning, as the kubelet does: the node could not start at
// all without it, and the devices of pods that run are not touched.
func New(config Config) (*Plugins, error) {
	if !filepath.IsAbs(config.Dir) {
		return nil, fmt.Errorf("device plugin directory %q: it must be an absolute path", config.Dir)
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if err := os.MkdirAll(config.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the directory for device plugins: %w", err)
	}
	p := &Plugins{config: config, resources: map[string]*pluginResource{}, removed: sets.New[string](), pods: map[string]podDevices{}}
	found, err := p.load()
	if err != nil && !found {
		return nil, fmt.Errorf("read who has which devices: %w", err)
	}
	if err != nil {
		aside := p.checkpointFile() + ".bad"
		config.Log.Warn("what devices containers have is not known: the checkpoint is set aside", "error", err, "to", aside)
		if err := os.Rename(p.checkpointFile(), aside); err != nil {
			return nil, fmt.Errorf("set the checkpoint of devices aside: %w", err)
		}
	}
	p.first = !found
	return p, nil
}

// FirstStart says that there was no checkpoint: the node was set up anew, and
// extended resources in its status are of another life (kubelet:
// ShouldResetExtendedResourceCapacity).
func (p *Plugins) FirstStart() bool { return p.first }

// healthy says whether the device can be handed out.
func (r *pluginResource) healthy(id string) bool {
	d := r.devices[id]
	return r.plugin != nil && d != nil && d.Health == pluginapi.Healthy
}

func (r *pluginResource) healthyDevices() sets.Set[string] {
	ids := sets.New[string]()
	for id := range r.devices {
		if r.healthy(id) {
			ids.Insert(id)
		}
	}
	return ids
}

// Capacity is what the node has of each resource, and what of it is healthy. A
// resource whose plugin has been away for five minutes counts as none.
func (p *Plugins) Capacity() machine.Devices {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropStopped()
	list := machine.Devices{Capacity: v1.ResourceList{}, Allocatable: v1.ResourceList{}}
	for name := range p.removed {
		list.Capacity[v1.ResourceName(name)] = *resource.NewQuantity(0, resource.DecimalSI)
		list.Allocatable[v1.ResourceName(name)] = *resource.NewQuantity(0, resource.DecimalSI)
	}
	for name, r := range p.resources {
		list.Capacity[v1.ResourceName(name)] = *resource.NewQuantity(int64(len(r.devices)), resource.DecimalSI)
		list.Allocatable[v1.ResourceName(name)] = *resource.NewQuantity(int64(r.healthyDevices().Len()), resource.DecimalSI)
	}
	return list
}

func (p *Plugins) dropStopped() {
	for name, r := range p.resources {
		if r.plugin == nil && p.config.Now().Sub(r.stopped) > stoppedGrace {
			delete(p.resources, name)
			p.removed.Insert(name)
		}
	}
}

// isPluginResource says whether a plugin has the resource or had it when it was
// handed out.
func (p *Plugins) isPluginResource(name string) bool {
	if _, found := p.resources[name]; found {
		return true
	}
	for _, pod := range p.pods {
		for _, container := range pod {
			if _, found := container[name]; found {
				return true
			}
		}
	}
	return false
}

// Hand tells whether one of the resources is handed out here.
func (p *Plugins) Hand(names []string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(names, p.isPluginResource)
}

// allocated are the devices of the resource that containers have.
func (p *Plugins) allocated(name string) sets.Set[string] {
	ids := sets.New[string]()
	for _, pod := range p.pods {
		for _, container := range pod {
			ids = ids.Union(container[name].devices.ids())
		}
	}
	return ids
}

// Keep takes back the devices of all pods but those. Pods that are not wanted
// any more but still run must be among them.
func (p *Plugins) Keep(podUIDs sets.Set[string]) error {
	p.mu.Lock()
	before := len(p.pods)
	maps.DeleteFunc(p.pods, func(uid string, _ podDevices) bool { return !podUIDs.Has(uid) })
	changed := len(p.pods) != before
	p.mu.Unlock()
	if !changed {
		return nil
	}
	return p.save()
}

// Device is one device with its NUMA nodes, -1 for none.
type Device struct {
	Resource, ID string
	Nodes        []int64
}

// Allocatable are all healthy devices in order.
func (p *Plugins) Allocatable() []Device {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Device
	for _, name := range slices.Sorted(maps.Keys(p.resources)) {
		r := p.resources[name]
		for _, id := range sets.List(r.healthyDevices()) {
			all = append(all, Device{Resource: name, ID: id, Nodes: nodesOf(r.devices[id])})
		}
	}
	return all
}

// Of are the container's devices in order.
func (p *Plugins) Of(podUID, container string) []Device {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []Device
	given := p.pods[podUID][container]
	for _, name := range slices.Sorted(maps.Keys(given)) {
		devices := given[name].devices
		for _, id := range sets.List(devices.ids()) {
			d := Device{Resource: name, ID: id}
			for _, node := range slices.Sorted(maps.Keys(devices)) {
				if node != noNode && slices.Contains(devices[node], id) {
					d.Nodes = append(d.Nodes, node)
				}
			}
			all = append(all, d)
		}
	}
	return all
}

func nodesOf(d *pluginapi.Device) []int64 {
	var nodes []int64
	for _, n := range d.GetTopology().GetNodes() {
		nodes = append(nodes, n.GetID())
	}
	return nodes
}

func maskOf(d *pluginapi.Device) numa.Mask {
	var m numa.Mask
	for _, node := range nodesOf(d) {
		if node >= 0 && node < numa.MaxNodes {
			m |= numa.MaskOf(int(node))
		}
	}
	return m
}
