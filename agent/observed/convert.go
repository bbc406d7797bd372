package observed

import (
	"encoding/json"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/podspec"
)

func sandboxOf(s *runtimeapi.PodSandboxStatus) Sandbox {
	out := Sandbox{
		ID:        s.GetId(),
		Attempt:   s.GetMetadata().GetAttempt(),
		Ready:     s.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY,
		CreatedAt: nanos(s.GetCreatedAt()),
	}
	if n := s.GetNetwork(); n.GetIp() != "" {
		out.IPs = append(out.IPs, n.GetIp())
		for _, ip := range n.GetAdditionalIps() {
			out.IPs = append(out.IPs, ip.GetIp())
		}
	}
	return out
}

func containerOf(c *runtimeapi.ContainerStatus, sandboxID string) Container {
	out := Container{
		ID:         c.GetId(),
		SandboxID:  sandboxID,
		Name:       c.GetMetadata().GetName(),
		Attempt:    c.GetMetadata().GetAttempt(),
		CreatedAt:  nanos(c.GetCreatedAt()),
		StartedAt:  nanos(c.GetStartedAt()),
		FinishedAt: nanos(c.GetFinishedAt()),
		ExitCode:   c.GetExitCode(),
		Reason:     c.GetReason(),
		Message:    c.GetMessage(),
		Image:      c.GetImage().GetUserSpecifiedImage(),
		ImageRef:   c.GetImageRef(),
		Hash:       c.GetAnnotations()[podspec.AnnotationHash],
		LogPath:    c.GetLogPath(),
	}
	if out.Image == "" {
		out.Image = c.GetImage().GetImage()
	}
	switch c.GetState() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		out.State = Created
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		out.State = Running
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		out.State = Exited
	default:
		out.State = Unknown
	}
	if u := c.GetUser().GetLinux(); u != nil {
		out.User = &User{UID: u.GetUid(), GID: u.GetGid(), SupplementalGroups: u.GetSupplementalGroups()}
	}
	annotated(c, &out)
	return out
}

// annotated reads what the agent left on a container for a time when it has
// nothing else to go by. The names are the kubelet's, so that either can take
// over the other's containers.
func annotated(c *runtimeapi.ContainerStatus, out *Container) {
	// A malformed annotation is somebody else's container: no back-off known.
	if d, err := time.ParseDuration(c.GetAnnotations()[podspec.AnnotationBackoff]); err == nil {
		out.Backoff = d
	}
	if n, err := strconv.ParseUint(c.GetAnnotations()[podspec.AnnotationRound], 10, 32); err == nil {
		out.Round = uint32(n)
	}
	if path := c.GetAnnotations()[podspec.AnnotationTerminationMessagePath]; path != "" {
		for _, m := range c.GetMounts() {
			if m.GetContainerPath() == path {
				out.TerminationLog = m.GetHostPath()
			}
		}
	}
	if s, err := strconv.ParseInt(c.GetAnnotations()[podspec.AnnotationTerminationGracePeriod], 10, 64); err == nil {
		out.GracePeriod = &s
	}
	var hook v1.LifecycleHandler
	if json.Unmarshal([]byte(c.GetAnnotations()[podspec.AnnotationPreStopHandler]), &hook) == nil {
		out.PreStop = &hook
	}
}

// sandboxFacts is the runtime's whole answer about one sandbox.
type sandboxFacts struct {
	sandbox    *runtimeapi.PodSandboxStatus
	containers []*runtimeapi.ContainerStatus
}

// assemble makes one observation of all that was found of a pod.
func assemble(uid string, found []sandboxFacts, at time.Time) Pod {
	p := Pod{UID: uid, At: at}
	for _, f := range found {
		p.Namespace, p.Name = f.sandbox.GetMetadata().GetNamespace(), f.sandbox.GetMetadata().GetName()
		p.Sandboxes = append(p.Sandboxes, sandboxOf(f.sandbox))
		for _, c := range f.containers {
			p.Containers = append(p.Containers, containerOf(c, f.sandbox.GetId()))
		}
	}
	sortNewestFirst(&p)
	return p
}

// sortNewestFirst orders by creation, and by attempt where the clock was too
// coarse or was set back.
func sortNewestFirst(p *Pod) {
	slices.SortStableFunc(p.Sandboxes, func(a, b Sandbox) int {
		if a.Attempt != b.Attempt {
			return int(b.Attempt) - int(a.Attempt)
		}
		return b.CreatedAt.Compare(a.CreatedAt)
	})
	slices.SortStableFunc(p.Containers, func(a, b Container) int {
		if a.Name == b.Name && a.Attempt != b.Attempt {
			return int(b.Attempt) - int(a.Attempt)
		}
		return b.CreatedAt.Compare(a.CreatedAt)
	})
}

func nanos(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}
