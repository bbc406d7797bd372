package cri_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri"
)

func TestRuntime(t *testing.T) {
	n := newNode(t)
	for _, c := range []struct {
		name string
		run  func(*testing.T, *node)
	}{
		{"a pod runs, is looked into, stops and is gone", podLives},
		{"a container sees what its request says", containerSees},
		{"the pod's containers share what a pod shares", podShares},
		{"a pod on the node's namespaces", hostPod},
		{"a shared pid namespace has the pod's init", sharedPID},
		{"a privileged container", privileged},
		{"a container that cannot start says why", cannotStart},
		{"exec and attach over the streaming server", streams},
		{"port-forward reaches a server on loopback", portForward},
		{"an image's volume is writable below a read-only root", imageVolume},
		{"limits change while a container runs", updateResources},
		{"containers live through a restart of the daemon", restart},
		{"a shim that is killed", killedShim},
		{"a second daemon is refused", secondDaemon},
		{"twenty pods at once", burst},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.run(t, n) }) {
			return // what it left would fail the others
		}
	}
}

func podLives(t *testing.T, n *node) {
	config := n.pod("lives")
	sandbox := n.run(t, config)
	sb, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	must(t, err)
	if sb.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || !strings.HasPrefix(sb.Status.Network.Ip, "10.99.0.") {
		t.Errorf("sandbox is %v", sb.Status)
	}
	for _, step := range []string{`"step":"namespaces"`, `"step":"network"`, `"step":"shim"`} {
		if !strings.Contains(sb.Info["info"], step) {
			t.Errorf("%s is missing in %s", step, sb.Info["info"])
		}
	}
	id := n.create(t, sandbox, n.container("main", "sh", "-c", `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done`))
	n.startContainer(t, id)
	st := n.status(t, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt == 0 || st.ImageId == "" || !strings.Contains(st.ImageRef, "/busybox@sha256:") {
		t.Errorf("container is %v", st)
	}
	waitFor(t, "the log", func() bool { return strings.Contains(logOf(n, "lives", "main"), " stdout F ready") })
	if got := n.exec(t, id, "hostname"); got != "lives" {
		t.Errorf("hostname is %q", got)
	}
	resp, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}})
	must(t, err)
	if string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" || resp.ExitCode != 7 {
		t.Errorf("exec answered %v", resp)
	}
	_, err = n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "100"}, Timeout: 1})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("an exec that takes too long: %v", err)
	}
	began := time.Now()
	_, err = n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
	must(t, err)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if st := n.status(t, id); st.ExitCode != 3 || st.Reason != "Error" {
		t.Errorf("after the stop: %v", st)
	}
	if text := logOf(n, "lives", "main"); !strings.Contains(text, " stdout F bye") {
		t.Errorf("the last line is lost: %s", text)
	}
	n.remove(t, sandbox, config)
	_, err = n.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
	must(t, err)
}

func logOf(n *node, pod, container string) string {
	text, _ := os.ReadFile(filepath.Join(n.dir, "logs", pod, container+".log"))
	return string(text)
}

