package qos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/cgroups/systemd"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// testTree hangs a tree of its own into the real hierarchies, for each driver
// that this host can use.
func testTree(t *testing.T, test func(t *testing.T, tree *Tree)) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups")
	}
	for _, driver := range []Driver{Cgroupfs, Systemd} {
		t.Run(string(driver), func(t *testing.T) {
			if driver == Systemd && !systemd.IsRunningSystemd() {
				t.Skip("this host was not booted with systemd")
			}
			root := fmt.Sprintf("/berth-test-%d", os.Getpid())
			tree, err := NewTree(Config{Root: root, Driver: driver, CPUs: 2, MemoryBytes: 8 << 30})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { removeAll(t, tree) })
			if err := tree.Ensure(); err != nil {
				t.Fatal(err)
			}
			test(t, tree)
		})
	}
}

func removeAll(t *testing.T, tree *Tree) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	top := tree.pods[:len(tree.pods)-1]
	for _, n := range []node{classNode(tree.pods, v1.PodQOSBurstable), classNode(tree.pods, v1.PodQOSBestEffort), tree.pods, top} {
		if err := tree.removeNode(ctx, n, tree.host.places(n.path(tree.config.Driver))); err != nil {
			t.Errorf("clean up: %v", err)
		}
	}
}

func withUID(pod *v1.Pod, uid string) *v1.Pod {
	pod.UID = types.UID(uid)
	return pod
}

