package volume

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// Objects are the API objects that volumes and environments are made from, as
// the pod that needs them may see them. What they return must not be changed.
// An error tells with errors.Is what kind of trouble it is: ErrNotFound,
// ErrNotRegistered or ErrUnavailable; any other is the object's own.
type Objects interface {
	ConfigMap(ctx context.Context, pod *v1.Pod, name string) (*v1.ConfigMap, error)
	Secret(ctx context.Context, pod *v1.Pod, name string) (*v1.Secret, error)
	// Claim returns the host directory that a PersistentVolumeClaim is bound to.
	Claim(ctx context.Context, pod *v1.Pod, name string) (hostPath string, readOnly bool, err error)
	// Token returns a token of the pod's service account that is bound to the pod
	// and has a good part of its life before it.
	Token(ctx context.Context, pod *v1.Pod, want *v1.ServiceAccountTokenProjection) (string, error)
	// TrustBundle returns the PEM certificates of the bundles that are meant. An
	// optional projection that nothing matches is empty and no error.
	TrustBundle(ctx context.Context, pod *v1.Pod, want *v1.ClusterTrustBundleProjection) ([]byte, error)
}

// What Objects may have to say of an object beside its content.
var (
	// ErrNotFound: it does not exist. Where the pod calls it optional, that is
	// no trouble.
	ErrNotFound = errors.New("not found")
	// ErrNotRegistered: nobody has said that this pod needs it (yet).
	ErrNotRegistered = errors.New("not registered")
	// ErrUnavailable: the API server does not answer, and has not said before
	// what the object holds.
	ErrUnavailable = errors.New("unavailable")
)

// NotFound is the error for an object that does not exist, in the API's words.
// kind is in lower case and singular, as the kubelet says it.
func NotFound(kind, name string) error { return notFound{kind, name} }

type notFound struct{ kind, name string }

func (e notFound) Error() string { return fmt.Sprintf("%s %q not found", e.kind, e.name) }

func (e notFound) Is(target error) bool { return target == ErrNotFound }

// Error is why one volume of a pod could not be set up.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("volume %q: %v", e.Volume, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errors lists the volumes that an error of SetUp names; none where it concerns
// the pod as a whole.
func Errors(err error) []*Error {
	if one, ok := err.(*Error); ok {
		return []*Error{one}
	}
	var all []*Error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, Errors(e)...)
		}
	}
	return all
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

// user is the user that all containers run as: the owner of what only they may
// read. It is nil when one of them names no user or two name different ones, as
// in the kubelet (pkg/volume/util, FsUserFrom).
func (p Pod) user() *int64 {
	var common *int64
	agree := func(own *v1.SecurityContext) bool {
		user := runAsUser(p.Spec.SecurityContext, own)
		if user == nil || common != nil && *common != *user {
			return false
		}
		common = user
		return true
	}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if !agree(list[i].SecurityContext) {
				return nil
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if !agree(p.Spec.EphemeralContainers[i].SecurityContext) {
			return nil
		}
	}
	return common
}

func runAsUser(pod *v1.PodSecurityContext, own *v1.SecurityContext) *int64 {
	if own != nil && own.RunAsUser != nil {
		return own.RunAsUser
	}
	if pod != nil {
		return pod.RunAsUser
	}
	return nil
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
