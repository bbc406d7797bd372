package host

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/berth-io/berth/tests/harness"
)

const (
	timeout   = time.Minute
	stateFile = "/var/lib/berth-test-host.json"
)

// machine is this host, as a node of its own cluster.
type machine struct {
	bin    string
	client kubernetes.Interface
}

// state is what the machine knows of itself after it was booted again.
type state struct {
	BootID     string
	Containers map[string]string // IDs, by pod
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Getenv("BERTH_TEST_HOST") == "" {
		t.Skip("makes the machine it runs on a node, and needs it to be booted again: tests/vm does both in a virtual machine")
	}
	return &machine{bin: os.Getenv("BERTH_TEST_BIN")}
}

// TestNode is for a machine that has just been made, and TestNodeAfterReboot
// for the same machine later.
func TestNode(t *testing.T) {
	m := newMachine(t)
	t.Cleanup(func() { sayWhy(t) })
	startControlPlane(t, m.bin)
	m.client = newClient(t)
	serveImages(t, m.bin)
	m.install(t)
	if !t.Run("kubeadm join makes the machine a node", m.testJoin) {
		return
	}
	for name, spec := range podSpecs {
		m.create(t, name, spec)
	}
	for name, spec := range killed {
		m.create(t, name, spec)
	}
	for name := range podSpecs {
		m.wait(t, name, "is ready", ready)
	}
	t.Run("pods have the kubelet's cgroups", m.testCgroups)
	t.Run("a container over its limit is killed as a whole", m.testOOM)
	t.Run("the node keeps what is reserved", m.testReserved)
	t.Run("a pod has users of its own", m.testUserNamespace)
	t.Run("statistics", m.testStatistics)
	t.Run("a resize is in the cgroups", m.testResize)
	t.Run("systemctl daemon-reload changes no cgroup", m.testReload)
	t.Run("the unit is restarted, killed and stopped, and pods run on", m.testUnit)
	t.Run("CPUs of one's own", m.testStaticCPUs)
	t.Run("a node that runs short of memory evicts", m.testEviction)

	s := state{BootID: read(t, "/proc/sys/kernel/random/boot_id"), Containers: map[string]string{}}
	for name := range podSpecs {
		s.Containers[name] = containerID(m.get(t, name), "main")
	}
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	write(t, stateFile, string(data))
}

// sayWhy has what a failed test's reader needs of a machine that is gone then.
func sayWhy(t *testing.T) {
	if !t.Failed() {
		return
	}
	for _, command := range []string{"systemctl status -l -n 0 kubelet", "journalctl --no-pager -n 60 -u kubelet", "systemd-cgls --no-pager /kubepods.slice"} {
		out, err := try("sh", "-c", command)
		t.Logf("%s: %v\n%s", command, err, out)
	}
}

// install puts Berth where a package does.
func (m *machine) install(t *testing.T) {
	t.Helper()
	for _, name := range []string{"berth", "berth-shim", "runc"} {
		run(t, "cp", filepath.Join(m.bin, name), "/usr/bin/")
	}
	if err := os.Symlink("berth", "/usr/bin/kubelet"); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "-r", filepath.Join(m.bin, "units/kubelet.service"), filepath.Join(m.bin, "units/kubelet.service.d"), "/usr/lib/systemd/system/")
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "enable", "-q", "--now", "kubelet")
}

func (m *machine) testJoin(t *testing.T) {
	run(t, filepath.Join(m.bin, "peers/kubeadm"), "join", apiServer, "--token", token, "--discovery-token-unsafe-skip-ca-verification",
		"--cri-socket", "unix:///run/berth/cri.sock")
	m.waitReady(t)
	if out := run(t, "systemctl", "status", "-l", "-n", "0", "kubelet"); !strings.Contains(out, "active (running)") || !strings.Contains(out, "in control of "+nodeName) {
		t.Errorf("systemctl status kubelet:\n%s", out)
	}
}

func (m *machine) node(ctx context.Context) (*corev1.Node, error) {
	return m.client.CoreV1().Nodes().Get(ctx, nodeName, metav1.GetOptions{})
}

