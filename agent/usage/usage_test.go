package usage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// write makes files below dir, by name and content.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMemoryOfACgroup(t *testing.T) {
	for name, test := range map[string]struct {
		unified bool
		files   map[string]string
		want    Memory
	}{
		"v1": {false, map[string]string{"memory.usage_in_bytes": "1000\n", "memory.limit_in_bytes": "4096\n", "memory.stat": "inactive_file 1\ntotal_inactive_file 300\n"}, Memory{4096, 1000, 700}},
		"v1 without a limit": {false, map[string]string{"memory.usage_in_bytes": "1000\n", "memory.limit_in_bytes": "9223372036854771712\n", "memory.stat": "total_inactive_file 300\n"},
			Memory{0, 1000, 700}},
		"v2":                 {true, map[string]string{"memory.current": "1000\n", "memory.max": "4096\n", "memory.stat": "anon 5\ninactive_file 300\n"}, Memory{4096, 1000, 700}},
		"v2 without a limit": {true, map[string]string{"memory.current": "1000\n", "memory.max": "max\n", "memory.stat": "inactive_file 300\n"}, Memory{0, 1000, 700}},
		"more idle than used": {true, map[string]string{"memory.current": "100\n", "memory.max": "max\n", "memory.stat": "inactive_file 300\n"},
			Memory{0, 100, 0}},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "kubepods"), test.files)
		got, err := Hierarchy{Unified: test.unified, Mount: dir}.memory("/kubepods")
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
	}
	if got, err := (Hierarchy{Mount: t.TempDir()}).memory("/none"); err != nil || got != (Memory{}) {
		t.Errorf("of no cgroup: %+v, %v", got, err)
	}
}

func TestMemoryOfTheNode(t *testing.T) {
	meminfo := filepath.Join(t.TempDir(), "meminfo")
	write(t, filepath.Dir(meminfo), map[string]string{"meminfo": "MemTotal:       1000 kB\nMemFree:         400 kB\nMemAvailable:    700 kB\n"})
	v1Root, v2Root := t.TempDir(), t.TempDir()
	write(t, v1Root, map[string]string{"memory.usage_in_bytes": "512000\n", "memory.stat": "total_inactive_file 102400\n"})
	write(t, v2Root, map[string]string{"memory.stat": "inactive_file 102400\n"})
	for name, test := range map[string]struct {
		h    Hierarchy
		want Memory
	}{
		"v1": {Hierarchy{Mount: v1Root}, Memory{Capacity: 1024000, Usage: 512000, WorkingSet: 409600}},
		"v2": {Hierarchy{Unified: true, Mount: v2Root}, Memory{Capacity: 1024000, Usage: 614400, WorkingSet: 512000}},
	} {
		if got, err := test.h.node(meminfo); err != nil || got != test.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
	}
}

func TestFilesThatSayNothingAreAnError(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"c/memory.current": "lots\n", "d/memory.current": "1\n", "d/memory.max": "max\n", "d/memory.stat": "anon 1\n"})
	for path, want := range map[string]string{"c": "memory.current", "d": "has no inactive_file"} {
		if _, err := (Hierarchy{Unified: true, Mount: dir}).memory(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", path, err, want)
		}
	}
}

func FuzzTasks(f *testing.F) {
	f.Add("1.36 3.49 4.53 2/3518 3715089\n")
	f.Add("1 2 3 4 5")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := tasks(text)
		if err == nil && !strings.Contains(text, "/") {
			t.Errorf("%q has %d tasks", text, n)
		}
	})
}

func TestTasksAreCounted(t *testing.T) {
	if n, err := tasks("1.36 3.49 4.53 2/3518 3715089\n"); n != 3518 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	p, err := processes()
	if err != nil || p.Running < 1 || p.Max < p.Running {
		t.Errorf("of this host: %+v, %v", p, err)
	}
}

