// Package volume gives pods their volumes. It owns every mount and directory
// below KUBELET/pods/UID/volumes and .../volume-subpaths: it journals a mount
// before making it, removes a directory only after the unmount was verified,
// and never crosses a file system while removing.
package volume

import (
	"context"

	v1 "k8s.io/api/core/v1"
)

// Objects are the API objects that volumes and environments are made from.
// A nil object with a nil error means that it does not exist (yet).
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
	// Claim returns the host directory that a PersistentVolumeClaim is bound to.
	Claim(namespace, name string) (hostPath string, readOnly bool, err error)
}

// Pod is what a volume needs to know of its pod.
type Pod struct {
	*v1.Pod
	HostIPs, PodIPs []string
	// Allocatable is what resourceFieldRef falls back to where a container has no limit.
	Allocatable v1.ResourceList
	// FSGroup and the like come from Pod.Spec.SecurityContext.
}

// Mounted is one volume ready for use.
type Mounted struct {
	Name     string
	HostPath string
	ReadOnly bool
	// SELinuxRelabel, Propagation defaults and device volumes: later issues.
}

// Manager is implemented in manager.go:
//
//	type Config struct { KubeletDir string; Mounter ...; NodeName string }
//	func New(Config, Objects) (*Manager, error)
//
// SetUp is level driven: calling it again refreshes configMap, secret,
// downwardAPI and projected contents (atomically, as the kubelet's
// AtomicWriter does: ..data symlink) and repairs what is missing.
type Manager interface {
	SetUp(ctx context.Context, pod Pod) (map[string]Mounted, error)
	// SubPath resolves a container's subPath in a volume without following a
	// symlink out of it, makes the directory when missing, and pins it by a
	// bind mount below volume-subpaths; it returns the path to mount.
	SubPath(ctx context.Context, pod Pod, container string, index int, vol Mounted, subPath string, readOnly bool) (string, error)
	// CleanSubPaths releases a container's pinned subPaths before it starts anew or when it is gone.
	CleanSubPaths(ctx context.Context, podUID, container string) error
	// TearDown unmounts and removes everything of a pod; idempotent; says what is still mounted and why.
	TearDown(ctx context.Context, podUID string) error
	// Orphans lists pod UIDs that have volumes here, from the disk alone, for clean-up after a crash.
	Orphans() ([]string, error)
}