// value reads a setting by its v1 or v2 name.
func value(t *testing.T, tree *Tree, n node, controller, v1File, v2File string) string {
	t.Helper()
	file := filepath.Join(tree.host.mounts[controller], n.path(tree.config.Driver), v1File)
	if tree.host.unified {
		file = filepath.Join(cgroupMount, n.path(tree.config.Driver), v2File)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

func pick(tree *Tree, v1Value, v2Value string) string {
	if tree.host.unified {
		return v2Value
	}
	return v1Value
}

func TestPodCgroupIsMadeWithItsSettings(t *testing.T) {
	testTree(t, func(t *testing.T, tree *Tree) {
		pod := withUID(podOf(container(list("cpu", "500m", "memory", "32Mi"), list("cpu", "1", "memory", "64Mi"))), "11aa-22")
		var parent string
		for range 3 { // idempotent
			var err error
			if parent, err = tree.EnsurePod(pod); err != nil {
				t.Fatal(err)
			}
		}
		n := classNode(tree.pods, v1.PodQOSBurstable).child("pod11aa-22")
		if known, err := tree.PodParent(pod); parent != n.path(tree.config.Driver) || known != parent || err != nil {
			t.Errorf("cgroup parent is %s, and said to be %s, %v", parent, known, err)
		}
		for _, check := range []struct{ got, want string }{
			{value(t, tree, n, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "512", "20")},
			{value(t, tree, n, "memory", "memory.limit_in_bytes", "memory.max"), "67108864"},
			{value(t, tree, n, "cpu", "cpu.cfs_quota_us", "cpu.max"), pick(tree, "100000", "100000 100000")},
			{value(t, tree, tree.pods, "memory", "memory.limit_in_bytes", "memory.max"), "8589934592"},
			{value(t, tree, tree.pods, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "2048", "79")},
			{value(t, tree, classNode(tree.pods, v1.PodQOSBestEffort), "cpu", "cpu.shares", "cpu.weight"), pick(tree, "2", "1")},
		} {
			if check.got != check.want {
				t.Errorf("got %s, want %s", check.got, check.want)
			}
		}
		if !tree.host.unified {
			if cpus := value(t, tree, n, "cpuset", "cpuset.cpus", ""); cpus == "" {
				t.Error("cpuset.cpus is empty: no process could join")
			}
		}
		if err := tree.RemovePod(context.Background(), "11aa-22"); err != nil {
			t.Fatal(err)
		}
		for _, dir := range tree.host.places(n.path(tree.config.Driver)) {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there (%v)", dir, err)
			}
		}
	})
}

func TestBurstableLevelFollowsItsPods(t *testing.T) {
	testTree(t, func(t *testing.T, tree *Tree) {
		n := classNode(tree.pods, v1.PodQOSBurstable)
		pod := podOf(container(list("cpu", "2"), nil))
		if err := tree.RefreshClasses([]*v1.Pod{pod}); err != nil {
			t.Fatal(err)
		}
		if got, want := value(t, tree, n, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "2048", "79"); got != want {
			t.Errorf("with a pod: got %s, want %s", got, want)
		}
		if err := tree.Ensure(); err != nil { // a restarted daemon does not know the pods yet
			t.Fatal(err)
		}
		if got, want := value(t, tree, n, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "2048", "79"); got != want {
			t.Errorf("after Ensure: got %s, want %s", got, want)
		}
		if err := tree.RefreshClasses(nil); err != nil {
			t.Fatal(err)
		}
		if got, want := value(t, tree, n, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "2", "1"); got != want {
			t.Errorf("without pods: got %s, want %s", got, want)
		}
	})
}

func TestARunningPodsCgroupIsResizedInPlace(t *testing.T) {
	testTree(t, func(t *testing.T, tree *Tree) {
		limits := list("cpu", "1", "memory", "64Mi")
		pod := withUID(podOf(container(limits, limits)), "r-1")
		if _, err := tree.EnsurePod(pod); err != nil {
			t.Fatal(err)
		}
		for _, size := range []struct{ cpu, memory, shares, weight, quota, bytes string }{
			{"2", "128Mi", "2048", "79", "200000", "134217728"},
			{"500m", "32Mi", "512", "20", "50000", "33554432"},
		} {
			limits := list("cpu", size.cpu, "memory", size.memory)
			resized := withUID(podOf(container(limits, limits)), "r-1")
			if err := tree.SetPod(resized, tree.PodSettings(resized)); err != nil {
				t.Fatal(err)
			}
			n := tree.pods.child("podr-1")
			for _, check := range []struct{ got, want string }{
				{value(t, tree, n, "cpu", "cpu.shares", "cpu.weight"), pick(tree, size.shares, size.weight)},
				{value(t, tree, n, "cpu", "cpu.cfs_quota_us", "cpu.max"), pick(tree, size.quota, size.quota+" 100000")},
				{value(t, tree, n, "memory", "memory.limit_in_bytes", "memory.max"), size.bytes},
			} {
				if check.got != check.want {
					t.Errorf("%s: got %s, want %s", size.cpu, check.got, check.want)
				}
			}
		}
		if err := tree.RemovePod(context.Background(), "r-1"); err != nil {
			t.Error(err)
		}
	})
}

func TestNodeAllocatableIsEnforcedOnKubepodsAndReservedCgroups(t *testing.T) {
	testTree(t, func(t *testing.T, tree *Tree) {
		config := tree.config
		config.Allocatable = list("cpu", "1500m", "memory", "1Gi", "pid", "1000")
		config.PodPIDs = 100
		tree, err := NewTree(config)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Ensure(); err != nil {
			t.Fatal(err)
		}
		if _, err := tree.EnsurePod(withUID(podOf(container(nil, nil)), "p-1")); err != nil {
			t.Fatal(err)
		}
		pod := classNode(tree.pods, v1.PodQOSBestEffort).child("podp-1")
		// The pod's cgroup stands in for one that the node's administrator made.
		reserved := pod.path(tree.config.Driver)
		if err := tree.Reserve(reserved, list("cpu", "500m", "memory", "256Mi"), true); err != nil {
			t.Fatal(err)
		}
		if got := value(t, tree, pod, "memory", "memory.limit_in_bytes", "memory.max"); got == "268435456" {
			t.Error("the memory of a reserved cgroup was limited where only its CPUs were to be weighed")
		}
		if err := tree.Reserve(reserved, list("cpu", "500m", "memory", "256Mi"), false); err != nil {
			t.Fatal(err)
		}
		for _, check := range []struct{ got, want string }{
			{value(t, tree, tree.pods, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "1536", "59")},
			{value(t, tree, tree.pods, "memory", "memory.limit_in_bytes", "memory.max"), "1073741824"},
			{value(t, tree, tree.pods, "pids", "pids.max", "pids.max"), "1000"},
			{value(t, tree, pod, "pids", "pids.max", "pids.max"), "100"},
			{value(t, tree, pod, "cpu", "cpu.shares", "cpu.weight"), pick(tree, "512", "20")},
			{value(t, tree, pod, "memory", "memory.limit_in_bytes", "memory.max"), "268435456"},
		} {
			if check.got != check.want {
				t.Errorf("got %s, want %s", check.got, check.want)
			}
		}
		if err := tree.Reserve("/no-such-cgroup", list("cpu", "1"), false); err == nil || !strings.Contains(err.Error(), "has some missing paths") {
			t.Errorf("a cgroup that does not exist: %v", err)
		}
		if err := tree.RemovePod(context.Background(), "p-1"); err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutClassesNoCgroupIsMade(t *testing.T) {
	tree, err := NewTree(Config{Root: "/berth-test-none", Driver: Cgroupfs, NoClasses: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Ensure(); err != nil {
		t.Fatal(err)
	}
	parent, err := tree.EnsurePod(withUID(podOf(container(nil, nil)), "n-1"))
	if err != nil || parent != "/berth-test-none" {
		t.Errorf("got %s, %v", parent, err)
	}
	if known, err := tree.PodParent(withUID(podOf(container(nil, nil)), "n-1")); err != nil || known != parent {
		t.Errorf("said to be %s, %v", known, err)
	}
	if err := tree.RefreshClasses(nil); err != nil {
		t.Error(err)
	}
	if uids, err := tree.Pods(); err != nil || len(uids) != 0 {
		t.Errorf("pods: %v, %v", uids, err)
	}
	for _, dir := range tree.host.places("/berth-test-none") {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was made", dir)
		}
	}
}

func TestPodsAreListedFromTheCgroupsAlone(t *testing.T) {
	testTree(t, func(t *testing.T, tree *Tree) {
		limits := list("cpu", "1", "memory", "64Mi")
		for uid, pod := range map[string]*v1.Pod{
			"a-1": podOf(container(nil, nil)), "b-2": podOf(container(list("cpu", "1"), nil)), "c-3": podOf(container(limits, limits)),
		} {
			if _, err := tree.EnsurePod(withUID(pod, uid)); err != nil {
				t.Fatal(err)
			}
		}
		again, err := NewTree(tree.config)
		if err != nil {
			t.Fatal(err)
		}
		got, err := again.Pods()
		slices.Sort(got)
		if want := []string{"a-1", "b-2", "c-3"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
		for _, uid := range got {
			if err := again.RemovePod(context.Background(), uid); err != nil {
				t.Error(err)
			}
		}
		if got, err := again.Pods(); err != nil || len(got) != 0 {
			t.Errorf("after removal: %v, %v", got, err)
		}
	})
}

func TestRemovingAPodKillsWhatIsLeftInIt(t *testing.T) {
	testTree(t, func(t *testing.T, tree *Tree) {
		parent, err := tree.EnsurePod(withUID(podOf(container(nil, nil)), "k-1"))
		if err != nil {
			t.Fatal(err)
		}
		// A container's cgroup with processes that ignore SIGTERM and fork.
		cmd := exec.Command("sh", "-c", `trap '' TERM; echo; read line; for i in 1 2 3; do (while :; do sleep 0.01; done) & done; wait`)
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		for name, mount := range tree.host.mounts {
			if name == "devices" {
				continue
			}
			dir := filepath.Join(mount, parent, "ctr", "inner")
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if name == "cpuset" {
				for _, d := range []string{filepath.Dir(dir), dir} {
					for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
						if err := write(filepath.Join(d, f), value(t, tree, tree.pods, "cpuset", f, f)); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			if err := write(filepath.Join(dir, "cgroup.procs"), fmt.Sprint(cmd.Process.Pid)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := in.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := tree.RemovePod(ctx, "k-1"); err != nil {
			t.Fatal(err)
		}
		<-exited
		if err := tree.RemovePod(ctx, "k-1"); err != nil {
			t.Errorf("again: %v", err)
		}
		if got, err := tree.Pods(); err != nil || len(got) != 0 {
			t.Errorf("left: %v, %v", got, err)
		}
	})
}

func TestRemovalGivesUpWithItsContextAndNamesTheProcess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err = waitExit(ctx, []process{{os.Getpid(), pidfd}})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkEnsureAndRemovePod(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root: makes cgroups")
	}
	tree, err := NewTree(Config{Root: fmt.Sprintf("/berth-test-%d", os.Getpid()), Driver: Cgroupfs, CPUs: 2})
	if err != nil {
		b.Fatal(err)
	}
	if err := tree.Ensure(); err != nil {
		b.Fatal(err)
	}
	pod := withUID(podOf(container(list("cpu", "500m", "memory", "32Mi"), list("cpu", "1", "memory", "64Mi"))), "b-1")
	var ensure, repeat, remove time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := tree.EnsurePod(pod); err != nil {
			b.Fatal(err)
		}
		made := time.Now()
		if _, err := tree.EnsurePod(pod); err != nil {
			b.Fatal(err)
		}
		again := time.Now()
		if err := tree.RemovePod(context.Background(), "b-1"); err != nil {
			b.Fatal(err)
		}
		ensure, repeat, remove = ensure+made.Sub(start), repeat+again.Sub(made), remove+time.Since(again)
	}
	b.ReportMetric(float64(ensure.Microseconds())/float64(b.N), "µs/ensure")
	b.ReportMetric(float64(repeat.Microseconds())/float64(b.N), "µs/repeat")
	b.ReportMetric(float64(remove.Microseconds())/float64(b.N), "µs/remove")
	b.StopTimer()
	for _, n := range []node{classNode(tree.pods, v1.PodQOSBurstable), classNode(tree.pods, v1.PodQOSBestEffort), tree.pods, tree.pods[:1]} {
		if err := tree.removeNode(context.Background(), n, tree.host.places(n.path(tree.config.Driver))); err != nil {
			b.Errorf("clean up: %v", err)
		}
	}
}
