package evict

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-io/berth/agent/usage"
)

// Signal names something that can run short on the node.
type Signal string

// The kubelet's signals (pkg/kubelet/eviction/api).
const (
	MemoryAvailable            Signal = "memory.available"
	AllocatableMemoryAvailable Signal = "allocatableMemory.available"
	NodeFSAvailable            Signal = "nodefs.available"
	NodeFSInodesFree           Signal = "nodefs.inodesFree"
	ImageFSAvailable           Signal = "imagefs.available"
	ImageFSInodesFree          Signal = "imagefs.inodesFree"
	ContainerFSAvailable       Signal = "containerfs.available"
	ContainerFSInodesFree      Signal = "containerfs.inodesFree"
	PIDAvailable               Signal = "pid.available"
)

// What is counted in the messages of evicted pods beside the API's resources.
const (
	inodes v1.ResourceName = "inodes"
	pids   v1.ResourceName = "pids"
)

// meaning of a signal.
type meaning struct {
	condition v1.NodeConditionType
	resource  v1.ResourceName
}

var meanings = map[Signal]meaning{
	MemoryAvailable:            {v1.NodeMemoryPressure, v1.ResourceMemory},
	AllocatableMemoryAvailable: {v1.NodeMemoryPressure, v1.ResourceMemory},
	NodeFSAvailable:            {v1.NodeDiskPressure, v1.ResourceEphemeralStorage},
	NodeFSInodesFree:           {v1.NodeDiskPressure, inodes},
	ImageFSAvailable:           {v1.NodeDiskPressure, v1.ResourceEphemeralStorage},
	ImageFSInodesFree:          {v1.NodeDiskPressure, inodes},
	ContainerFSAvailable:       {v1.NodeDiskPressure, v1.ResourceEphemeralStorage},
	ContainerFSInodesFree:      {v1.NodeDiskPressure, inodes},
	PIDAvailable:               {v1.NodePIDPressure, pids},
}

func (s Signal) memory() bool { return s == MemoryAvailable || s == AllocatableMemoryAvailable }

// format is how the kubelet writes amounts of the resource.
func format(r v1.ResourceName) resource.Format {
	if r == inodes || r == pids {
		return resource.DecimalSI
	}
	return resource.BinarySI
}

func write(r v1.ResourceName, amount int64) string {
	return resource.NewQuantity(amount, format(r)).String()
}

// Observation is how much there is of something, in bytes or pieces.
type Observation struct{ Available, Capacity int64 }

// Observations are what is known now. A signal that is missing could not be
// observed; its thresholds are neither met nor resolved.
type Observations map[Signal]Observation

// Observe turns what the node uses into signals.
func Observe(n usage.Node) Observations {
	o := Observations{}
	add := func(s Signal, available, capacity int64) {
		if capacity > 0 {
			o[s] = Observation{max(available, 0), capacity}
		}
	}
	disk := func(bytes, files Signal, fs usage.FS) {
		add(bytes, int64(fs.Available), int64(fs.Capacity))
		add(files, int64(fs.InodesFree), int64(fs.Inodes))
	}
	add(MemoryAvailable, int64(n.Memory.Capacity)-int64(n.Memory.WorkingSet), int64(n.Memory.Capacity))
	add(AllocatableMemoryAvailable, int64(n.Pods.Capacity)-int64(n.Pods.WorkingSet), int64(n.Pods.Capacity))
	disk(NodeFSAvailable, NodeFSInodesFree, n.NodeFS)
	disk(ImageFSAvailable, ImageFSInodesFree, n.ImageFS)
	disk(ContainerFSAvailable, ContainerFSInodesFree, n.ContainerFS)
	add(PIDAvailable, n.PIDs.Max-n.PIDs.Running, n.PIDs.Max)
	return o
}

// Reclaim is something that frees a resource and ends no pod.
type Reclaim int

// In the order in which they are tried.
const (
	DeadContainers Reclaim = iota
	UnusedImages
)

// reclaims says what can be freed before a pod must end: dead containers where
// writable layers are, images where images are (buildSignalToNodeReclaimFuncs).
func reclaims(s Signal, layout usage.Layout) []Reclaim {
	if meanings[s].condition != v1.NodeDiskPressure {
		return nil
	}
	image := s == ImageFSAvailable || s == ImageFSInodesFree
	node := s == NodeFSAvailable || s == NodeFSInodesFree
	switch layout {
	case usage.ImagesApart:
		if node {
			return nil
		}
	case usage.Split:
		if image {
			return []Reclaim{UnusedImages}
		}
		return []Reclaim{DeadContainers}
	}
	return []Reclaim{DeadContainers, UnusedImages}
}

// part of what a pod has on disk.
type part int

const (
	rootfs part = iota
	logs
	volumes
)

// measured says which parts of a pod are on the file system of a disk signal
// (buildSignalToRankFunc).
func measured(s Signal, layout usage.Layout) []part {
	image := s == ImageFSAvailable || s == ImageFSInodesFree
	node := s == NodeFSAvailable || s == NodeFSInodesFree
	switch layout {
	case usage.ImagesApart:
		if node {
			return []part{logs, volumes}
		}
		return []part{rootfs}
	case usage.Split:
		if image {
			return nil
		}
	}
	return []part{rootfs, logs, volumes}
}

func sorted(conditions []v1.NodeConditionType) []v1.NodeConditionType {
	slices.Sort(conditions)
	return conditions
}