func containerSees(t *testing.T, n *node) {
	pod := n.pod("sees")
	pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"}}
	pod.Linux.Sysctls = map[string]string{"net.core.somaxconn": "77", "kernel.shm_rmid_forced": "1"}
	sandbox := n.run(t, pod)
	c := n.container("main", "sleep", "1000")
	missing := filepath.Join(n.dir, "made-by-the-runtime")
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/host/rw", HostPath: missing}, {ContainerPath: "/host/ro", HostPath: missing, Readonly: true}}
	c.Envs = []*runtimeapi.KeyValue{{Key: "GREETING", Value: []byte("hello")}}
	c.WorkingDir = "/seed"
	c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "r"}}
	c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	c.Linux.SecurityContext.SupplementalGroups = []int64{3000}
	c.Linux.SecurityContext.NoNewPrivs = true
	c.Linux.SecurityContext.ReadonlyRootfs = true
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
	id := n.create(t, sandbox, c)
	n.startContainer(t, id)
	for command, want := range map[string]string{
		"id -u; id -G":                        "1000\n1000 2000 3000",
		"echo $GREETING; echo $HOSTNAME; pwd": "hello\nsees\n/seed",
		"cat /etc/resolv.conf":                "search a.b\nnameserver 10.0.0.10\noptions ndots:5",
		"cat /etc/hostname":                   "sees",
		"cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced":               "77\n1",
		"grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/self/status":                "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2",
		"touch /etc/x 2>&1 || touch /host/ro/x 2>&1 || echo denied":                       "touch: /etc/x: Read-only file system\ntouch: /host/ro/x: Read-only file system\ndenied",
		"ls /dev/mine; stat -c %T /dev/shm; grep -c ' /dev/shm tmpfs' /proc/mounts":       "/dev/mine\n0\n1",
		"cat /proc/1/oom_score_adj; (echo x > /proc/sys/kernel/x) 2>/dev/null || echo ro": "500\nro",
	} {
		if got := n.exec(t, id, "sh", "-c", command); got != want {
			t.Errorf("%s says %q, want %q", command, got, want)
		}
	}
	if st := n.status(t, id); st.User.Linux.Uid != 1000 || st.User.Linux.Gid != 1000 || !slices.Equal(st.User.Linux.SupplementalGroups, []int64{1000, 2000, 3000}) {
		t.Errorf("user is %v", st.User)
	}
	if info, err := os.Stat(missing); err != nil || !info.IsDir() {
		t.Errorf("the missing source of the mount: %v", err)
	}
	n.remove(t, sandbox, pod)
}

func podShares(t *testing.T, n *node) {
	pod := n.pod("shares")
	sandbox := n.run(t, pod)
	a, b := n.create(t, sandbox, n.container("a", "sleep", "1000")), n.create(t, sandbox, n.container("b", "sleep", "1000"))
	n.startContainer(t, a)
	n.startContainer(t, b)
	n.exec(t, a, "sh", "-c", "echo shared > /dev/shm/x; echo mine > /x")
	if got := n.exec(t, b, "sh", "-c", "cat /dev/shm/x; cat /x 2>/dev/null || echo none"); got != "shared\nnone" {
		t.Errorf("the other container sees %q", got)
	}
	const namespaces = "stat -L -c %i /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts"
	if x, y := n.exec(t, a, "sh", "-c", namespaces), n.exec(t, b, "sh", "-c", namespaces); x != y {
		t.Errorf("namespaces differ: %q and %q", x, y)
	}
	if got := n.exec(t, a, "sh", "-c", "echo /proc/[0-9]*/exe | grep -c ."); got != "1" {
		t.Errorf("processes: %q", got)
	}
	n.remove(t, sandbox, pod)
}

func hostPod(t *testing.T, n *node) {
	pod := n.pod("host")
	pod.Hostname = ""
	pod.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{
		Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE,
	}
	sandbox := n.run(t, pod)
	c := n.container("main", "sleep", "1000")
	c.Linux.SecurityContext.NamespaceOptions = pod.Linux.SecurityContext.NamespaceOptions
	id := n.create(t, sandbox, c)
	n.startContainer(t, id)
	for _, kind := range []string{"net", "ipc", "uts", "pid"} {
		want, err := os.Readlink("/proc/self/ns/" + kind)
		must(t, err)
		if got := n.exec(t, id, "sh", "-c", "ls -l /proc/self/ns/"+kind); !strings.HasSuffix(got, want) {
			t.Errorf("%s is %s, want %s", kind, got, want)
		}
	}
	n.remove(t, sandbox, pod)
	pod.Metadata.Uid, pod.Linux.Sysctls = "other", map[string]string{"net.core.somaxconn": "77"}
	_, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err == nil || !strings.Contains(err.Error(), "sysctl net.core.somaxconn cannot be set: the pod uses the net namespace of the node") {
		t.Errorf("a sysctl of the node was set: %v", err)
	}
}

