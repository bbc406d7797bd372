package act

import (
	"context"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/timeline"
)

// Claims are the ResourceClaims of pods, whose devices drivers prepare.
type Claims interface {
	// Prepare is called before a pod's sandbox is made, and Unprepare once nothing
	// of the pod runs. Both may be called again.
	Prepare(ctx context.Context, pod *v1.Pod) error
	Unprepare(ctx context.Context, podUID string) error
	// Holds tells whether Unprepare has something to do.
	Holds(podUID string) bool
	// CDIDevices are what a container gets of its pod's claims.
	CDIDevices(pod *v1.Pod, container *v1.Container) ([]*runtimeapi.CDIDevice, error)
}

// prepareClaims has the pod's claims prepared, and says in the kubelet's words what
// is wrong with them (pkg/kubelet/kuberuntime, SyncPod).
func (a *Actor) prepareClaims(ctx context.Context, pod Pod) error {
	if a.Claims == nil {
		return nil
	}
	end := func(error) {}
	if len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil {
		end = pod.Timeline.Begin(timeline.Claims, "")
	}
	err := a.Claims.Prepare(ctx, pod.Pod)
	end(err)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		a.Events.Pod(pod.Pod, v1.EventTypeWarning, "FailedPrepareDynamicResources", "Failed to prepare dynamic resources: %v", err)
		return failed("FailedPrepareDynamicResources", err)
	}
	return nil
}

// Unprepare gives back the claims of a pod of which nothing runs any more. It comes
// before that is told: others may get the devices then.
func (a *Actor) Unprepare(ctx context.Context, podUID string) error {
	if a.Claims == nil {
		return nil
	}
	return a.Claims.Unprepare(ctx, podUID)
}

// HoldsClaims tells whether the pod has claims that are not unprepared yet.
func (a *Actor) HoldsClaims(podUID string) bool { return a.Claims != nil && a.Claims.Holds(podUID) }

// claimDevices puts what the container gets of its pod's claims into its
// configuration.
func (a *Actor) claimDevices(pod *v1.Pod, container *v1.Container, config *runtimeapi.ContainerConfig) error {
	if a.Claims == nil {
		return nil
	}
	devices, err := a.Claims.CDIDevices(pod, container)
	if err != nil {
		return &podspec.ConfigError{Message: err.Error()}
	}
	config.CDIDevices = append(config.CDIDevices, devices...)
	return nil
}
