package qos

import v1 "k8s.io/api/core/v1"

// PodsPath is the path of the cgroup that all pods are in, below each hierarchy's
// mount point.
func (t *Tree) PodsPath() string { return t.pods.path(t.config.Driver) }

// PodPath is the path of a pod's cgroup, whether it is there or not.
func (t *Tree) PodPath(pod *v1.Pod) string {
	return classNode(t.pods, Class(pod)).child(podPrefix + string(pod.UID)).path(t.config.Driver)
}

// PodParent is what EnsurePod returns, without a look at whether it is there.
func (t *Tree) PodParent(pod *v1.Pod) (cgroupParent string, err error) {
	n, err := t.podNode(pod)
	return n.path(t.config.Driver), err
}
