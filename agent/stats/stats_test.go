package stats

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeRuntime has one pod with a running container and an exited one, a second
// sandbox of it that is older, and one that is not ready.
type fakeRuntime struct {
	noPods bool // does not measure pods
	err    error
}

var second = time.Date(2026, 11, 28, 1, 2, 3, 0, time.UTC)

func num(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }

func (f *fakeRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	meta := &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1", Attempt: 1}
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		{Id: "old", Metadata: meta, CreatedAt: 1, State: runtimeapi.PodSandboxState_SANDBOX_READY},
		{Id: "sb", Metadata: meta, CreatedAt: second.UnixNano(), State: runtimeapi.PodSandboxState_SANDBOX_READY},
		{Id: "down", Metadata: &runtimeapi.PodSandboxMetadata{Name: "done", Namespace: "default", Uid: "u2"}, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	}}, f.err
}

func (f *fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{
		{Id: "c1", PodSandboxId: "sb", Metadata: &runtimeapi.ContainerMetadata{Name: "app"}, CreatedAt: second.UnixNano(), State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		{Id: "c0", PodSandboxId: "sb", Metadata: &runtimeapi.ContainerMetadata{Name: "init"}, State: runtimeapi.ContainerState_CONTAINER_EXITED},
		{Id: "c2", PodSandboxId: "sb", Metadata: &runtimeapi.ContainerMetadata{Name: "bare"}, CreatedAt: second.UnixNano(), State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}}, nil
}

func containerStats() []*runtimeapi.ContainerStats {
	psi := &runtimeapi.PsiStats{Some: &runtimeapi.PsiData{Total: 5, Avg10: 0.5}, Full: &runtimeapi.PsiData{Total: 2}}
	at := second.Add(time.Minute).UnixNano()
	return []*runtimeapi.ContainerStats{
		{
			Attributes: &runtimeapi.ContainerAttributes{Id: "c1"},
			Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: num(3_000_000_000), UsageNanoCores: num(250_000_000), Psi: psi},
			Memory: &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: num(1 << 20), UsageBytes: num(2 << 20), RssBytes: num(512 << 10), AvailableBytes: num(31 << 20),
				PageFaults: num(7), MajorPageFaults: num(1), Psi: psi},
			Swap:          &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: num(4096), SwapAvailableBytes: num(8192)},
			Io:            &runtimeapi.IoUsage{Timestamp: at, Psi: psi},
			WritableLayer: &runtimeapi.FilesystemUsage{Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: num(10_000), InodesUsed: num(3)},
		},
		{Attributes: &runtimeapi.ContainerAttributes{Id: "c2"}},
		{Attributes: &runtimeapi.ContainerAttributes{Id: "c0"}, Cpu: &runtimeapi.CpuUsage{UsageCoreNanoSeconds: num(1)}},
		{Attributes: &runtimeapi.ContainerAttributes{Id: "unknown"}},
	}
}

func (f *fakeRuntime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	if f.noPods {
		return nil, status.Error(codes.Unimplemented, "not here")
	}
	at := second.Add(time.Minute).UnixNano()
	eth := &runtimeapi.NetworkInterfaceUsage{Name: "eth0", RxBytes: num(100), TxBytes: num(200), RxErrors: num(0), TxErrors: num(1)}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{
		{Attributes: &runtimeapi.PodSandboxAttributes{Id: "sb"}, Linux: &runtimeapi.LinuxPodSandboxStats{
			Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: num(4_000_000_000), UsageNanoCores: num(300_000_000)},
			Memory:     &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: num(3 << 20), UsageBytes: num(4 << 20)},
			Network:    &runtimeapi.NetworkUsage{Timestamp: at, DefaultInterface: eth, Interfaces: []*runtimeapi.NetworkInterfaceUsage{eth, {Name: "net1"}}},
			Process:    &runtimeapi.ProcessUsage{ProcessCount: num(4)},
			Containers: containerStats(),
		}},
		{Attributes: &runtimeapi.PodSandboxAttributes{Id: "old"}}, {Attributes: &runtimeapi.PodSandboxAttributes{Id: "down"}}, {},
	}}, nil
}

func (f *fakeRuntime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: containerStats()}, nil
}