func TestSizesAreGivenAgainForAWhile(t *testing.T) {
	dir := t.TempDir()
	d := newDirs()
	now := time.Now()
	d.now = func() time.Time { return now }
	size := func() uint64 {
		t.Helper()
		s, err := d.of(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		return s.Inodes
	}
	if n := size(); n != 1 {
		t.Errorf("%d inodes, want 1", n)
	}
	write(t, dir, map[string]string{"a": ""})
	now = now.Add(fresh - time.Second)
	if n := size(); n != 1 {
		t.Errorf("measured again after %v", fresh-time.Second)
	}
	now = now.Add(time.Second)
	if n := size(); n != 2 {
		t.Errorf("not measured again after %v", fresh)
	}
	d.known[dir].took = time.Minute // it was large: a minute's work rests for the longest pause
	write(t, dir, map[string]string{"b": ""})
	now = now.Add(longestPause - time.Second)
	if n := size(); n != 2 {
		t.Error("a large directory was measured again too soon")
	}
	now = now.Add(time.Second)
	if n := size(); n != 3 {
		t.Error("a large directory was not measured again")
	}
	now = now.Add(2 * forget)
	if _, err := d.of(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if len(d.known) != 1 {
		t.Errorf("%d sizes are remembered, want the new one alone", len(d.known))
	}
}

func TestADirectoryThatTakesTooLongIsNoErrorNorOneThatIsNotThere(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if _, err := newDirs().of(ctx, t.TempDir()); err != nil {
		t.Errorf("a directory that takes too long is an error: %v", err)
	}
	if got, err := newDirs().of(t.Context(), filepath.Join(t.TempDir(), "none")); err != nil || got != (Disk{}) {
		t.Errorf("of nothing: %+v, %v", got, err)
	}
}

// fakeRuntime answers with what it has.
type fakeRuntime struct {
	stats []*runtimeapi.PodSandboxStats
	asked []string
	mount string
}

func (r *fakeRuntime) ListPodSandboxStats(_ context.Context, in *runtimeapi.ListPodSandboxStatsRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	uid := in.GetFilter().GetLabelSelector()[uidLabel]
	r.asked = append(r.asked, uid)
	var out []*runtimeapi.PodSandboxStats
	for _, s := range r.stats {
		if uid == "" || uid == s.GetAttributes().GetMetadata().GetUid() {
			out = append(out, s)
		}
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: out}, nil
}

func (r *fakeRuntime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest, ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	r.asked = append(r.asked, "images")
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.mount}}}}, nil
}

func value(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func sandbox(uid string, attempt uint32, memory uint64) *runtimeapi.PodSandboxStats {
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{Metadata: &runtimeapi.PodSandboxMetadata{Uid: uid, Attempt: attempt}},
		Linux: &runtimeapi.LinuxPodSandboxStats{
			Memory:  &runtimeapi.MemoryUsage{WorkingSetBytes: value(memory)},
			Process: &runtimeapi.ProcessUsage{ProcessCount: value(7)},
			Containers: []*runtimeapi.ContainerStats{{
				Attributes:    &runtimeapi.ContainerAttributes{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}},
				Memory:        &runtimeapi.MemoryUsage{WorkingSetBytes: value(memory - 1)},
				WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: value(4096), InodesUsed: value(3)},
			}},
		},
	}
}

func pod(uid string) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", UID: types.UID(uid)}}
}

func TestAPodIsMeasured(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"logs/default_p_u/c/0.log":                           "x",
		"kubelet/pods/u/volumes/kubernetes.io~empty-dir/v/f": "x",
		"kubelet/pods/u/etc-hosts":                           "x",
	})
	r := &fakeRuntime{stats: []*runtimeapi.PodSandboxStats{sandbox("u", 1, 200), sandbox("u", 0, 100), sandbox("other", 0, 1)}}
	m := New(Config{KubeletDir: filepath.Join(dir, "kubelet"), PodLogsDir: filepath.Join(dir, "logs")}, r, r)
	p := pod("u")
	p.Spec.Volumes = []v1.Volume{
		{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}},
		{Name: "memory", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: "Memory"}}},
		{Name: "host", VolumeSource: v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/"}}},
	}
	all, err := m.Pods(t.Context(), []*v1.Pod{p, pod("unknown")})
	if err != nil {
		t.Fatal(err)
	}
	got := all["u"]
	if len(all) != 1 || got.WorkingSet != 200 || got.Processes != 7 || len(got.Containers) != 1 {
		t.Fatalf("measured %+v", all)
	}
	c := got.Containers[0]
	if c.Name != "c" || c.WorkingSet != 199 || *c.Rootfs != (Disk{4096, 3}) || c.Logs.Inodes != 2 {
		t.Errorf("container %+v, rootfs %+v, logs %+v", c, c.Rootfs, c.Logs)
	}
	if len(got.Volumes) != 1 || got.Volumes["v"].Inodes != 2 || got.Other.Inodes != 1 {
		t.Errorf("volumes %+v, other %+v", got.Volumes, got.Other)
	}
	if sum := got.EphemeralStorage(); sum.Inodes != 3+2+2+1 {
		t.Errorf("together %+v", sum)
	}
	if diff := cmp.Diff([]string{"u", "unknown"}, r.asked); diff != "" {
		t.Errorf("the runtime was asked for (-want +got):\n%s", diff)
	}
}

