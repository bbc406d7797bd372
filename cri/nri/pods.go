package nri

import (
	"context"
	"fmt"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/store"
)

// RunPod tells of a pod that is about to be ready. An error is a plugin's
// refusal.
func (n *NRI) RunPod(ctx context.Context, sb store.Sandbox) error {
	err := n.ask(func(a *adaptation.Adaptation) error {
		m := n.pod(sb)
		n.tell(sb.ID, told{pod: m})
		return a.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: m})
	})
	if err != nil {
		return fmt.Errorf("an NRI plugin refuses the pod: %w", err)
	}
	return nil
}

// UpdatePod asks about new limits of a pod. An error is a plugin's refusal.
func (n *NRI) UpdatePod(ctx context.Context, sb store.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error {
	err := n.ask(func(a *adaptation.Adaptation) error {
		_, err := a.UpdatePodSandbox(ctx, &api.UpdatePodSandboxRequest{
			Pod: n.pod(sb), OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(resources),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("an NRI plugin refuses the pod's limits: %w", err)
	}
	return nil
}

// PodUpdated tells that a pod has new limits.
func (n *NRI) PodUpdated(ctx context.Context, sb store.Sandbox) {
	n.report("update of a pod", sb.ID, n.ask(func(a *adaptation.Adaptation) error {
		return a.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: n.pod(sb)})
	}))
}

// PodStopped tells, once, that nothing runs in a pod any more.
func (n *NRI) PodStopped(ctx context.Context, sb store.Sandbox) {
	if !n.stop(sb.ID) {
		return
	}
	n.report("stop of a pod", sb.ID, n.ask(func(a *adaptation.Adaptation) error {
		return a.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: n.pod(sb)})
	}))
}

// PodRemoved tells, once, that a pod is gone.
func (n *NRI) PodRemoved(ctx context.Context, sb store.Sandbox) {
	n.PodStopped(ctx, sb)
	if !n.knows(sb.ID) {
		return
	}
	n.report("removal of a pod", sb.ID, n.ask(func(a *adaptation.Adaptation) error {
		return a.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: n.pod(sb)})
	}))
	n.forget(sb.ID)
}

// report is for an error that cannot change what has happened.
func (n *NRI) report(what, id string, err error) {
	if err != nil {
		n.log.Warn("an NRI plugin did not take the "+what, "id", id, "error", err)
	}
}