func (f *fakeRuntime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest, ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		Timestamp: second.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"}, UsedBytes: num(5000), InodesUsed: num(50),
	}}}, nil
}

type podSet []*v1.Pod

func (p podSet) Pods() []*v1.Pod { return p }

// noCgroups names cgroups that are not there.
type noCgroups struct{}

func (noCgroups) PodsPath() string       { return "/no-such-cgroup" }
func (noCgroups) PodPath(*v1.Pod) string { return "/no-such-cgroup/pod" }

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func testPod() *v1.Pod {
	volume := func(name string, s v1.VolumeSource) v1.Volume { return v1.Volume{Name: name, VolumeSource: s} }
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u1"},
		Spec: v1.PodSpec{Volumes: []v1.Volume{
			volume("scratch", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}),
			volume("ram", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}}),
			volume("config", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{}}),
			volume("token", v1.VolumeSource{Projected: &v1.ProjectedVolumeSource{}}),
			volume("data", v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "db"}}),
			volume("host", v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: "/"}}),
			volume("late", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}), // not set up yet
		}},
	}
}

func newCollector(t *testing.T, f *fakeRuntime) *Collector {
	t.Helper()
	dir := t.TempDir()
	volumes := filepath.Join(dir, "kubelet/pods/u1/volumes")
	put(t, filepath.Join(volumes, "kubernetes.io~empty-dir/scratch/a"), "12345")
	put(t, filepath.Join(volumes, "kubernetes.io~empty-dir/ram/a"), "12345")
	put(t, filepath.Join(volumes, "kubernetes.io~configmap/config/k"), "v")
	put(t, filepath.Join(volumes, "kubernetes.io~projected/token/token"), "v")
	put(t, filepath.Join(volumes, "kubernetes.io~csi/pv-1/mount/f"), "v")
	put(t, filepath.Join(dir, "kubelet/pods/u1/etc-hosts"), "127.0.0.1 localhost\n")
	put(t, filepath.Join(dir, "logs/default_web_u1/app/0.log"), "2026 stdout F x\n")
	put(t, filepath.Join(dir, "proc/meminfo"), "MemTotal:  8388608 kB\nMemFree: 1 kB\nHugePages_Total: 3\nSwapTotal: 1048576 kB\nSwapFree: 1048000 kB\n")
	put(t, filepath.Join(dir, "proc/stat"), "cpu 1 2\nbtime 1764288000\n")
	put(t, filepath.Join(dir, "proc/loadavg"), "0.20 0.18 0.12 1/80 11206\n")
	put(t, filepath.Join(dir, "proc/sys/kernel/pid_max"), "4194304\n")
	put(t, filepath.Join(dir, "proc/sys/kernel/threads-max"), "190000\n")
	put(t, filepath.Join(dir, "proc/net/dev"), `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       9       0    0    0    0     0          0         0        9       0    0    0    0     0       0          0
  eth0: 1000 10 1 0 0 0 0 0 2000 20 2 0 0 0 0 0
vethab:       9       0    0    0    0     0          0         0        9       0    0    0    0     0       0          0
  ens4:3 0 0 0 0 0 0 0 4 0 0 0 0 0 0 0
`)
	return New(f, f, podSet{testPod()}, noCgroups{}, Config{
		NodeName: "n1", KubeletDir: filepath.Join(dir, "kubelet"), PodLogsDir: filepath.Join(dir, "logs"), Host: dir,
		ClaimVolume: func(ns, claim string) string {
			if ns == "default" && claim == "db" {
				return "pv-1"
			}
			return ""
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
}

// The file system under the test, and the machine's CPU and memory, are what
// they are: where they stand the golden file has a word.
var machineNumbers = regexp.MustCompile(`"(availableBytes|capacityBytes|inodesFree|inodes)": \d+`)

// checkEphemeral checks the sum that is limited as ephemeral storage, then
// writes what depends on the file system's blocks as one byte.
func checkEphemeral(t *testing.T, p *statsapi.PodStats) {
	t.Helper()
	var sum uint64
	one := uint64(1)
	used := func(s *statsapi.FsStats, counts bool) {
		if s == nil || s.UsedBytes == nil {
			return
		}
		if *s.UsedBytes == 0 {
			t.Errorf("%+v uses nothing", s)
		}
		if counts {
			sum += *s.UsedBytes
		}
		s.UsedBytes = &one
	}
	for i := range p.Containers {
		used(p.Containers[i].Rootfs, true)
		used(p.Containers[i].Logs, true)
	}
	for i := range p.VolumeStats {
		name := p.VolumeStats[i].Name
		used(&p.VolumeStats[i].FsStats, name == "scratch" || name == "config")
	}
	if got := *p.EphemeralStorage.UsedBytes; got <= sum || got > sum+64<<10 { // etc-hosts is the rest
		t.Errorf("%d bytes of ephemeral storage, the parts have %d", got, sum)
	}
	p.EphemeralStorage.UsedBytes = &one
}

func golden(t *testing.T, name string, s *statsapi.Summary) {
	t.Helper()
	fixed := metav1.NewTime(second)
	node := s.Node
	for _, c := range []*statsapi.ContainerStats{{CPU: node.CPU, Memory: node.Memory, Swap: node.Swap}} {
		if c.CPU == nil || c.CPU.UsageCoreNanoSeconds == nil || *c.CPU.UsageCoreNanoSeconds == 0 || c.Memory == nil || *c.Memory.WorkingSetBytes == 0 {
			t.Errorf("the node is not measured: %+v", c)
		}
		if want := uint64(8<<30) - *c.Memory.WorkingSetBytes; *c.Memory.AvailableBytes != want && *c.Memory.WorkingSetBytes < 8<<30 {
			t.Errorf("%d bytes available, want %d", *c.Memory.AvailableBytes, want)
		}
	}
	s.Node.CPU, s.Node.Memory, s.Node.IO, s.Node.SystemContainers = nil, nil, nil, nil
	s.Node.Swap.Time = fixed
	if s.Node.Fs != nil {
		var zero uint64
		s.Node.Fs.Time, s.Node.Fs.UsedBytes, s.Node.Fs.InodesUsed = fixed, &zero, &zero
		s.Node.Network.Time, s.Node.Rlimit.Time = fixed, fixed
	}
	for i := range s.Pods {
		p := &s.Pods[i]
		for j := range p.Containers {
			c := &p.Containers[j]
			if c.Logs != nil {
				c.Logs.Time = fixed
			}
			if c.Name == "bare" { // measured when asked
				c.CPU.Time, c.Memory.Time, c.IO.Time, c.Swap.Time = fixed, fixed, fixed, fixed
			}
		}
		if p.EphemeralStorage != nil {
			checkEphemeral(t, p)
			p.EphemeralStorage.Time = fixed
		}
		if p.Swap != nil {
			p.Swap.Time = fixed
		}
		for j := range p.VolumeStats {
			v := &p.VolumeStats[j]
			v.Time = fixed
			if v.PVCRef != nil || v.Name == "ram" { // the whole file system
				var zero uint64
				v.InodesUsed = &zero
			}
		}
	}
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	text = append(machineNumbers.ReplaceAll(text, []byte(`"$1": "FS"`)), '\n')
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(text)); diff != "" {
		t.Error(diff)
	}
}

func TestSummary(t *testing.T) {
	s, err := newCollector(t, &fakeRuntime{}).Summary(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "summary.json", s)
}

func TestSummaryOfCPUAndMemoryTouchesNoDisk(t *testing.T) {
	c := newCollector(t, &fakeRuntime{})
	s, err := c.CPUAndMemory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "cpu-and-memory.json", s)
	if n := len(c.disk.sizes) + len(c.disk.spaces); n != 0 {
		t.Errorf("%d paths were measured", n)
	}
}

func TestARuntimeThatMeasuresOnlyContainers(t *testing.T) {
	s, err := newCollector(t, &fakeRuntime{noPods: true}).CPUAndMemory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Pods) != 1 || len(s.Pods[0].Containers) != 2 || s.Pods[0].PodRef.Name != "web" || *s.Pods[0].Containers[0].CPU.UsageCoreNanoSeconds != 3_000_000_000 {
		t.Errorf("%+v", s.Pods)
	}
	if s.Pods[0].CPU != nil {
		t.Errorf("a pod without a cgroup has %+v", s.Pods[0].CPU)
	}
}

