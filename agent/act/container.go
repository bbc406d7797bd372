package act

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berth-io/berth/agent/images"
	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/qos"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/csi/volume"
	"github.com/berth-io/berth/internal/failpoint"
)

// StartContainer brings one container up: image, create, start, postStart.
// An error is an *Error, or ctx's.
func (a *Actor) StartContainer(ctx context.Context, pod Pod, s plan.StartContainer) error {
	sandbox, err := a.sandboxConfig(ctx, pod, pod.Attempt)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return failed("CreateContainerConfigError", err)
	}
	image, err := a.image(ctx, pod, s, sandbox, s.Container.Image, s.Container.ImagePullPolicy)
	if err != nil {
		return err
	}
	volumes, err := a.volumeImages(ctx, pod, s, sandbox)
	if err != nil {
		return err
	}
	config, err := a.containerConfig(ctx, pod, s, pulled{own: image, volumes: volumes}, sandbox)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		reason := "CreateContainerError"
		var mistake *podspec.ConfigError
		if errors.As(err, &mistake) {
			reason = "CreateContainerConfigError"
			if mistake.Err != nil {
				a.config.Log.Warn("a container's configuration cannot be used", "pod", pod.Namespace+"/"+pod.Name, "container", s.Container.Name, "err", mistake.Err)
			}
		}
		a.tell(pod, s, v1.EventTypeWarning, "Failed", "Error: %s", message(err))
		return failed(reason, err)
	}
	id, err := a.create(ctx, pod, s, sandbox, config)
	if len(volumes) > 0 && ctx.Err() == nil && a.config.ImageVolumes != nil {
		a.config.ImageVolumes(len(volumes), err == nil || !strings.Contains(err.Error(), crierrors.ErrImageVolumeMountFailed.Error()))
	}
	if err != nil {
		return err
	}
	if err := a.start(ctx, pod, s, id); err != nil {
		return err
	}
	a.link(pod.Pod, s.Container.Name, id, filepath.Join(sandbox.GetLogDirectory(), config.GetLogPath()))
	return a.postStart(ctx, pod, s, id)
}

func (a *Actor) image(ctx context.Context, pod Pod, s plan.StartContainer, sandbox *runtimeapi.PodSandboxConfig, ref string, policy v1.PullPolicy) (*runtimeapi.Image, error) {
	image, err := a.Images.Ensure(ctx, images.Request{
		Pod: pod.Pod, Container: s.Container, Init: s.Init, Sandbox: sandbox, Image: ref, Policy: policy,
		Pulling: func() func(error) { return pod.Timeline.Begin(timeline.Pull, s.Container.Name) },
	})
	var missing *images.Error
	if errors.As(err, &missing) {
		return nil, &Error{Waiting: plan.Waiting{Reason: missing.Reason, Message: missing.Message}, RetryAt: missing.RetryAt}
	}
	return image, err
}

// volumeImages makes sure of the images of the image volumes that a container
// mounts, by the volumes' names. A volume nobody mounts is not pulled for.
func (a *Actor) volumeImages(ctx context.Context, pod Pod, s plan.StartContainer, sandbox *runtimeapi.PodSandboxConfig) (map[string]*runtimeapi.ImageSpec, error) {
	specs := map[string]*runtimeapi.ImageSpec{}
	for _, m := range s.Container.VolumeMounts {
		source := imageSource(pod.Pod, m.Name)
		if source == nil || specs[m.Name] != nil {
			continue
		}
		image, err := a.image(ctx, pod, s, sandbox, source.Reference, source.PullPolicy)
		if err != nil {
			return nil, err
		}
		specs[m.Name] = &runtimeapi.ImageSpec{Image: image.GetId(), UserSpecifiedImage: source.Reference}
	}
	return specs, nil
}

func imageSource(pod *v1.Pod, volume string) *v1.ImageVolumeSource {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == volume {
			return pod.Spec.Volumes[i].Image
		}
	}
	return nil
}

// pulled are the images of one container: its own, and those of the image
// volumes that it mounts, by the volumes' names.
type pulled struct {
	own     *runtimeapi.Image
	volumes map[string]*runtimeapi.ImageSpec
}

