package devices

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// preStartTimeout is KubeletPreStartContainerRPCTimeoutInSecs.
const preStartTimeout = pluginapi.KubeletPreStartContainerRPCTimeoutInSecs * time.Second

// Options are what a container needs to use its devices.
type Options struct {
	Devices     []*runtimeapi.Device
	Mounts      []*runtimeapi.Mount
	Envs        []*runtimeapi.KeyValue
	Annotations map[string]string
	CDIDevices  []*runtimeapi.CDIDevice
}

// Options are what the plugins said when the container was given its devices.
// Where two resources say something else of one thing, the first by name counts.
func (p *Plugins) Options(podUID, container string) Options {
	p.mu.Lock()
	defer p.mu.Unlock()
	given := p.pods[podUID][container]
	o := Options{Annotations: map[string]string{}}
	seen := sets.New[string]()
	isNew := func(kind, name string) bool {
		key := kind + "\x00" + name
		if seen.Has(key) {
			return false
		}
		seen.Insert(key)
		return true
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		answer := given[name].response
		for _, key := range slices.Sorted(maps.Keys(answer.GetEnvs())) {
			if isNew("env", key) {
				o.Envs = append(o.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(answer.GetEnvs()[key])})
			}
		}
		for _, d := range answer.GetDevices() {
			if isNew("device", d.GetContainerPath()) {
				o.Devices = append(o.Devices, &runtimeapi.Device{HostPath: d.GetHostPath(), ContainerPath: d.GetContainerPath(), Permissions: d.GetPermissions()})
			}
		}
		for _, m := range answer.GetMounts() {
			if isNew("mount", m.GetContainerPath()) {
				o.Mounts = append(o.Mounts, &runtimeapi.Mount{HostPath: m.GetHostPath(), ContainerPath: m.GetContainerPath(), Readonly: m.GetReadOnly()})
			}
		}
		for key, value := range answer.GetAnnotations() {
			if isNew("annotation", key) {
				o.Annotations[key] = value
			}
		}
		for _, d := range answer.GetCdiDevices() {
			if isNew("cdi", d.GetName()) {
				o.CDIDevices = append(o.CDIDevices, &runtimeapi.CDIDevice{Name: d.GetName()})
			}
		}
	}
	return o
}

// PreStart calls PreStartContainer of the plugins that ask for it, before a
// container is created.
func (p *Plugins) PreStart(ctx context.Context, podUID string, container *v1.Container) error {
	for _, resourceName := range slices.Sorted(maps.Keys(container.Resources.Limits)) {
		name := string(resourceName)
		limit := container.Resources.Limits[resourceName]
		p.mu.Lock()
		isPlugin, r := p.isPluginResource(name), p.resources[name]
		given, found := p.pods[podUID][container.Name][name]
		var from *plugin
		if r != nil {
			from = r.plugin
		}
		p.mu.Unlock()
		switch {
		case !isPlugin || limit.IsZero():
			continue
		case r == nil:
			return fmt.Errorf("endpoint not found in cache for a registered resource: %s", name)
		case from == nil || !from.options.GetPreStartRequired():
			continue // one that went away is not asked: its devices may serve still
		case !found:
			return fmt.Errorf("no devices found allocated in local cache for pod %s, container %s, resource %s", podUID, container.Name, name)
		}
		if err := preStart(ctx, from, given.devices.ids()); err != nil {
			return err
		}
	}
	return nil
}

func preStart(ctx context.Context, from *plugin, ids sets.Set[string]) error {
	ctx, cancel := context.WithTimeout(ctx, preStartTimeout)
	defer cancel()
	if _, err := from.client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: sets.List(ids)}); err != nil {
		return fmt.Errorf("device plugin PreStartContainer rpc failed with err: %w", err)
	}
	return nil
}

// Health is the container status's allocatedResourcesStatus, nil for a container
// without devices. A device of which nothing is known, since its plugin has not
// come back after a restart, counts as healthy.
func (p *Plugins) Health(podUID, container string) []v1.ResourceStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	given := p.pods[podUID][container]
	var all []v1.ResourceStatus
	for _, name := range slices.Sorted(maps.Keys(given)) {
		status := v1.ResourceStatus{Name: v1.ResourceName(name), Resources: []v1.ResourceHealth{}}
		for _, id := range sets.List(given[name].devices.ids()) {
			health := v1.ResourceHealthStatusHealthy
			if r := p.resources[name]; r != nil && r.devices[id] != nil && r.devices[id].GetHealth() != pluginapi.Healthy {
				health = v1.ResourceHealthStatusUnhealthy
			}
			status.Resources = append(status.Resources, v1.ResourceHealth{ResourceID: v1.ResourceID(id), Health: health})
		}
		all = append(all, status)
	}
	return all
}
