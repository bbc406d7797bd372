package volume

import (
	v1 "k8s.io/api/core/v1"
)

// Objects are the API objects that volumes and environments are made from.
// A nil object with a nil error means that it does not exist (yet).
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
	// Claim returns the host directory that a PersistentVolumeClaim is bound to.
	// The path is empty when there is no such claim.
	Claim(namespace, name string) (hostPath string, readOnly bool, err error)
}

// Pod is what a volume needs to know of its pod.
type Pod struct {
	*v1.Pod
	HostIPs, PodIPs []string
	// Allocatable is what resourceFieldRef falls back to where a container has
	// no limit, and what bounds volumes in memory.
	Allocatable v1.ResourceList
}

// fsGroup is the group that owns the pod's volumes; nil for none.
func (p Pod) fsGroup() *int64 {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	return p.Spec.SecurityContext.FSGroup
}

func (p Pod) groupChangePolicy() v1.PodFSGroupChangePolicy {
	if s := p.Spec.SecurityContext; s != nil && s.FSGroupChangePolicy != nil {
		return *s.FSGroupChangePolicy
	}
	return v1.FSGroupChangeAlways
}

// Mounted is one volume ready for use.
type Mounted struct {
	Name     string
	HostPath string // empty for an image volume, which the runtime mounts
	// ReadOnly says that containers must not write, whatever their mount says.
	ReadOnly bool
}
