package act

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Features is the CRI's part about what a runtime can do.
type Features interface {
	Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error)
}

// UserNamespaces gives pods user and group IDs of their own.
type UserNamespaces interface {
	Of(ctx context.Context, podUID string) (*runtimeapi.UserNamespace, error)
}

// features asks what a runtime handler can do. Only pods that need to know pay
// for the question, and another runtime in the place of one needs no notice.
func (a *Actor) features(ctx context.Context, handler string) (*runtimeapi.RuntimeHandlerFeatures, error) {
	call, cancel := a.call(ctx)
	defer cancel()
	status, err := a.Features.Status(call, &runtimeapi.StatusRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask the runtime for its features: %w", plain(why(ctx, call, err)))
	}
	for _, h := range status.GetRuntimeHandlers() {
		if h.GetName() == handler {
			return h.GetFeatures(), nil
		}
	}
	return nil, nil // a runtime from before there were features has none
}

func wantsUserNamespace(pod *v1.Pod) bool {
	return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers
}

// userNamespace returns a pod's ID mappings, nil for one in the node's user
// namespace. The errors are worded as the kubelet's.
func (a *Actor) userNamespace(ctx context.Context, pod *v1.Pod) (*runtimeapi.UserNamespace, error) {
	if !wantsUserNamespace(pod) {
		return nil, nil
	}
	handler, err := a.runtimeHandler(pod)
	if err != nil {
		return nil, err
	}
	f, err := a.features(ctx, handler)
	switch {
	case err != nil:
		return nil, err
	case !f.GetUserNamespaces() && handler != "":
		return nil, fmt.Errorf("can't set `spec.hostUsers: false`, RuntimeClass handler %q does not support user namespaces", handler)
	case !f.GetUserNamespaces():
		return nil, errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
	}
	return a.UserNamespaces.Of(ctx, string(pod.UID))
}

// recursiveReadOnly tells whether the runtime can do it, for a container that
// asks.
func (a *Actor) recursiveReadOnly(ctx context.Context, pod *v1.Pod, c *v1.Container) (bool, error) {
	if !slices.ContainsFunc(c.VolumeMounts, func(m v1.VolumeMount) bool {
		return m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != v1.RecursiveReadOnlyDisabled
	}) {
		return false, nil
	}
	handler, err := a.runtimeHandler(pod)
	if err != nil {
		return false, err
	}
	f, err := a.features(ctx, handler)
	return f.GetRecursiveReadOnlyMounts(), err
}