func (a *Actor) containerConfig(ctx context.Context, pod Pod, s plan.StartContainer, images pulled, sandbox *runtimeapi.PodSandboxConfig) (*runtimeapi.ContainerConfig, error) {
	c := podspec.Container{
		Pod: pod.Pod, Container: s.Container, Attempt: s.Attempt, Round: s.Round, PodIPs: pod.IPs, Target: s.Target,
		Image: images.own, ImageRef: images.own.GetId(),
		Resources:     qos.ContainerResources(pod.Pod, s.Container, a.Cgroups.Node()),
		UserNamespace: podspec.UserNamespace(sandbox),
		EnvFile: func(name, path string) ([]byte, error) {
			vol, ok := pod.Mounted[name]
			if !ok {
				return nil, volume.ErrNotFound
			}
			return volume.ReadFile(vol, path)
		},
	}
	if s.Backoff > 0 {
		c.Backoff = s.Backoff.String()
	}
	if a.Cluster != nil && !manifest.Static(pod.Pod) {
		services, err := a.Cluster.Services()
		if err != nil {
			return nil, err
		}
		c.ServiceEnv = podspec.ServiceEnv(pod.Pod, services)
	}
	env, err := podspec.Env(ctx, c, a.config.Node, a.Objects)
	if err != nil {
		return nil, err
	}
	sources, err := a.mountSources(ctx, pod, s)
	if err != nil {
		return nil, err
	}
	sources.Images = images.volumes
	if c.Mounts, err = podspec.VolumeMounts(s.Container, env, sources); err != nil {
		return nil, err
	}
	config, err := podspec.ContainerConfig(ctx, c, a.config.Node, a.Objects)
	if err != nil {
		return nil, err
	}
	if err := a.claimDevices(pod.Pod, s.Container, config); err != nil {
		return nil, err
	}
	if a.Exclusive == nil {
		return config, nil
	}
	if err := a.Exclusive.PreStart(ctx, pod.Pod, s.Container); err != nil {
		return nil, err
	}
	a.Exclusive.Apply(pod.Pod, s.Container, config)
	return config, nil
}

// mountSources makes the files that a container mounts beside its volumes.
func (a *Actor) mountSources(ctx context.Context, pod Pod, s plan.StartContainer) (podspec.MountSources, error) {
	name := s.Container.Name
	hosts, err := a.hostsFile(pod)
	if err != nil {
		return podspec.MountSources{}, err
	}
	termination, err := a.terminationLog(pod, name)
	if err != nil {
		return podspec.MountSources{}, err
	}
	if err := os.MkdirAll(filepath.Join(podspec.LogDir(a.config.Node.PodLogsDir, pod.Pod), name), 0o755); err != nil {
		return podspec.MountSources{}, fmt.Errorf("make the container's log directory: %w", err)
	}
	if err := a.Volumes.CleanSubPaths(ctx, string(pod.UID), name); err != nil {
		return podspec.MountSources{}, fmt.Errorf("release the subPaths of the container's last run: %w", err)
	}
	recursive, err := a.recursiveReadOnly(ctx, pod.Pod, s.Container)
	if err != nil {
		return podspec.MountSources{}, err
	}
	return podspec.MountSources{
		Volumes:           pod.Mounted,
		HostsFile:         hosts,
		TerminationLog:    termination,
		RecursiveReadOnly: recursive,
		SubPath: func(index int, vol volume.Mounted, subPath string, readOnly bool) (string, error) {
			return a.Volumes.SubPath(ctx, a.volumePod(pod), name, index, vol, subPath, readOnly)
		},
	}, nil
}

// hostsFile writes the pod's /etc/hosts, KUBELET/pods/UID/etc-hosts.
func (a *Actor) hostsFile(pod Pod) (string, error) {
	var base []byte
	if pod.Spec.HostNetwork {
		var err error
		if base, err = os.ReadFile("/etc/hosts"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read the host's hosts file: %w", err)
		}
	}
	content, err := podspec.HostsFile(pod.Pod, pod.IPs, a.config.Node.ClusterDomain, base)
	if err != nil {
		return "", err
	}
	path := filepath.Join(a.podDir(string(pod.UID)), "etc-hosts")
	old, err := os.ReadFile(path)
	if err == nil && string(old) == string(content) {
		return path, nil
	}
	// In place, for running containers have it mounted, and without waiting for
	// the disk: what a crash leaves is compared and mended before the next start.
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return "", fmt.Errorf("write the pod's hosts file: %w", err)
	}
	return path, nil
}

// terminationLog makes the file behind terminationMessagePath, a new one for
// each run of a container: KUBELET/pods/UID/containers/NAME/RANDOM.
func (a *Actor) terminationLog(pod Pod, container string) (string, error) {
	dir := filepath.Join(a.podDir(string(pod.UID)), "containers", container)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make the container's directory: %w", err)
	}
	var b [4]byte
	rand.Read(b[:])
	path := filepath.Join(dir, hex.EncodeToString(b[:]))
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return "", fmt.Errorf("make the termination log: %w", err)
	}
	// Whatever user the container has must be able to write it; the umask
	// must not say otherwise.
	if err := os.Chmod(path, 0o666); err != nil {
		return "", fmt.Errorf("make the termination log writable: %w", err)
	}
	return path, nil
}

