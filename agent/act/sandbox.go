package act

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/internal/failpoint"
)

// createSandbox makes a pod's sandbox and returns its ID. Before that the pod's
// claims are prepared; begun is called when the pod's turn has come.
func (a *Actor) createSandbox(ctx context.Context, pod Pod, attempt uint32, begun func()) (string, error) {
	if err := a.prepareClaims(ctx, pod); err != nil {
		return "", err
	}
	config, err := a.sandboxConfig(ctx, pod, attempt)
	if ctx.Err() != nil && err != nil {
		return "", err
	}
	handler := ""
	if err == nil {
		handler, err = a.runtimeHandler(pod.Pod)
	}
	if err != nil {
		a.Events.Pod(pod.Pod, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %s", message(err))
		return "", failed("CreatePodSandboxError", err)
	}
	for _, w := range a.dnsWarnings(pod.Pod) {
		a.Events.Pod(pod.Pod, v1.EventTypeWarning, w.Reason, "%s", w.Message)
	}
	leave, err := a.turns.enter(ctx, sandboxStage)
	if err != nil {
		return "", err
	}
	defer leave()
	begun()
	call, cancel := a.call(ctx)
	defer cancel()
	end := pod.Timeline.Begin(timeline.Sandbox, "")
	resp, err := a.Sandboxes.RunPodSandbox(call, &runtimeapi.RunPodSandboxRequest{
		Config:         config,
		RuntimeHandler: handler,
	})
	err = why(ctx, call, err)
	end(plain(err))
	if ctx.Err() != nil && err != nil {
		return "", err
	}
	if err != nil {
		a.Events.Pod(pod.Pod, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %s", message(err))
		return "", failed("CreatePodSandboxError", err)
	}
	failpoint.Hit("agent/sandbox-made")
	return resp.GetPodSandboxId(), nil
}

// StopSandbox ends what runs in a sandbox and gives its network back.
func (a *Actor) StopSandbox(ctx context.Context, id string) error {
	call, cancel := a.call(ctx)
	defer cancel()
	if _, err := a.Sandboxes.StopPodSandbox(call, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, plain(why(ctx, call, err)))
	}
	failpoint.Hit("agent/sandbox-stopped")
	return nil
}

// RemoveSandbox removes a sandbox and everything the runtime keeps of it.
func (a *Actor) RemoveSandbox(ctx context.Context, id string) error {
	call, cancel := a.call(ctx)
	defer cancel()
	if _, err := a.Sandboxes.RemovePodSandbox(call, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, plain(why(ctx, call, err)))
	}
	failpoint.Hit("agent/sandbox-removed")
	return nil
}

// sandboxConfig is made anew for each call that wants it: it follows from the
// pod, the attempt and the node. The cgroup that it names was made by prepare.
func (a *Actor) sandboxConfig(ctx context.Context, pod Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	parent, err := a.Cgroups.PodParent(pod.cgroupPod())
	if err != nil {
		return nil, err
	}
	userNamespace, err := a.userNamespace(ctx, pod.Pod)
	if err != nil {
		return nil, err
	}
	return podspec.Sandbox(pod.Pod, attempt, a.config.Node, parent, userNamespace)
}

// dnsWarnings tells what a pod's DNS policy could not give. On a node without
// a cluster nobody misses the cluster's name servers.
func (a *Actor) dnsWarnings(pod *v1.Pod) []podspec.Warning {
	if len(a.config.Node.ClusterDNS) == 0 {
		return nil
	}
	_, warnings := podspec.DNS(pod, a.config.Node)
	return warnings
}

// runtimeHandler is the handler that the pod's RuntimeClass names. Without a
// cluster there are no RuntimeClasses, and its name is the handler's.
func (a *Actor) runtimeHandler(pod *v1.Pod) (string, error) {
	class := pod.Spec.RuntimeClassName
	switch {
	case class == nil || *class == "":
		return "", nil
	case a.Cluster == nil || manifest.Static(pod):
		return *class, nil
	}
	return a.Cluster.Handler(*class)
}