func TestARuntimeThatFailsIsAnError(t *testing.T) {
	if _, err := newCollector(t, &fakeRuntime{err: status.Error(codes.Unavailable, "gone")}).Summary(t.Context()); status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
}

func TestTheAgentIsASystemContainer(t *testing.T) {
	c := newCollector(t, &fakeRuntime{})
	for _, s := range c.systemContainers() {
		if s.Name == statsapi.SystemContainerKubelet {
			if *s.CPU.UsageCoreNanoSeconds == 0 || *s.Memory.UsageBytes == 0 || s.StartTime.IsZero() {
				t.Errorf("%+v", s)
			}
			return
		}
	}
	t.Error("there is none")
}

func TestPressure(t *testing.T) {
	got := parsePressure([]byte("some avg10=1.50 avg60=0.25 avg300=0.00 total=7\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=3 new=x\nnone\n\n"))
	want := &statsapi.PSIStats{Some: statsapi.PSIData{Total: 7000, Avg10: 1.5, Avg60: 0.25}, Full: statsapi.PSIData{Total: 3000, Avg10: 0.5}}
	if diff := cmp.Diff(want, pressure(got)); diff != "" {
		t.Error(diff)
	}
}

func TestARuntimeElsewhereIsNotThisProcess(t *testing.T) {
	c := newCollector(t, &fakeRuntime{})
	c.config.System = map[string]string{statsapi.SystemContainerRuntime: ""}
	for _, s := range c.systemContainers() {
		if s.Name == statsapi.SystemContainerRuntime {
			t.Errorf("%+v", s)
		}
	}
}

