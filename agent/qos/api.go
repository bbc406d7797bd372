// Package qos owns the pod part of the cgroup tree: the kubelet's QoS classes,
// its cgroup names, and the settings of the pod and QoS levels. Container
// cgroups are the runtime's.
package qos

// To be implemented:
//
//	func Class(pod *v1.Pod) v1.PodQOSClass
//	func ContainerResources(pod *v1.Pod, c *v1.Container, node NodeInfo) *runtimeapi.LinuxContainerResources   // shares, quota, memory, oom_score_adj, hugepages, unified (memory.min/high: later)
//	func OOMScoreAdj(pod, container, memoryCapacity) int64
//	type Config struct { Root string /* e.g. / or /berth-test */; Driver string /* cgroupfs | systemd */; CPUs int; MemoryBytes int64 }
//	func NewTree(Config) (*Tree, error)
//	(*Tree) Ensure() error                                  // kubepods, kubepods/besteffort, kubepods/burstable; v1 and v2; controllers enabled
//	(*Tree) EnsurePod(pod *v1.Pod) (cgroupParent string, err error)   // idempotent
//	(*Tree) RemovePod(podUID string) error                  // any class; kills what is left inside, then removes
//	(*Tree) Pods() ([]string, error)                        // UIDs that have a cgroup, for clean-up after a crash
//	(*Tree) RefreshClasses(pods []*v1.Pod) error            // burstable's cpu shares = sum of requests