func (m *machine) waitReady(t *testing.T) {
	t.Helper()
	boot := read(t, "/proc/sys/kernel/random/boot_id")
	harness.Eventually(t, timeout, "the node is Ready", func() string {
		node, err := m.node(t.Context())
		if err != nil {
			return err.Error()
		}
		if node.Status.NodeInfo.BootID != boot {
			return "its status is of the last boot"
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return ""
			}
		}
		return fmt.Sprint(node.Status.Conditions)
	})
}

// testCgroups: weights of slices are the kubelet's function of shares, those of
// scopes the OCI runtime's.
func (m *machine) testCgroups(t *testing.T) {
	swap := func(request int64) string { // in whole pages
		share := int64(float64(request) / float64(meminfo(t, "MemTotal")) * float64(meminfo(t, "SwapTotal")))
		return fmt.Sprint(share &^ 4095)
	}
	guaranteed, burstable, besteffort, podlevel := m.get(t, "guaranteed"), m.get(t, "burstable"), m.get(t, "besteffort"), m.get(t, "podlevel")
	for group, want := range map[string]values{
		slice(guaranteed): {"cpu.weight": "4", "cpu.max": "10000 100000", "memory.min": "67108864", "memory.low": "0",
			"memory.high": "max", "memory.max": "67108864", "memory.swap.max": "max", "pids.max": "200"},
		scope(guaranteed, "main"): {"cpu.weight": "17", "cpu.max": "10000 100000", "memory.min": "67108864", "memory.low": "0",
			"memory.high": "max", "memory.max": "67108864", "memory.swap.max": "0", "memory.oom.group": "1"},
		slice(burstable): {"cpu.weight": "2", "cpu.max": "20000 100000", "memory.min": "0", "memory.low": "33554432",
			"memory.high": "max", "memory.max": "134217728", "memory.swap.max": "max", "pids.max": "200"},
		scope(burstable, "main"): {"cpu.weight": "11", "cpu.max": "20000 100000", "memory.min": "0", "memory.low": "33554432",
			"memory.high": "124149760", "memory.max": "134217728", "memory.swap.max": swap(32 << 20), "memory.oom.group": "1"},
		slice(besteffort): {"cpu.weight": "1", "cpu.max": "max 100000", "memory.min": "0", "memory.low": "0",
			"memory.high": "max", "memory.max": "max", "pids.max": "200"},
		scope(besteffort, "main"): {"cpu.weight": "1", "cpu.max": "max 100000", "memory.max": "max", "memory.high": "max",
			"memory.swap.max": "0", "memory.oom.group": "1"},
		slice(podlevel):         {"cpu.weight": "3", "cpu.max": "20000 100000", "memory.low": "50331648", "memory.max": "100663296", "pids.max": "200"},
		scope(podlevel, "main"): {"cpu.max": "20000 100000", "memory.low": "0", "memory.max": "100663296", "memory.swap.max": "0"},
		scope(podlevel, "side"): {"cpu.max": "20000 100000", "memory.low": "16777216", "memory.high": "31875072", "memory.max": "33554432",
			"memory.swap.max": swap(16 << 20)},
		"kubepods.slice/kubepods-besteffort.slice": {"cpu.weight": "1", "memory.max": "max"},
		"kubepods.slice/kubepods-burstable.slice":  {"cpu.weight": "5", "memory.low": "83886080", "memory.max": "max"},
	} {
		if reason := want.differs(group); reason != "" {
			t.Error(reason)
		}
	}
}