func sharedPID(t *testing.T, n *node) {
	pod := n.pod("pid")
	shared := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
	pod.Linux.SecurityContext.NamespaceOptions = shared
	sandbox := n.run(t, pod)
	a, b := n.container("a", "sleep", "1000"), n.container("b", "sh", "-c", "sleep 2000 & exit 0")
	a.Linux.SecurityContext.NamespaceOptions, b.Linux.SecurityContext.NamespaceOptions = shared, shared
	first := n.create(t, sandbox, a)
	n.startContainer(t, first)
	second := n.create(t, sandbox, b)
	n.startContainer(t, second)
	waitFor(t, "the second container's end", func() bool {
		return n.status(t, second).State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	// What it left behind ends with it, though the namespace goes on.
	waitFor(t, "the end of its children", func() bool {
		return !strings.Contains(n.exec(t, first, "ps"), "sleep 2000")
	})
	if ps := n.exec(t, first, "ps"); !strings.Contains(ps, "sleep 1000") {
		t.Errorf("processes:\n%s", ps)
	}
	// A debug container looks into another's processes.
	n.remove(t, sandbox, pod)
	pod = n.pod("target")
	sandbox = n.run(t, pod)
	target := n.create(t, sandbox, n.container("a", "sleep", "1234"))
	n.startContainer(t, target)
	debug := n.container("debug", "sleep", "5678")
	debug.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: target}
	id := n.create(t, sandbox, debug)
	n.startContainer(t, id)
	if ps := n.exec(t, id, "ps"); !strings.Contains(ps, "sleep 1234") || !strings.Contains(ps, "sleep 5678") {
		t.Errorf("processes:\n%s", ps)
	}
	n.remove(t, sandbox, pod)
}

func privileged(t *testing.T, n *node) {
	pod := n.pod("privileged")
	pod.Linux.SecurityContext.Privileged = true
	sandbox := n.run(t, pod)
	c := n.container("main", "sleep", "1000")
	c.Linux.SecurityContext.Privileged = true
	id := n.create(t, sandbox, c)
	n.startContainer(t, id)
	if got := n.exec(t, id, "sh", "-c", "grep Seccomp: /proc/self/status; grep -o ' /sys sysfs rw' /proc/mounts; ls /dev/kmsg"); got != "Seccomp:\t0\n /sys sysfs rw\n/dev/kmsg" {
		t.Errorf("got %q", got)
	}
	n.remove(t, sandbox, pod)
}

func cannotStart(t *testing.T, n *node) {
	pod := n.pod("broken")
	sandbox := n.run(t, pod)
	id := n.create(t, sandbox, n.container("main", "/no/such/program"))
	_, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("error is %v", err)
	}
	st := n.status(t, id)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, "no such file or directory") {
		t.Errorf("status is %v", st)
	}
	n.remove(t, sandbox, pod)
}

func stream(t *testing.T, address string, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return executor.StreamWithContext(ctx, o)
}

func streams(t *testing.T, n *node) {
	pod := n.pod("streams")
	sandbox := n.run(t, pod)
	c := n.container("main", "sh", "-c", `read line; echo "got $line"; sleep 1000`)
	c.Stdin, c.StdinOnce = true, true
	id := n.create(t, sandbox, c)
	n.startContainer(t, id)

	exec, err := n.runtime.Exec(t.Context(), &runtimeapi.ExecRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "cat; echo err >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true,
	})
	must(t, err)
	var out, errOut bytes.Buffer
	err = stream(t, exec.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("to the command"), Stdout: &out, Stderr: &errOut})
	var code utilexec.CodeExitError
	if !errors.As(err, &code) || code.Code != 5 || out.String() != "to the command" || errOut.String() != "err\n" {
		t.Errorf("exec ended with %v, out %q, err %q", err, out.String(), errOut.String())
	}

	tty, err := n.runtime.Exec(t.Context(), &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "[ -t 1 ] && echo terminal"}, Tty: true, Stdout: true})
	must(t, err)
	out.Reset()
	if err := stream(t, tty.Url, remotecommand.StreamOptions{Stdout: &out, Tty: true}); err != nil || out.String() != "terminal\r\n" {
		t.Errorf("exec with a terminal ended with %v, out %q", err, out.String())
	}

	attach, err := n.runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	must(t, err)
	attached := make(chan string)
	go func() {
		var out, errOut bytes.Buffer
		err := stream(t, attach.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("a line\n"), Stdout: &out, Stderr: &errOut})
		attached <- fmt.Sprint(out.String(), err)
	}()
	waitFor(t, "the line in the log", func() bool { return strings.Contains(logOf(n, "streams", "main"), " stdout F got a line") })
	n.remove(t, sandbox, pod)
	if got := <-attached; got != "got a line\n<nil>" {
		t.Errorf("attach saw %q", got)
	}
}

