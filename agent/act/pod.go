package act

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/plan"
	"github.com/berth-io/berth/agent/podspec"
	"github.com/berth-io/berth/agent/timeline"
	"github.com/berth-io/berth/csi/volume"
	"github.com/berth-io/berth/internal/failpoint"
)

// SetUp makes all that a pod needs before its first container: cgroup,
// directories, volumes and sandbox. It is level driven: called again it repairs.
// The volumes are returned also where the sandbox could not be made.
//
// Volumes and sandbox do not need each other. The kubelet makes one after the
// other; here they are made at the same time, unless it is known that a volume
// makes difficulties (again) or it may wait for others for long. Nothing is seen
// of a sandbox whose volumes are not there: it is removed again.
func (a *Actor) SetUp(ctx context.Context, pod Pod, attempt uint32, again bool) (map[string]volume.Mounted, error) {
	if err := a.prepare(pod); err != nil {
		return nil, err
	}
	if !again && atHand(pod.Pod) {
		return a.setUpTogether(ctx, pod, attempt)
	}
	mounted, err := a.mount(ctx, pod, pod.Timeline.Begin(timeline.Volumes, ""))
	if err != nil {
		return nil, err
	}
	_, err = a.createSandbox(ctx, pod, attempt, func() {})
	return mounted, err
}

func (a *Actor) setUpTogether(ctx context.Context, pod Pod, attempt uint32) (map[string]volume.Mounted, error) {
	var (
		volumes    sync.WaitGroup
		mounted    map[string]volume.Mounted
		notMounted error
	)
	sandbox, err := a.createSandbox(ctx, pod, attempt, func() {
		end := pod.Timeline.Begin(timeline.Volumes, "")
		volumes.Go(func() { mounted, notMounted = a.mount(ctx, pod, end) })
	})
	volumes.Wait()
	if notMounted == nil {
		return mounted, err
	}
	if err == nil && ctx.Err() == nil { // otherwise there is none, or who ends the pod ends it
		if err := a.removeInVain(ctx, sandbox); err != nil {
			return nil, failed("FailedMount", errors.Join(notMounted, err))
		}
	}
	return nil, notMounted
}

// removeInVain removes a sandbox whose pod cannot use it yet.
func (a *Actor) removeInVain(ctx context.Context, sandbox string) error {
	if err := a.StopSandbox(ctx, sandbox); err != nil {
		return err
	}
	return a.RemoveSandbox(ctx, sandbox)
}

// atHand tells whether all of a pod's volumes are made from what the node has
// or the API server knows.
func atHand(pod *v1.Pod) bool {
	return !slices.ContainsFunc(pod.Spec.Volumes, func(v v1.Volume) bool {
		return v.EmptyDir == nil && v.HostPath == nil && v.ConfigMap == nil && v.Secret == nil &&
			v.DownwardAPI == nil && v.Projected == nil && v.Image == nil
	})
}

// Prepare makes what the containers of a sandbox need that is there: cgroup,
// directories, volumes. It is level driven: called again it repairs.
func (a *Actor) Prepare(ctx context.Context, pod Pod) (map[string]volume.Mounted, error) {
	if err := a.prepare(pod); err != nil {
		return nil, err
	}
	return a.mount(ctx, pod, pod.Timeline.Begin(timeline.Volumes, ""))
}

func (a *Actor) prepare(pod Pod) error {
	end := pod.Timeline.Begin(timeline.Cgroup, "")
	_, err := a.Cgroups.EnsurePod(pod.cgroupPod())
	end(err)
	if err != nil {
		a.Events.Pod(pod.Pod, v1.EventTypeWarning, "FailedCreatePodContainer", "unable to ensure pod container exists: %v", err)
		return failed("FailedCreatePodContainer", err)
	}
	failpoint.Hit("agent/cgroup-made")
	if err := a.directories(pod.Pod); err != nil {
		return failed("FailedToMakePodDataDirectories", err)
	}
	return nil
}

// mount sets up the volumes, and calls end with what came of it.
func (a *Actor) mount(ctx context.Context, pod Pod, end func(error)) (map[string]volume.Mounted, error) {
	call, cancel := withVolumeTimeout(ctx)
	defer cancel()
	mounted, err := a.Volumes.SetUp(call, a.volumePod(pod))
	end(err)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		a.tellVolumes(pod.Pod, err)
		return nil, failed("FailedMount", err)
	}
	failpoint.Hit("agent/volumes-up")
	return mounted, nil
}