func (m *machine) testReserved(t *testing.T) {
	// What 850 millicores of one CPU, and of each more, weigh.
	milli := int64(runtime.NumCPU())*1000 - 150
	if staticCPUs() != "" {
		milli = int64(runtime.NumCPU()-1) * 1000
	}
	const mib = 1 << 20
	memory := meminfo(t, "MemTotal")
	processes := min(number(t, "/proc/sys/kernel/pid_max"), number(t, "/proc/sys/kernel/threads-max"))
	for group, want := range map[string]values{
		"kubepods.slice": {"cpu.weight": fmt.Sprint(1 + (milli*1024/1000-2)*9999/262142), "memory.max": fmt.Sprint(memory - 3000*mib),
			"pids.max": fmt.Sprint(processes - 5000)},
		"system.slice": {"cpu.weight": "4", "memory.max": fmt.Sprint(2900 * mib), "memory.min": fmt.Sprint(2900 * mib), "pids.max": "5000"},
		"kube.slice":   {"cpu.weight": "2", "memory.max": fmt.Sprint(100 * mib), "memory.min": fmt.Sprint(100 * mib)},
	} {
		if staticCPUs() != "" && group != "kubepods.slice" {
			delete(want, "cpu.weight") // reservedSystemCPUs goes before
		}
		if reason := want.differs(group); reason != "" {
			t.Error(reason)
		}
	}
	node, err := m.node(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := node.Status.Allocatable.Cpu().MilliValue(); got != milli {
		t.Errorf("allocatable CPU is %dm, want %dm", got, milli)
	}
	if got, want := node.Status.Allocatable.Memory().Value(), memory-3100*mib; got != want {
		t.Errorf("allocatable memory is %d, want %d", got, want)
	}
	if got := node.Status.NodeInfo.Swap; got == nil || got.Capacity == nil || *got.Capacity != meminfo(t, "SwapTotal") {
		t.Errorf("the node's swap: %v", got)
	}
	// What pods request that have ended does not count.
	harness.Eventually(t, timeout, "kubepods is protected", func() string {
		return values{"memory.min": fmt.Sprint((64 + 32 + 48) * mib)}.differs("kubepods.slice")
	})
}

func (m *machine) testOOM(t *testing.T) {
	for name := range killed {
		pod := m.wait(t, name, "has ended", failed)
		s := pod.Status.ContainerStatuses[0].State.Terminated
		if s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("%s: %s, exit code %d", name, s.Reason, s.ExitCode)
		}
	}
}

func (m *machine) testUserNamespace(t *testing.T) {
	pid := pids(t, scope(m.get(t, "userns"), "main"))[0]
	fields := strings.Fields(read(t, "/proc/"+pid+"/uid_map"))
	if len(fields) != 3 || fields[0] != "0" || fields[1] == "0" || fields[2] != "65536" {
		t.Errorf("uid_map: %v", fields)
	}
}

func (m *machine) testStatistics(t *testing.T) {
	data, err := m.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + nodeName + "/proxy/stats/summary").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var s statsv1alpha1.Summary
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	between := func(what string, got *uint64, low, high uint64) {
		t.Helper()
		if got == nil || *got < low || *got > high {
			t.Errorf("%s is %v, want %d to %d", what, deref(got), low, high)
		}
	}
	const mib = 1 << 20
	total := uint64(meminfo(t, "MemTotal"))
	between("the node's working set", s.Node.Memory.WorkingSetBytes, 100*mib, total)
	between("the node's available memory", s.Node.Memory.AvailableBytes, total/4, total)
	between("the node's CPU time", s.Node.CPU.UsageCoreNanoSeconds, 5e9, uint64(runtime.NumCPU())*uint64(time.Hour))
	between("the node's free swap", s.Node.Swap.SwapAvailableBytes, 1, uint64(meminfo(t, "SwapTotal")))
	if s.Node.CPU.PSI == nil || s.Node.CPU.PSI.Some.Total == 0 {
		t.Errorf("the node has no CPU pressure: %+v", s.Node.CPU.PSI)
	}
	found := 0
	for _, p := range s.Pods {
		if p.PodRef.Name != "burstable" || len(p.Containers) != 1 {
			continue
		}
		found++
		c := p.Containers[0]
		between("the container's working set", c.Memory.WorkingSetBytes, mib/4, 64*mib)
		between("the container's available memory", c.Memory.AvailableBytes, 64*mib, 128*mib)
		between("the container's CPU time", c.CPU.UsageCoreNanoSeconds, 1e6, 60e9)
		between("the container's free swap", c.Swap.SwapAvailableBytes, 4096, 32*mib)
		between("the pod's processes", p.ProcessStats.ProcessCount, 1, 3)
		if c.CPU.PSI == nil || c.Memory.PSI == nil || c.IO == nil || c.IO.PSI == nil {
			t.Errorf("the container has no pressure: %+v", c)
		}
	}
	if found != 1 {
		t.Errorf("%d statistics of the pod in %s", found, data)
	}
	metrics, err := m.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes/" + nodeName + "/proxy/metrics/resource").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, series := range []string{"node_cpu_usage_seconds_total ", "node_swap_usage_bytes ", `pod_memory_working_set_bytes{namespace="default",pod="burstable"} `,
		`container_swap_limit_bytes{container="main",namespace="default",pod="burstable"} `, "resource_scrape_error 0"} {
		if !strings.Contains(string(metrics), series) {
			t.Errorf("metrics/resource has no %s:\n%s", series, metrics)
		}
	}
}