func portForward(t *testing.T, n *node) {
	pod := n.pod("forward")
	sandbox := n.run(t, pod)
	id := n.create(t, sandbox, n.container("main", "httpd", "-f", "-p", "127.0.0.1:8080", "-h", "/"))
	n.startContainer(t, id)
	waitFor(t, "the server", func() bool {
		return strings.Contains(n.exec(t, id, "cat", "/proc/net/tcp"), "0100007F:1F90")
	})
	resp, err := n.runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox, Port: []int32{8080}})
	must(t, err)
	local := forward(t, resp.Url, 8080)
	answer, err := (&http.Client{Timeout: 10 * time.Second}).Get("http://" + local + "/seed/data")
	must(t, err)
	body, err := io.ReadAll(answer.Body)
	must(t, err)
	must(t, answer.Body.Close())
	if string(body) != "from the image" {
		t.Errorf("got %q", body)
	}
	n.remove(t, sandbox, pod)
}

func imageVolume(t *testing.T, n *node) {
	pod := n.pod("volume")
	sandbox := n.run(t, pod)
	c := n.container("main", "sleep", "1000")
	c.Linux.SecurityContext.ReadonlyRootfs = true
	id := n.create(t, sandbox, c)
	n.startContainer(t, id)
	if got := n.exec(t, id, "sh", "-c", "cat /seed/data; touch /seed/new && echo ' written'"); got != "from the image written" {
		t.Errorf("got %q", got)
	}
	n.remove(t, sandbox, pod)
}

func updateResources(t *testing.T, n *node) {
	pod := n.pod("update")
	sandbox := n.run(t, pod)
	id := n.create(t, sandbox, n.container("main", "sleep", "1000"))
	n.startContainer(t, id)
	_, err := n.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuShares: 300},
	})
	must(t, err)
	if got := n.status(t, id).Resources.Linux; got.MemoryLimitInBytes != 96<<20 || got.CpuShares != 300 || got.OomScoreAdj != 500 {
		t.Errorf("resources are %v", got)
	}
	var limits []string
	for _, dir := range n.cgroupDirs("update") {
		for _, file := range []string{"memory.max", "memory.limit_in_bytes"} {
			if data, err := os.ReadFile(filepath.Join(containerCgroup(dir, id), file)); err == nil {
				limits = append(limits, strings.TrimSpace(string(data)))
			}
		}
	}
	if len(limits) != 1 || limits[0] != strconv.Itoa(96<<20) {
		t.Errorf("the kernel's limits are %s", limits)
	}
	n.remove(t, sandbox, pod)
}

func containerCgroup(pod, id string) string {
	if scope := filepath.Join(pod, "berth-"+id+".scope"); strings.HasSuffix(pod, ".slice") {
		return scope
	}
	return filepath.Join(pod, id)
}

func restart(t *testing.T, n *node) {
	pod := n.pod("restart")
	sandbox := n.run(t, pod)
	counter := n.create(t, sandbox, n.container("counter", "sh", "-c", `i=0; while :; do echo line $i; i=$((i+1)); sleep 0.01; done`))
	ender := n.create(t, sandbox, n.container("ender", "sh", "-c", "while [ ! -e /dev/shm/end ]; do sleep 0.02; done; exit 9"))
	waiting := n.create(t, sandbox, n.container("waiting", "sleep", "1000"))
	n.startContainer(t, counter)
	n.startContainer(t, ender)
	before := n.status(t, counter)
	n.exec(t, counter, "touch", "/dev/shm/end-soon")
	_, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: counter, Cmd: []string{"sh", "-c", "(sleep 0.5; touch /dev/shm/end) >/dev/null 2>&1 &"}})
	must(t, err)
	n.stop(t)
	time.Sleep(time.Second) // the daemon is away while a container ends
	n.start(t)
	after := n.status(t, counter)
	if after.State != runtimeapi.ContainerState_CONTAINER_RUNNING || after.StartedAt != before.StartedAt {
		t.Errorf("before %v\nafter %v", before, after)
	}
	if st := n.status(t, ender); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 9 {
		t.Errorf("the end during the restart: %v", st)
	}
	n.startContainer(t, waiting)
	if got := n.exec(t, waiting, "hostname"); got != "restart" {
		t.Errorf("hostname is %q", got)
	}
	_, err = n.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: counter, Timeout: 0})
	must(t, err)
	checkNumbered(t, logOf(n, "restart", "counter"))
	n.remove(t, sandbox, pod)
}

