package gc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/usage"
)

// node is a runtime, its images, pods and disk, and what was done.
type node struct {
	mu         sync.Mutex
	images     []*runtimeapi.Image
	containers []*runtimeapi.Container
	sandboxes  []*runtimeapi.PodSandbox
	volumes    []string
	fs         usage.FS
	stuck      string // what cannot be removed
	did        []string
	counted    []string
}

func (n *node) ImageCollected(reason string) { n.counted = append(n.counted, reason) }

func (n *node) do(what string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.did = append(n.did, what)
	if n.stuck != "" && strings.Contains(what, n.stuck) {
		return errors.New("it is stuck")
	}
	return nil
}

func (n *node) done() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.did)
}

func (n *node) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: n.images}, nil
}

func (n *node) ImageStatus(_ context.Context, in *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
	for _, i := range n.images {
		if slices.Contains(i.GetRepoTags(), in.GetImage().GetImage()) {
			return &runtimeapi.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

func (n *node) RemoveImage(_ context.Context, in *runtimeapi.RemoveImageRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveImageResponse, error) {
	id := in.GetImage().GetImage()
	if err := n.do("remove image " + id); err != nil {
		return nil, err
	}
	n.images = slices.DeleteFunc(n.images, func(i *runtimeapi.Image) bool { return i.GetId() == id })
	return &runtimeapi.RemoveImageResponse{}, nil
}

func (n *node) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: n.containers}, nil
}

func (n *node) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: n.sandboxes}, nil
}

func (n *node) RemoveContainer(_ context.Context, in *runtimeapi.RemoveContainerRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	if err := n.do("remove container " + in.GetContainerId()); err != nil {
		return nil, err
	}
	n.containers = slices.DeleteFunc(n.containers, func(c *runtimeapi.Container) bool { return c.GetId() == in.GetContainerId() })
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (n *node) StopPodSandbox(_ context.Context, in *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, n.do("stop sandbox " + in.GetPodSandboxId())
}

func (n *node) RemovePodSandbox(_ context.Context, in *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	return &runtimeapi.RemovePodSandboxResponse{}, n.do("remove sandbox " + in.GetPodSandboxId())
}

func (n *node) RemoveOf(_ context.Context, id string) error {
	return n.do("remove logs of " + id)
}

func (n *node) Owner(uid types.UID) Owner                 { return owners(string(uid)) }
func (n *node) ImageVolumes() []string                    { return n.volumes }
func (n *node) ImageFS(context.Context) (usage.FS, error) { return n.fs, nil }
func (n *node) Node(_, reason, format string, args ...any) {
	_ = n.do(reason + ": " + fmt.Sprintf(format, args...))
}

func image(id string, size uint64) *runtimeapi.Image { return &runtimeapi.Image{Id: id, Size: size} }

func container(id, pod, name, sandbox string, state runtimeapi.ContainerState, created int64) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id: id, PodSandboxId: sandbox, State: state, CreatedAt: created, ImageId: "of-" + id,
		Labels: map[string]string{uidLabel: pod, nameLabel: name},
	}
}

func collector(t *testing.T, n *node, change ...func(*Config)) *Collector {
	t.Helper()
	dir := t.TempDir()
	c := Config{
		Images: ImagePolicy{HighPercent: 85, LowPercent: 80, MinAge: time.Minute}, Containers: ContainerPolicy{MaxPerPodContainer: 1, MaxContainers: -1},
		Record: filepath.Join(dir, "images.json"), PodLogsDir: filepath.Join(dir, "pods"), ContainerLogsDir: filepath.Join(dir, "containers"), Logs: n,
		ImageCollected: n.ImageCollected, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&c)
	}
	collector, err := New(c, n, n, n, n, n)
	if err != nil {
		t.Fatal(err)
	}
	return collector
}