func deref(n *uint64) string {
	if n == nil {
		return "missing"
	}
	return strconv.FormatUint(*n, 10)
}

func (m *machine) testResize(t *testing.T) {
	before := map[string]string{}
	for _, name := range []string{"guaranteed", "burstable", "podlevel"} {
		before[name] = containerID(m.get(t, name), "main")
	}
	// It may swap, so that its memory request has to stay as it is.
	m.resize(t, "burstable", `{containers: [{name: main, resources: {requests: {cpu: 80m, memory: 32Mi}, limits: {cpu: 300m, memory: 160Mi}}}]}`)
	m.resize(t, "guaranteed", `{containers: [{name: main, resources: {requests: {cpu: 50m, memory: 48Mi}, limits: {cpu: 50m, memory: 48Mi}}}]}`)
	m.resize(t, "podlevel", `{resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 250m, memory: 128Mi}}}`)
	for name, amounts := range map[string][3]values{ // of the pod, of the container main, of side
		"burstable": {{"cpu.weight": "4", "cpu.max": "30000 100000", "memory.low": "33554432", "memory.max": "167772160"},
			{"cpu.weight": "15", "cpu.max": "30000 100000", "memory.low": "33554432", "memory.high": "154349568", "memory.max": "167772160", "memory.oom.group": "1"}},
		"guaranteed": {{"cpu.weight": "2", "cpu.max": "5000 100000", "memory.min": "50331648", "memory.max": "50331648"},
			{"cpu.weight": "11", "cpu.max": "5000 100000", "memory.min": "50331648", "memory.high": "max", "memory.max": "50331648", "memory.swap.max": "0"}},
		"podlevel": {{"cpu.weight": "4", "cpu.max": "25000 100000", "memory.low": "67108864", "memory.max": "134217728"},
			{"cpu.max": "25000 100000", "memory.max": "134217728"}, {"cpu.max": "25000 100000", "memory.max": "33554432"}},
	} {
		pod := m.wait(t, name, "is resized", func(pod *corev1.Pod) string {
			for _, c := range pod.Status.Conditions {
				if c.Type == corev1.PodResizePending || c.Type == corev1.PodResizeInProgress {
					return fmt.Sprint(c)
				}
			}
			if reason := amounts[0].differs(slice(pod)); reason != "" {
				return reason
			}
			return amounts[1].differs(scope(pod, "main"))
		})
		if amounts[2] != nil {
			if reason := amounts[2].differs(scope(pod, "side")); reason != "" {
				t.Error(reason)
			}
		}
		if id := containerID(pod, "main"); id != before[name] {
			t.Errorf("%s was restarted", name)
		}
	}
	if reason := (values{"cpu.weight": "7", "memory.low": fmt.Sprint((32 + 64) << 20)}).differs("kubepods.slice/kubepods-burstable.slice"); reason != "" {
		t.Error(reason)
	}
}

// testReload: what is in a cgroup and systemd does not know of, systemd may
// take away.
func (m *machine) testReload(t *testing.T) {
	before := settings(t)
	run(t, "systemctl", "daemon-reload")
	same(t, before)
}

func same(t *testing.T, before map[string]string) {
	t.Helper()
	after := settings(t)
	for file, value := range before {
		if after[file] != value {
			t.Errorf("%s was %s and is %q", file, value, after[file])
		}
	}
}