// checkNumbered wants every line once and in order.
func checkNumbered(t *testing.T, text string) {
	t.Helper()
	want := 0
	for line := range strings.Lines(text) {
		if _, number, ok := strings.Cut(strings.TrimSpace(line), " stdout F line "); !ok || number != strconv.Itoa(want) {
			t.Errorf("line %d is %q", want, line)
			return
		}
		want++
	}
	if want < 50 {
		t.Errorf("only %d lines", want)
	}
}

func killedShim(t *testing.T, n *node) {
	pod := n.pod("shim")
	shared := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
	pod.Linux.SecurityContext.NamespaceOptions = shared
	sandbox := n.run(t, pod)
	var ids []string
	for _, name := range []string{"a", "b"} {
		c := n.container(name, "sleep", "1000")
		if name == "a" {
			c.Linux.SecurityContext.NamespaceOptions = shared
		}
		ids = append(ids, n.create(t, sandbox, c))
		n.startContainer(t, ids[len(ids)-1])
	}
	resp, err := n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true})
	must(t, err)
	var info struct{ Pid int }
	must(t, json.Unmarshal([]byte(resp.Info["info"]), &info))
	must(t, unix.Kill(info.Pid, unix.SIGKILL))
	for _, id := range ids {
		waitFor(t, "the containers' end", func() bool {
			return n.status(t, id).State == runtimeapi.ContainerState_CONTAINER_EXITED
		})
		if st := n.status(t, id); st.ExitCode != 255 || st.Reason != "Unknown" {
			t.Errorf("status is %v", st)
		}
	}
	resp, err = n.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	must(t, err)
	if resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("sandbox is %v", resp.Status)
	}
	n.remove(t, sandbox, pod)
}

func secondDaemon(t *testing.T, n *node) {
	_, err := cri.New(t.Context(), n.cfg)
	if err == nil || !strings.Contains(err.Error(), "another daemon works on "+n.cfg.RunDir) {
		t.Errorf("error is %v", err)
	}
}

func burst(t *testing.T, n *node) {
	var pods sync.WaitGroup
	for i := range 20 {
		pods.Go(func() {
			pod := n.pod(fmt.Sprintf("burst-%d", i))
			sandbox := n.run(t, pod)
			id := n.create(t, sandbox, n.container("main", "sleep", "1000"))
			n.startContainer(t, id)
			if got := n.exec(t, id, "hostname"); got != pod.Hostname {
				t.Errorf("hostname is %q, not %q", got, pod.Hostname)
			}
			n.remove(t, sandbox, pod)
		})
	}
	pods.Wait()
}

// BenchmarkPod measures the calls of a pod's life, with and without the default
// seccomp profile, which the OCI runtime takes long to load.
func BenchmarkPod(b *testing.B) {
	n := newNode(b)
	for _, kind := range []runtimeapi.SecurityProfile_ProfileType{
		runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault,
	} {
		b.Run("seccomp="+kind.String(), func(b *testing.B) { benchmarkPod(b, n, kind) })
	}
}

func benchmarkPod(b *testing.B, n *node, seccomp runtimeapi.SecurityProfile_ProfileType) {
	took := map[string][]time.Duration{}
	measure := func(name string, f func()) {
		began := time.Now()
		f()
		took[name] = append(took[name], time.Since(began))
	}
	for i := 0; b.Loop(); i++ {
		pod := n.pod(fmt.Sprintf("bench-%d", i))
		must(b, n.makeCgroup(pod.Linux.CgroupParent))
		config := n.container("main", "sleep", "1000")
		config.Linux.SecurityContext.Seccomp.ProfileType = seccomp
		var sandbox, id string
		measure("RunPodSandbox", func() { sandbox = n.run(b, pod) })
		measure("CreateContainer", func() { id = n.create(b, sandbox, config) })
		measure("StartContainer", func() { n.startContainer(b, id) })
		measure("ExecSync", func() { n.exec(b, id, "hostname") })
		measure("StopContainer", func() {
			_, err := n.runtime.StopContainer(b.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
			must(b, err)
		})
		measure("remove", func() { n.remove(b, sandbox, pod) })
	}
	for name, list := range took {
		slices.Sort(list)
		b.ReportMetric(float64(list[len(list)/2].Microseconds())/1000, name+"-p50-ms")
	}
}