func TestImagesInUsePinnedOrNewStay(t *testing.T) {
	n := &node{
		images: []*runtimeapi.Image{
			image("of-c", 1), image("by-ref", 1), {Id: "pinned", Pinned: true}, {Id: "in-volume", RepoTags: []string{"registry/data:1"}},
			image("unused", 1), image("unused-too", 1),
		},
		containers: []*runtimeapi.Container{container("c", "active", "c", "s", runtimeapi.ContainerState_CONTAINER_EXITED, 1), {Id: "d", ImageRef: "by-ref"}},
		volumes:    []string{"registry/data:1", "registry/nowhere:1"},
	}
	var left []string
	c := collector(t, n, func(c *Config) {
		c.Collected = func(ids []string, _ time.Time) { left = slices.Sorted(slices.Values(ids)) }
	})
	if err := c.unusedImages(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if did := n.done(); did != nil {
		t.Errorf("images that were just pulled are removed: %v", did)
	}
	if err := c.unusedImages(t.Context(), now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"remove image unused", "remove image unused-too"}, n.done()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"by-ref", "in-volume", "of-c", "pinned"}, left); diff != "" {
		t.Errorf("told of what is left (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"space", "space"}, n.counted); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

func TestTheOrderOfUseOutlivesTheAgent(t *testing.T) {
	n := &node{images: []*runtimeapi.Image{image("of-a", 60), image("of-b", 60)}, fs: usage.FS{Capacity: 1000, Available: 150},
		containers: []*runtimeapi.Container{container("a", "active", "c", "s", runtimeapi.ContainerState_CONTAINER_RUNNING, 1)}}
	record := filepath.Join(t.TempDir(), "images.json")
	keep := func(c *Config) { c.Record = record }
	if err := os.WriteFile(filepath.Join(filepath.Dir(record), ".tmp-images.json123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := collector(t, n, keep).unused(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	n.containers = []*runtimeapi.Container{container("b", "active", "c", "s", runtimeapi.ContainerState_CONTAINER_RUNNING, 1)}
	if _, err := collector(t, n, keep).unused(t.Context(), now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	n.containers = nil
	if err := collector(t, n, keep).images(t.Context(), now.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"remove image of-a"}, n.done()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	if files, err := filepath.Glob(filepath.Join(filepath.Dir(record), ".tmp-*")); err != nil || files != nil {
		t.Errorf("left: %v, %v", files, err)
	}
}

func TestARecordThatCannotBeReadMakesImagesNew(t *testing.T) {
	for _, content := range []string{"{", "null", `{"x": 1}`} {
		n := &node{images: []*runtimeapi.Image{image("unused", 1)}}
		c := collector(t, n)
		if err := os.WriteFile(c.config.Record, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := c.unusedImages(t.Context(), now); err != nil || n.done() != nil {
			t.Errorf("%s: %v, %v", content, err, n.done())
		}
	}
}

func TestWhatCannotBeFreedIsSaid(t *testing.T) {
	full := usage.FS{Capacity: 10 << 30, Available: 1 << 30}
	message := "Insufficient free disk space on the node's image filesystem (90% of 10.0 GiB used). Failed to free sufficient space by deleting unused images (freed 7 bytes). Investigate disk usage, as it could be used by active images, logs, volumes, or other data."
	for name, test := range map[string]struct {
		fs    usage.FS
		stuck string
		did   []string
		err   string
	}{
		"too little":  {full, "", []string{"remove image unused", "FreeDiskSpaceFailed: " + message}, message},
		"stuck":       {full, "unused", []string{"remove image unused"}, "wanted to free 1073741824 bytes, but freed 0: remove image unused: it is stuck"},
		"no capacity": {usage.FS{}, "", []string{"InvalidDiskCapacity: invalid capacity 0 on image filesystem"}, "invalid capacity 0 on image filesystem"},
		"room enough": {usage.FS{Capacity: 100, Available: 50}, "", nil, ""},
	} {
		n := &node{images: []*runtimeapi.Image{image("unused", 7)}, fs: test.fs, stuck: test.stuck}
		c := collector(t, n, func(c *Config) { c.Images.MinAge = 0 })
		if _, err := c.unused(t.Context(), now.Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		err := c.images(t.Context(), now)
		if got := fmt.Sprint(err); (test.err == "" && err != nil) || (test.err != "" && got != test.err) {
			t.Errorf("%s: error %v, want %s", name, err, test.err)
		}
		if diff := cmp.Diff(test.did, n.done()); diff != "" {
			t.Errorf("%s: done (-want +got):\n%s", name, diff)
		}
	}
}

func TestOldImagesGoWithoutWantOfSpace(t *testing.T) {
	n := &node{images: []*runtimeapi.Image{image("unused", 7)}, fs: usage.FS{Capacity: 100, Available: 50}}
	c := collector(t, n, func(c *Config) { c.Images = ImagePolicy{HighPercent: 100, LowPercent: 80, MaxAge: time.Hour} })
	for _, after := range []time.Duration{0, time.Hour, time.Hour + time.Second} {
		if err := c.images(t.Context(), now.Add(after)); err != nil {
			t.Fatal(err)
		}
		if gone := n.done() != nil; gone != (after > time.Hour) {
			t.Errorf("after %v: gone %v", after, gone)
		}
	}
	if diff := cmp.Diff([]string{"age"}, n.counted); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

func TestOnlyRepeatedFailuresAreAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &node{} // a disk without capacity
		c := collector(t, n)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		invalid := "InvalidDiskCapacity: invalid capacity 0 on image filesystem"
		want := []string{invalid}
		for range 2 {
			time.Sleep(imagePeriod)
			synctest.Wait()
			if diff := cmp.Diff(want, n.done()); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			want = []string{invalid, invalid, "ImageGCFailed: invalid capacity 0 on image filesystem"}
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestContainersGoThenSandboxesThenLogs(t *testing.T) {
	exited, running, created := runtimeapi.ContainerState_CONTAINER_EXITED, runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_CREATED
	sandbox := func(id, pod string, created int64, state runtimeapi.PodSandboxState) *runtimeapi.PodSandbox {
		return &runtimeapi.PodSandbox{Id: id, CreatedAt: created, State: state, Labels: map[string]string{uidLabel: pod}}
	}
	notReady := runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	n := &node{
		containers: []*runtimeapi.Container{
			container("running", "active", "a", "s1", running, 3), container("before", "active", "a", "s1", exited, 2), container("long before", "active", "a", "s1", exited, 1),
			container("lost", "nobody", "a", "s2", exited, 1), container("lost and made", "nobody", "b", "s2", created, 2), container("lost and running", "nobody2", "a", "s3", running, 1),
			{Id: "somebody's", State: exited, PodSandboxId: "s4"},
		},
		sandboxes: []*runtimeapi.PodSandbox{
			sandbox("s1", "active", 1, runtimeapi.PodSandboxState_SANDBOX_READY), sandbox("s2", "nobody", 1, notReady), sandbox("s3", "nobody2", 1, notReady), {Id: "s4", State: notReady},
		},
	}
	c := collector(t, n)
	logs := func(name string) string { return filepath.Join(c.config.PodLogsDir, name) }
	links := func(name string) string { return filepath.Join(c.config.ContainerLogsDir, name) }
	for _, dir := range []string{logs("ns_gone_nobody/a"), logs("ns_here_active/a"), logs("not-a-pods"), logs("__"), links("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"gone_ns_a-lost.log": "/none", "here_ns_a-running.log": "/none", "here_ns_a-before.log": logs("ns_here_active/a"), "mine.log": "/none", "mine": "/none",
	} {
		if err := os.Symlink(target, links(name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.removeContainers(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"remove logs of long before", "remove container long before", "remove logs of lost", "remove container lost",
		"remove logs of lost and made", "remove container lost and made", "stop sandbox s2", "remove sandbox s2",
	}
	if diff := cmp.Diff(want, n.done()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
	for dir, want := range map[string][]string{c.config.PodLogsDir: {"__", "not-a-pods", "ns_here_active"}, c.config.ContainerLogsDir: {"here_ns_a-before.log", "here_ns_a-running.log", "mine"}} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var left []string
		for _, e := range entries {
			left = append(left, e.Name())
		}
		if diff := cmp.Diff(want, left); diff != "" {
			t.Errorf("left in %s (-want +got):\n%s", dir, diff)
		}
	}
}

func TestOneContainerThatIsStuckHoldsUpNoOther(t *testing.T) {
	exited := runtimeapi.ContainerState_CONTAINER_EXITED
	n := &node{containers: []*runtimeapi.Container{container("one", "nobody", "a", "s", exited, 1), container("two", "nobody", "b", "s", exited, 2)}, stuck: "container one"}
	err := collector(t, n).RemoveDeadContainers(t.Context())
	if err == nil || !strings.Contains(err.Error(), "remove container a (one): it is stuck") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"remove logs of one", "remove container one", "remove logs of two", "remove container two"}, n.done()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
}

func TestAContainerWhoseLogsAreStuckIsComeBackFor(t *testing.T) {
	exited := runtimeapi.ContainerState_CONTAINER_EXITED
	n := &node{containers: []*runtimeapi.Container{container("one", "nobody", "a", "s", exited, 1), container("two", "nobody", "b", "s", exited, 2)}, stuck: "logs of one"}
	err := collector(t, n).RemoveDeadContainers(t.Context())
	if err == nil || !strings.Contains(err.Error(), "remove container a (one): it is stuck") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"remove logs of one", "remove logs of two", "remove container two"}, n.done()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
}

func FuzzNames(f *testing.F) {
	f.Add("default_web_0f1e")
	f.Add("web_default_nginx-abc.log")
	f.Fuzz(func(t *testing.T, name string) {
		if uid, found := logOwner(name); found && (uid == "" || !strings.HasSuffix(name, "_"+uid) || strings.Contains(uid, "_")) {
			t.Errorf("the logs %q are of pod %q", name, uid)
		}
		if id := linkOwner(name); strings.Contains(id, "-") {
			t.Errorf("the link %q is of container %q", name, id)
		}
	})
}

func TestWhoWaitsForACollectionOfImagesGivesUpInTime(t *testing.T) {
	c := collector(t, &node{})
	end, err := c.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.RemoveUnusedImages(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("while another collects: %v", err)
	}
	end()
	if err := c.RemoveUnusedImages(t.Context()); err != nil {
		t.Errorf("once nobody does: %v", err)
	}
}