// tellVolumes makes an event of each volume that could not be set up, in the
// kubelet's words (pkg/volume/util/types, GeneratedOperations).
func (a *Actor) tellVolumes(pod *v1.Pod, err error) {
	each := volume.Errors(err)
	if len(each) == 0 {
		a.Events.Pod(pod, v1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed: %v", err)
	}
	for _, e := range each {
		a.Events.Pod(pod, v1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for volume %q : %v", e.Volume, e.Err)
	}
}

// volumeTimeout bounds one attempt to set volumes up or to release them: a file
// server that does not answer is told, and tried again.
const volumeTimeout = 2 * time.Minute

func withVolumeTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, volumeTimeout, fmt.Errorf("not done within %s", volumeTimeout))
}

func (a *Actor) volumePod(pod Pod) volume.Pod {
	return volume.Pod{
		Pod:         pod.Pod,
		HostIPs:     a.config.Node.HostIPs,
		PodIPs:      pod.IPs,
		Allocatable: a.config.Node.Allocatable,
	}
}

// Refresh brings configMap, secret, downwardAPI and projected volumes of a
// running pod up to date.
func (a *Actor) Refresh(ctx context.Context, pod Pod) error {
	ctx, cancel := withVolumeTimeout(ctx)
	defer cancel()
	if _, err := a.Volumes.SetUp(ctx, a.volumePod(pod)); err != nil {
		return failed("FailedMount", err)
	}
	return nil
}

func (a *Actor) directories(pod *v1.Pod) error {
	dir := a.podDir(string(pod.UID))
	for _, d := range []string{dir, filepath.Join(dir, "volumes"), filepath.Join(dir, "plugins")} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return fmt.Errorf("make the pod's directory: %w", err)
		}
	}
	if err := os.MkdirAll(podspec.LogDir(a.config.Node.PodLogsDir, pod), 0o755); err != nil {
		return fmt.Errorf("make the pod's log directory: %w", err)
	}
	return nil
}

// Release gives back what a pod that has ended holds: volumes and cgroup. Its
// containers' records and logs stay to be looked at.
func (a *Actor) Release(ctx context.Context, podUID string) error {
	ctx, cancel := withVolumeTimeout(ctx)
	defer cancel()
	if err := a.Volumes.TearDown(ctx, podUID); err != nil {
		return fmt.Errorf("release volumes: %w", err)
	}
	failpoint.Hit("agent/volumes-down")
	if err := a.Cgroups.RemovePod(ctx, podUID); err != nil {
		return fmt.Errorf("remove the pod's cgroup: %w", err)
	}
	failpoint.Hit("agent/cgroup-removed")
	return nil
}

// Forget removes the last traces of a pod whose sandboxes are gone: its
// directory and its logs. logDir is empty where it is not known.
func (a *Actor) Forget(podUID, logDir string) error {
	dir := a.podDir(podUID)
	// The volumes were torn down and verified; what is left are files of ours.
	// Remove rather than RemoveAll guards what should not be there.
	for _, sub := range []string{"volumes", "volume-subpaths"} {
		if err := removeEmptyTree(filepath.Join(dir, sub)); err != nil {
			return fmt.Errorf("remove the pod's directory: %w (unmount and remove what is in it, or wait: it is tried again)", err)
		}
	}
	if err := removeUnmounted(dir); err != nil {
		return fmt.Errorf("remove the pod's directory: %w", err)
	}
	failpoint.Hit("agent/directory-removed")
	if logDir == "" {
		return nil
	}
	if err := removeUnmounted(logDir); err != nil {
		return fmt.Errorf("remove the pod's logs: %w", err)
	}
	return a.removeLinks(logDir)
}

// removeUnmounted removes a directory unless somebody has mounted something
// below it: what is mounted there is not the pod's to lose.
func removeUnmounted(dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("look for mounts below %s: %w", dir, err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is mounted: unmount it, then the removal goes on", mounts[0].Mountpoint)
	}
	return os.RemoveAll(dir)
}

// removeEmptyTree removes a directory tree that holds no file.
func removeEmptyTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() {
			return fmt.Errorf("%s is still there", filepath.Join(dir, e.Name()))
		}
		if err := removeEmptyTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return os.Remove(dir)
}

// LogDir is the directory of a pod's logs.
func (a *Actor) LogDir(pod *v1.Pod) string {
	return podspec.LogDir(a.config.Node.PodLogsDir, pod)
}

// asError makes an *Error of what came back, for reasons that are the caller's.
func asError(reason string, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	return &Error{Waiting: plan.Waiting{Reason: reason, Message: message(err)}}
}
