// Package usage measures what the node and its pods use: memory, disk, inodes
// and processes. Nothing is measured in advance and nothing is kept but the
// last size of a directory.
//
//	usage.go   what is measured
//	node.go    the node: cgroup files, statfs and /proc, some dozen reads
//	pod.go     pods: the runtime's statistics and the sizes of directories
//	dir.go     the size of a directory, within a time
//	memory.go  memory of a cgroup
//
// Eviction and image garbage collection (agent/evict, agent/gc) call it.
package usage

// Memory of a cgroup, in bytes.
type Memory struct {
	// Capacity is what there is: the node's memory, or a cgroup's limit; zero:
	// no limit.
	Capacity uint64
	// Usage counts all, WorkingSet without files that nobody used lately.
	Usage, WorkingSet uint64
}

// FS is a file system. Where Inodes is zero it does not count them.
type FS struct {
	Capacity, Available uint64 // bytes; Available to unprivileged users
	Inodes, InodesFree  uint64
}

// PIDs of the node.
type PIDs struct{ Max, Running int64 }

// Layout is which file systems hold what.
type Layout int

const (
	// Single: images, writable layers and the pods' directories are on one.
	Single Layout = iota
	// ImagesApart: images and writable layers are on one of their own.
	ImagesApart
	// Split: images are on one of their own, writable layers are not with them.
	Split
)

// Node is what the node has and uses.
type Node struct {
	Memory Memory // of the node
	Pods   Memory // of all pods; its capacity is their limit
	NodeFS FS     // of the pods' directories
	// ImageFS has the images, ContainerFS the writable layers.
	ImageFS, ContainerFS FS
	Layout               Layout
	PIDs                 PIDs
}

// Disk is what something takes on a disk.
type Disk struct{ Bytes, Inodes uint64 }

// Plus adds.
func (d Disk) Plus(o Disk) Disk { return Disk{d.Bytes + o.Bytes, d.Inodes + o.Inodes} }

// Container is what a running container uses.
type Container struct {
	Name       string
	WorkingSet uint64 // bytes
	// Rootfs is the writable layer, Logs the container's log files; nil: not
	// known.
	Rootfs, Logs *Disk
}

// Pod is what a pod uses.
type Pod struct {
	WorkingSet uint64 // bytes
	Processes  uint64
	Containers []Container
	// Volumes are those that take room of the node and end with the pod, by name.
	Volumes map[string]Volume
	// Other is what is not of one container: its hosts file.
	Other Disk
}

// Volume is what is in a volume.
type Volume struct {
	Disk
	// Memory: the volume is in memory and takes no room on a disk.
	Memory bool
}

// EphemeralStorage is what of the pod counts against its limit.
func (p Pod) EphemeralStorage() Disk {
	sum := p.Other
	for _, c := range p.Containers {
		if c.Rootfs != nil {
			sum = sum.Plus(*c.Rootfs)
		}
		if c.Logs != nil {
			sum = sum.Plus(*c.Logs)
		}
	}
	for _, v := range p.Volumes {
		if !v.Memory {
			sum = sum.Plus(v.Disk)
		}
	}
	return sum
}