func (a *Actor) create(ctx context.Context, pod Pod, s plan.StartContainer, sandbox *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) (string, error) {
	leave, err := a.turns.enter(ctx, createStage)
	if err != nil {
		return "", err
	}
	defer leave()
	call, cancel := a.call(ctx)
	defer cancel()
	end := pod.Timeline.Begin(timeline.Create, s.Container.Name)
	resp, err := a.Containers.CreateContainer(call, &runtimeapi.CreateContainerRequest{
		PodSandboxId: pod.Sandbox, Config: config, SandboxConfig: sandbox,
	})
	err = why(ctx, call, err)
	end(plain(err))
	if err != nil && ctx.Err() != nil {
		return "", err
	}
	if err != nil {
		a.tell(pod, s, v1.EventTypeWarning, "Failed", "Error: %s", message(err))
		return "", asError("CreateContainerError", err)
	}
	failpoint.Hit("agent/container-created")
	a.tell(pod, s, v1.EventTypeNormal, "Created", "Container created")
	return resp.GetContainerId(), nil
}

func (a *Actor) start(ctx context.Context, pod Pod, s plan.StartContainer, id string) error {
	leave, err := a.turns.enter(ctx, startStage)
	if err != nil {
		return err
	}
	defer leave()
	call, cancel := a.call(ctx)
	defer cancel()
	end := pod.Timeline.Begin(timeline.Start, s.Container.Name)
	_, err = a.Containers.StartContainer(call, &runtimeapi.StartContainerRequest{ContainerId: id})
	err = why(ctx, call, err)
	end(plain(err))
	if err != nil && ctx.Err() != nil {
		return err
	}
	if err != nil {
		a.tell(pod, s, v1.EventTypeWarning, "Failed", "Error: %s", message(err))
		return asError("RunContainerError", err)
	}
	failpoint.Hit("agent/container-started")
	if a.Exclusive != nil {
		a.Exclusive.Poke()
	}
	a.tell(pod, s, v1.EventTypeNormal, "Started", "Container started")
	return nil
}

// postStart runs the hook; a container whose hook failed is killed, and its
// restart policy decides what follows.
func (a *Actor) postStart(ctx context.Context, pod Pod, s plan.StartContainer, id string) error {
	if s.Container.Lifecycle == nil || s.Container.Lifecycle.PostStart == nil {
		return nil
	}
	end := pod.Timeline.Begin(timeline.PostHook, s.Container.Name)
	msg, err := a.Hooks.Run(ctx, pod.Pod, s.Container, s.Container.Lifecycle.PostStart, id, pod.FirstIP())
	end(err)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// What the hook said may be secret; it is for the node's log alone.
	a.config.Log.Warn("a postStart hook failed", "pod", pod.Namespace+"/"+pod.Name, "container", s.Container.Name, "output", msg, "err", err)
	a.tell(pod, s, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	target := Target{Pod: pod, Spec: s.Container, Container: observed.Container{ID: id, Name: s.Container.Name}}
	target.Deadline = graceFrom(pod.Pod, nil)
	if killErr := a.Kill(ctx, target, plan.KillContainer{ID: id, Name: s.Container.Name, Reason: "FailedPostStartHook", Message: "FailedPostStartHook"}, nil); killErr != nil {
		return failed("PostStartHookError", errors.Join(err, killErr))
	}
	return failed("PostStartHookError", err)
}

// RemoveContainer removes a dead container, its logs and its link. The files go
// first: as long as the container is listed, somebody will come back for them.
func (a *Actor) RemoveContainer(ctx context.Context, pod *v1.Pod, c observed.Container) error {
	if c.LogPath != "" {
		if err := a.Logs.Remove(ctx, c.LogPath); err != nil {
			return fmt.Errorf("remove what container %s left: %w", c.ID, err)
		}
	}
	for _, path := range []string{c.TerminationLog, a.linkPath(pod, c.Name, c.ID)} {
		if path == "" {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what container %s left: %w", c.ID, err)
		}
	}
	failpoint.Hit("agent/container-files-removed")
	call, cancel := a.call(ctx)
	defer cancel()
	if _, err := a.Containers.RemoveContainer(call, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("remove container %s: %w", c.ID, plain(why(ctx, call, err)))
	}
	failpoint.Hit("agent/container-removed")
	return nil
}

func (a *Actor) tell(pod Pod, s plan.StartContainer, eventType, reason, format string, args ...any) {
	a.Events.Container(pod.Pod, s.Container.Name, s.Init, eventType, reason, format, args...)
}