func (m *machine) testUnit(t *testing.T) {
	running, before := map[string][]string{}, settings(t)
	for name := range podSpecs {
		group := scope(m.get(t, name), "main")
		running[group] = pids(t, group)
	}
	undisturbed := func(after string) {
		t.Helper()
		for group, was := range running {
			if now := pids(t, group); !reflect.DeepEqual(now, was) {
				t.Errorf("after %s: %s has processes %v, had %v", after, group, now, was)
			}
		}
	}
	property := func(name string) string {
		t.Helper()
		return strings.TrimSpace(run(t, "systemctl", "show", "-P", name, "kubelet"))
	}

	pid := property("MainPID")
	run(t, "kill", "-9", pid)
	harness.Eventually(t, timeout, "kubelet.service runs again", func() string {
		out := run(t, "systemctl", "show", "-p", "MainPID,ActiveState", "kubelet") // at one moment
		if !strings.Contains(out, "ActiveState=active\n") || strings.Contains(out, "MainPID="+pid+"\n") {
			return out
		}
		return ""
	})
	undisturbed("kill -9")
	if n := property("NRestarts"); n != "1" {
		t.Errorf("systemd has restarted the unit %s times", n)
	}

	run(t, "systemctl", "stop", "kubelet")
	undisturbed("systemctl stop")
	// A container that ends meanwhile is found to have.
	write(t, "/var/lib/kubelet/config.yaml", read(t, "/var/lib/kubelet/config.yaml")+"\nsingleProcessOOMKill: true\n")
	run(t, "systemctl", "start", "kubelet") // returns when it is in control
	undisturbed("systemctl start")
	run(t, "systemctl", "restart", "kubelet")
	undisturbed("systemctl restart")
	same(t, before)
	m.waitReady(t)
	for name := range podSpecs {
		if pod := m.get(t, name); ready(pod) != "" || pod.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("%s: %v", name, pod.Status)
		}
	}
	// The new configuration counts for new containers.
	m.create(t, "single", childOverLimit)
	if s := m.wait(t, "single", "has ended", failed).Status.ContainerStatuses[0].State.Terminated; s.ExitCode != 3 {
		t.Errorf("with singleProcessOOMKill: %+v", s)
	}
	m.delete(t, "single")
}

// testStaticCPUs needs more CPUs than one that is reserved and one that stays.
func (m *machine) testStaticCPUs(t *testing.T) {
	if staticCPUs() == "" {
		t.Skip("the machine has too few CPUs")
	}
	m.create(t, "exclusive", `containers: [{name: main, image: $BOX, resources: {limits: {cpu: "1", memory: 16Mi}}}]`)
	pod := m.wait(t, "exclusive", "is ready", ready)
	own := read(t, filepath.Join(cgroups, scope(pod, "main"), "cpuset.cpus"))
	if reason := (values{"cpu.max": "max 100000"}).differs(scope(pod, "main")); reason != "" || own == "" || own == "0" {
		t.Errorf("%s; cpuset.cpus is %s", reason, own)
	}
	shared := scope(m.get(t, "burstable"), "main")
	harness.Eventually(t, timeout, "others are moved away", func() string {
		if others := read(t, filepath.Join(cgroups, shared, "cpuset.cpus.effective")); others == "" || strings.Contains(others, own) || strings.Contains(others, "-") {
			return "they have " + others
		}
		return ""
	})
	m.delete(t, "exclusive")
	harness.Eventually(t, timeout, "others have the CPU again", func() string {
		return values{"cpuset.cpus.effective": fmt.Sprintf("0-%d", runtime.NumCPU()-1)}.differs(shared)
	})
}

func (m *machine) testEviction(t *testing.T) {
	hog := meminfo(t, "MemTotal")>>20 - 3000 - 60 // less than all pods may have, and too much
	// A shell that is init does not end with 0 at SIGTERM, which would be success.
	m.create(t, "hog", fmt.Sprintf(`{restartPolicy: Never, containers: [{name: main, image: $BOX, command: [sh, -c, "testbox alloc --mib %d; exit 1"]}]}`, hog))
	pod := m.wait(t, "hog", "is evicted", failed)
	if pod.Status.Reason != "Evicted" || !strings.Contains(pod.Status.Message, "low on resource: memory") {
		t.Errorf("%s: %s", pod.Status.Reason, pod.Status.Message)
	}
	harness.Eventually(t, timeout, "the pressure is over", func() string {
		node, err := m.node(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeMemoryPressure && c.Status != corev1.ConditionFalse {
				return fmt.Sprint(c)
			}
		}
		return ""
	})
	for name := range podSpecs {
		if reason := ready(m.get(t, name)); reason != "" {
			t.Errorf("%s: %s", name, reason)
		}
	}
}
