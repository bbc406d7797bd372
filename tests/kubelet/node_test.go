package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// metric returns the value of the first series of /metrics... whose line
// matches.
func (k *kubelet) metric(path, pattern string) (float64, error) {
	body, err := k.Get(path)
	if err != nil {
		return 0, err
	}
	m := regexp.MustCompile(`(?m)^` + pattern + ` (\S+)`).FindSubmatch(body)
	if m == nil {
		return 0, fmt.Errorf("%s has no %s", path, pattern)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// positive waits for a metric above zero: the kubelet collects some of them
// now and then only.
func (k *kubelet) positive(t *testing.T, path, pattern string) float64 {
	t.Helper()
	var value float64
	harness.Eventually(t, harness.PodTimeout, path+" has a value for "+pattern, func() string {
		var err error
		if value, err = k.metric(path, pattern); err != nil {
			return err.Error()
		}
		if value <= 0 {
			return fmt.Sprintf("it is %v", value)
		}
		return ""
	})
	return value
}

func (k *kubelet) checkEvents(t *testing.T) {
	k.positive(t, "/metrics", `kubelet_evented_pleg_connection_success_count`)
	if n, err := k.metric("/metrics", `kubelet_evented_pleg_connection_error_count`); err == nil && n > 0 {
		t.Errorf("%v connections for events failed", n)
	}
}

// checkRemoval removes the pod's manifest and looks at how its process ended,
// and when. Its container stays until the kubelet collects garbage.
func (k *kubelet) checkRemoval(t *testing.T) {
	p := k.pod(t, "graceful")
	uid := string(p.waitReady().UID)
	cgroup := "/sys/fs/cgroup/*" + filepath.Join(k.n.Config.CgroupRoot, "kubepods/besteffort/pod"+uid)
	if found, err := filepath.Glob(cgroup); len(found) == 0 {
		t.Errorf("the pod has no cgroup %s: %v", cgroup, err)
	}
	k.n.For(t).RemoveManifest("graceful.yaml")
	// Long before its grace period is over: it ends on SIGTERM.
	harness.Eventually(t, harness.PodTimeout, "pod gone", func() string {
		if _, ok, err := p.get(); ok || err != nil {
			return fmt.Sprintf("the kubelet knows it: %v, %v", ok, err)
		}
		if dir := filepath.Join(k.n.Config.KubeletDir, "pods", uid); exists(dir) {
			return dir + " is there"
		}
		if found, err := filepath.Glob(cgroup); len(found) > 0 || err != nil {
			return fmt.Sprintf("cgroups %v are there, error %v", found, err)
		}
		return ""
	})
	out, err := os.ReadFile(filepath.Join(k.n.Dir, "out/stdout"))
	if err != nil || string(out) != "ready\ngone\n" {
		t.Errorf("the process printed %q, %v", out, err)
	}
	for _, c := range k.containers(t, uid) {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("the runtime has %v", c)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// steady are the pods that nothing should restart.
var steady = []string{"web", "chatty", "attached", "host"}

func (k *kubelet) waitSteady(t *testing.T) {
	t.Helper()
	for _, name := range steady {
		k.pod(t, name).waitReady()
	}
}

// running are the processes in them.
func (k *kubelet) running(t *testing.T) map[harness.Process]bool {
	t.Helper()
	list := map[harness.Process]bool{}
	for _, p := range k.n.For(t).Containers() {
		switch {
		case strings.HasPrefix(p.Args, "testbox exit"), strings.Contains(p.Args, "-unhealthy"), strings.HasPrefix(p.Args, "sh -c"), p.Program == "kubelet":
		default:
			list[p] = true
		}
	}
	if len(list) < len(steady) {
		t.Fatalf("only %d processes in the pods: %v", len(list), list)
	}
	return list
}

// settle is how long a wrong decision of a restarted daemon may take.
const settle = 3 * time.Second

func (k *kubelet) checkUndisturbed(t *testing.T, before map[harness.Process]bool) {
	t.Helper()
	time.Sleep(settle)
	after := k.running(t)
	for p := range before {
		if !after[p] {
			t.Errorf("process %d (%s) is gone", p.Pid, p.Args)
		}
	}
	for p := range after {
		if !before[p] {
			t.Errorf("process %d (%s) is new", p.Pid, p.Args)
		}
	}
	k.waitSteady(t)
}

func (k *kubelet) checkKubeletRestart(t *testing.T) {
	before := k.running(t)
	k.Stop()
	k.Config["featureGates"] = map[string]bool{"EventedPLEG": true, "PodAndContainerStatsFromCRI": statistics}
	k.Start()
	k.checkUndisturbed(t, before)
}

func (k *kubelet) checkRuntimeKilled(t *testing.T) {
	before := k.running(t)
	n := k.n.For(t)
	n.Kill()
	time.Sleep(2 * time.Second) // the kubelet notices
	n.Start()
	k.checkUndisturbed(t, before)
	k.apply("late", "\nspec:\n  containers:\n  - {name: main, image: $BOX, command: [testbox, pause]}\n")
	p := k.pod(t, "late")
	p.waitReady()
	if stdout, stderr, err := k.pod(t, "web").exec(false, "main", "echo", "here"); stdout != "here\n" || err != nil {
		t.Errorf("exec: %q, %q, %v", stdout, stderr, err)
	}
}

// checkEmpty waits for the kubelet's collection of what ended, once a minute.
func (k *kubelet) checkEmpty(t *testing.T) {
	harness.Eventually(t, 2*harness.PodTimeout, "runtime empty", func() string {
		pods, err := k.Pods()
		if len(pods) > 0 || err != nil {
			return fmt.Sprintf("the kubelet has %d pods, error %v", len(pods), err)
		}
		list, err := k.cri.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if len(list.GetItems()) > 0 || err != nil {
			return fmt.Sprintf("the runtime has %v, error %v", list.GetItems(), err)
		}
		// Last, the kubelet removes the directories of their logs.
		logs, err := os.ReadDir(k.n.Config.PodLogsDir)
		if len(logs) > 0 || err != nil {
			return fmt.Sprintf("logs %v are there, error %v", logs, err)
		}
		return ""
	})
}

// checkImages has the kubelet see an image file system that is too full: then
// it removes every image that is in no use and not pinned.
func (k *kubelet) checkImages(t *testing.T) {
	k.Stop()
	k.Config["evictionHard"] = map[string]string{"imagefs.available": "99.9%"}
	k.Start()
	harness.Eventually(t, harness.PodTimeout, "images removed", func() string {
		list, err := k.cri.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			return err.Error()
		}
		if len(list.Images) != 1 || !slices.Contains(list.Images[0].RepoTags, harness.Busybox) || !list.Images[0].Pinned {
			return fmt.Sprintf("there are %v", list.Images)
		}
		return ""
	})
}

// summary is what is read of /stats/summary.
type summary struct {
	Node struct {
		Memory  struct{ WorkingSetBytes uint64 }
		Fs      struct{ CapacityBytes uint64 }
		Runtime struct{ ImageFs struct{ UsedBytes uint64 } }
	}
	Pods []struct {
		PodRef     struct{ Name string }
		CPU        struct{ UsageCoreNanoSeconds uint64 }
		Memory     struct{ WorkingSetBytes uint64 }
		Network    struct{ TxBytes, RxBytes uint64 }
		Containers []struct {
			Name   string
			CPU    struct{ UsageCoreNanoSeconds uint64 }
			Memory struct{ WorkingSetBytes uint64 }
			Rootfs struct{ CapacityBytes uint64 }
		}
	}
}

// checkStats looks for the container that serves HTTP: it uses some MiB, and
// its probes have cost it CPU time and traffic. Without fromCRI the kubelet
// takes the traffic from its own look at a pause container, which Berth's pods
// do not have.
func (k *kubelet) checkStats(t *testing.T, fromCRI bool) {
	web := "web-" + k.n.Name
	harness.Eventually(t, harness.PodTimeout, "statistics of "+web, func() string {
		body, err := k.Get("/stats/summary")
		if err != nil {
			return err.Error()
		}
		var s summary
		if err := json.Unmarshal(body, &s); err != nil {
			return err.Error()
		}
		if s.Node.Memory.WorkingSetBytes == 0 || s.Node.Fs.CapacityBytes == 0 || s.Node.Runtime.ImageFs.UsedBytes == 0 {
			return fmt.Sprintf("the node's are %+v", s.Node)
		}
		for _, p := range s.Pods {
			if p.PodRef.Name != web {
				continue
			}
			if p.CPU.UsageCoreNanoSeconds == 0 || fromCRI && p.Network.RxBytes == 0 || len(p.Containers) != 1 {
				return fmt.Sprintf("the pod's are %+v", p)
			}
			c := p.Containers[0]
			if c.CPU.UsageCoreNanoSeconds < 1e6 || c.Memory.WorkingSetBytes < 1<<20 || c.Memory.WorkingSetBytes > 64<<20 || c.Rootfs.CapacityBytes == 0 {
				return fmt.Sprintf("the container's are %+v", c)
			}
			return ""
		}
		return "it is not there"
	})
	k.positive(t, "/metrics/resource", `container_cpu_usage_seconds_total\{container="main",namespace="default",pod="`+web+`"\}`)
	if m := k.positive(t, "/metrics/resource", `container_memory_working_set_bytes\{container="main",namespace="default",pod="`+web+`"\}`); m < 1<<20 || m > 64<<20 {
		t.Errorf("%v bytes of memory", m)
	}
	k.positive(t, "/metrics/cadvisor", `container_memory_working_set_bytes\{[^}]*id="`+k.n.Config.CgroupRoot+`/kubepods/burstable/pod[^}]*\}`)
}