func TestRates(t *testing.T) {
	r := newRates()
	at := second
	if n := r.next("a", at, 100); n != nil {
		t.Errorf("the first reading has a rate: %d", *n)
	}
	if n := r.next("a", at.Add(10*time.Second), 100+5_000_000_000); n == nil || *n != 500_000_000 {
		t.Errorf("half a core is %v", n)
	}
	if n := r.next("a", at.Add(10*time.Second+time.Millisecond), 100+5_000_000_001); n == nil || *n != 500_000_000 {
		t.Errorf("a moment later it is %v", n)
	}
	if n := r.next("a", at.Add(20*time.Second), 7); n != nil {
		t.Errorf("after a restart it is %d", *n)
	}
	if n := r.next("a", at.Add(time.Second), 8); n != nil {
		t.Errorf("after the clock was set back it is %d", *n)
	}
	r.forget(at.Add(time.Hour))
	if len(r.samples) != 0 {
		t.Error("old samples are kept")
	}
}

func TestADirectoryIsWalkedOnceInItsTime(t *testing.T) {
	d := newDisk(time.Hour)
	dir := t.TempDir()
	put(t, filepath.Join(dir, "a"), "x")
	first, err := d.usage(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "b"), "x")
	if again, err := d.usage(t.Context(), dir); err != nil || again != first {
		t.Errorf("%+v, then %+v, %v", first, again, err)
	}
	d.sizes[dir].at = time.Now().Add(-2 * time.Hour)
	if later, err := d.usage(t.Context(), dir); err != nil || later.inodes != first.inodes+1 {
		t.Errorf("later %+v, %v", later, err)
	}
	d.sizes[dir].at = time.Now().Add(-24 * time.Hour)
	if _, err := d.usage(t.Context(), t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if len(d.sizes) != 1 {
		t.Errorf("%d paths are remembered", len(d.sizes))
	}
}

func TestAHungFileSystemHoldsUpNobodyElse(t *testing.T) {
	d := newDisk(time.Minute)
	hung, asked := make(chan struct{}), make(chan struct{}, 2)
	defer close(hung)
	ask := func(string) (size, error) {
		asked <- struct{}{}
		<-hung
		return size{}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if _, err := cached(ctx, d, d.sizes, "/nfs", time.Nanosecond, ask); err != context.Canceled {
			t.Errorf("%v", err)
		}
	}
	<-asked
	select {
	case <-asked:
		t.Error("it was asked again while it hangs")
	default:
	}
	if _, err := d.usage(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
	d.sizes["/nfs"].at = time.Now().Add(-diskTimeout)
	if _, err := cached(t.Context(), d, d.sizes, "/nfs", time.Nanosecond, ask); !errors.Is(err, errSlow) {
		t.Errorf("later: %v", err)
	}
}
