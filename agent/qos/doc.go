// Package qos owns the pod part of the cgroup tree: the kubelet's QoS classes,
// its cgroup names, and the settings of the pod and QoS levels. Container
// cgroups, one level further down, are the runtime's.
//
//	ROOT/kubepods                          all pods: the node's CPUs and memory
//	ROOT/kubepods/podUID                   guaranteed pods
//	ROOT/kubepods/burstable/podUID         weighs what its pods request
//	ROOT/kubepods/besteffort/podUID        weighs least
//
// With the systemd driver the same nodes are slices; a dash separates the
// levels of a slice's name, so dashes inside a UID become underscores:
// kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podA_B.slice.
//
//	class.go      QoS class and oom_score_adj of a pod: pure
//	container.go  requests and limits of a container to its cgroup's values: pure
//	pod.go        the same for pods, their classes and the node: pure
//	resources.go  units
//	name.go       names of the tree's nodes: pure
//	host.go       the cgroup hierarchies of this host
//	tree.go       makes the nodes and writes their settings
//	reserved.go   sets the cgroups that kubeReserved and systemReserved are for
//	remove.go     kills what is left in a pod's cgroups and removes them
//
// The agent core calls it: Ensure once at start, EnsurePod before the sandbox
// is made, RemovePod after it is gone, RefreshClasses when pods come and go,
// SetPod for a resize, Reserve once at start.
package qos