func TestWhatCannotBeReadIsNotCountedAndTheRestIs(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"pods": "a file where a directory should be"})
	r := &fakeRuntime{stats: []*runtimeapi.PodSandboxStats{sandbox("u", 0, 100)}}
	p := pod("u")
	p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
	all, err := New(Config{KubeletDir: dir, PodLogsDir: filepath.Join(dir, "logs")}, r, r).Pods(t.Context(), []*v1.Pod{p})
	if err == nil || !strings.Contains(err.Error(), "measure pod default/p") {
		t.Errorf("error %v, want one that names the pod", err)
	}
	if got := all["u"]; got.WorkingSet != 100 || len(got.Volumes) != 0 || got.Containers[0].Rootfs.Bytes != 4096 {
		t.Errorf("measured %+v", all)
	}
}

func TestManyPodsAreAskedForAtOnce(t *testing.T) {
	r := &fakeRuntime{}
	var pods []*v1.Pod
	for i := range oneByOne + 1 {
		pods = append(pods, pod(fmt.Sprint(i)))
		r.stats = append(r.stats, sandbox(fmt.Sprint(i), 0, 1))
	}
	m := New(Config{KubeletDir: t.TempDir(), PodLogsDir: t.TempDir()}, r, r)
	all, err := m.Pods(t.Context(), pods)
	if err != nil || len(all) != len(pods) || len(r.asked) != 1 {
		t.Errorf("%d pods, asked %v, %v", len(all), r.asked, err)
	}
}

func TestANodeIsMeasuredAndTheRuntimeAskedOnce(t *testing.T) {
	h, err := FindHierarchy()
	if err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	r := &fakeRuntime{mount: dir}
	m := New(Config{KubeletDir: dir, Cgroups: h, PodsCgroup: "/there-is-no-such-cgroup"}, r, r)
	for range 2 {
		n, err := m.Node(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n.Layout != Single || n.Memory.WorkingSet == 0 || n.Memory.WorkingSet > n.Memory.Capacity || n.NodeFS.Capacity == 0 || n.ImageFS.Capacity != n.NodeFS.Capacity || n.ContainerFS.Capacity != n.NodeFS.Capacity {
			t.Errorf("measured %+v", n)
		}
	}
	if len(r.asked) != 1 {
		t.Errorf("the runtime was asked %d times where images are", len(r.asked))
	}
}

func TestTheLayoutIsThatOfTheDevices(t *testing.T) {
	here, other := t.TempDir(), "/dev/shm"
	if l, err := layout(here, other, other); err != nil || (l != ImagesApart) {
		t.Errorf("images apart: %v, %v", l, err)
	}
	if l, err := layout(here, other, here); err != nil || l != Split {
		t.Errorf("split: %v, %v", l, err)
	}
	if _, err := layout(here, filepath.Join(here, "none"), here); err == nil {
		t.Error("no error for a directory that is not there")
	}
}

func BenchmarkNode(b *testing.B) {
	h, err := FindHierarchy()
	if err != nil {
		b.Skip(err)
	}
	dir := b.TempDir()
	r := &fakeRuntime{mount: dir}
	m := New(Config{KubeletDir: dir, Cgroups: h, PodsCgroup: "/"}, r, r)
	for b.Loop() {
		if _, err := m.Node(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
