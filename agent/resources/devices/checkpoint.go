package devices

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/sets"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/berth-io/berth/agent/resources/statefile"
)

// noNode stands for devices that are near no NUMA node in particular.
const noNode = int64(-1)

// DevicesPerNUMA are device IDs by NUMA node. A device may be near several.
type DevicesPerNUMA map[int64][]string

func (d DevicesPerNUMA) ids() sets.Set[string] {
	ids := sets.New[string]()
	for _, list := range d {
		ids.Insert(list...)
	}
	return ids
}

// checkpoint is the file's format (kubelet:
// cm/devicemanager/checkpoint/checkpoint.go); its fields have the kubelet's names.
type checkpoint struct {
	Data     checkpointData
	Checksum uint64
}

type checkpointData struct {
	PodDeviceEntries  []podDevicesEntry
	RegisteredDevices map[string][]string
}

type podDevicesEntry struct {
	PodUID        string
	ContainerName string
	ResourceName  string
	DeviceIDs     DevicesPerNUMA
	AllocResp     []byte // ContainerAllocateResponse
}

func (d checkpointData) sum() uint64 {
	return statefile.Sum(d, "(devices.checkpointData)", "(checkpoint.checkpointData)",
		"[]devices.podDevicesEntry", "[]checkpoint.PodDevicesEntry", "(devices.podDevicesEntry)", "(checkpoint.PodDevicesEntry)",
		"(devices.DevicesPerNUMA)", "(checkpoint.DevicesPerNUMA)")
}

func (p *Plugins) checkpointFile() string {
	return filepath.Join(p.config.Dir, "kubelet_internal_checkpoint")
}

// save writes what is known now. The last of several at a time writes the last
// state.
func (p *Plugins) save() error {
	p.saving.Lock()
	defer p.saving.Unlock()
	p.mu.Lock()
	data, err := p.data()
	p.mu.Unlock()
	if err == nil {
		err = statefile.Write(p.checkpointFile(), checkpoint{Data: data, Checksum: data.sum()})
	}
	if err != nil {
		return fmt.Errorf("save who has which devices: %w", err)
	}
	return nil
}

func (p *Plugins) data() (checkpointData, error) {
	data := checkpointData{RegisteredDevices: map[string][]string{}}
	for name, r := range p.resources {
		data.RegisteredDevices[name] = sets.List(r.healthyDevices())
	}
	for _, uid := range slices.Sorted(maps.Keys(p.pods)) {
		for _, container := range slices.Sorted(maps.Keys(p.pods[uid])) {
			given := p.pods[uid][container]
			for _, name := range slices.Sorted(maps.Keys(given)) {
				response, err := proto.Marshal(given[name].response)
				if err != nil {
					return data, fmt.Errorf("encode the devices of pod %s: %w", uid, err)
				}
				data.PodDeviceEntries = append(data.PodDeviceEntries, podDevicesEntry{uid, container, name, given[name].devices, response})
			}
		}
	}
	return data, nil
}

// load reads the checkpoint. What was registered counts as stopped until its
// plugin comes back.
func (p *Plugins) load() (found bool, err error) {
	content, err := statefile.Read(p.checkpointFile())
	if err != nil || content == nil {
		return false, err
	}
	pods, registered, err := decode(content)
	if err != nil {
		return true, err
	}
	p.pods = pods
	for _, name := range registered {
		p.resources[name] = &pluginResource{stopped: p.config.Now(), devices: map[string]*pluginapi.Device{}}
	}
	return true, nil
}

func decode(content []byte) (pods map[string]podDevices, registered []string, err error) {
	c := checkpoint{Data: checkpointData{PodDeviceEntries: []podDevicesEntry{}, RegisteredDevices: map[string][]string{}}}
	if err := json.Unmarshal(content, &c); err != nil {
		return nil, nil, err
	}
	if sum := c.Data.sum(); sum != c.Checksum {
		return nil, nil, &statefile.CorruptError{Actual: sum, Expected: c.Checksum}
	}
	pods = map[string]podDevices{}
	for _, entry := range c.Data.PodDeviceEntries {
		response := &pluginapi.ContainerAllocateResponse{}
		if err := proto.Unmarshal(entry.AllocResp, response); err != nil {
			return nil, nil, fmt.Errorf("decode the devices of pod %s: %w", entry.PodUID, err)
		}
		give(pods, entry.PodUID, entry.ContainerName, entry.ResourceName, allocation{entry.DeviceIDs, response})
	}
	return pods, slices.Collect(maps.Keys(c.Data.RegisteredDevices)), nil
}

func give(pods map[string]podDevices, uid, container, resource string, a allocation) {
	if pods[uid] == nil {
		pods[uid] = podDevices{}
	}
	if pods[uid][container] == nil {
		pods[uid][container] = containerDevices{}
	}
	pods[uid][container][resource] = a
}
