package cri

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// Each scenario runs with every runtime there is here: the one that is built
// in, by its name; the same as a program elsewhere with flags of its own; and
// Debian's crun.
func TestRuntimeHandlers(t *testing.T) {
	crun, missing := exec.LookPath("crun")
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) {
		c.Runtimes = map[string]harness.Runtime{
			"absent":    {Path: "/nonexistent/runtime"},
			"elsewhere": {Path: wrapper(t, c.RuntimeBinary), Args: []string{"--debug"}, Timeout: "1m"},
		}
		if crun != "" {
			c.Runtimes["crun"] = harness.Runtime{Path: crun}
		}
	}})
	for _, name := range []string{"runc", "elsewhere", "crun"} {
		t.Run(name, func(t *testing.T) {
			if name == "crun" && missing != nil {
				t.Skipf("%v: make setup-test installs it", missing)
			}
			if name == "crun" && hybridControllers() {
				t.Skip("crun runs nothing on a host whose cgroup2 has controllers beside those of version 1; tests/vm runs this")
			}
			h := handlerTest{r.on(t), name}
			t.Run("a container runs, is asked, is stopped, and its end is known", h.on(handlerTest.life))
			t.Run("what cannot start says why and leaves nothing", h.on(handlerTest.badStart))
			t.Run("containers outlive the daemon", h.on(handlerTest.restart))
			t.Run("an exec that takes too long is ended with all it started", h.on(handlerTest.execTimeout))
			t.Run("limits are in the kernel, and changed there", h.on(handlerTest.limits))
		})
	}
	t.Run("status names the handlers and what they can do", func(t *testing.T) { handlersInStatus(t, r.on(t), crun != "") })
	t.Run("a handler that is not configured, or not installed, is a clear error", func(t *testing.T) { badHandlers(t, r.on(t)) })
	r.CheckNothingLeft()
}

// wrapper is a runtime of its own that does what another does.
func wrapper(t *testing.T, runtime string) string {
	path := filepath.Join(t.TempDir(), "elsewhere")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\nexec "+runtime+" \"$@\"\n"), 0o755))
	return path
}

// hybridControllers: cgroup v1, and a cgroup2 that has controllers too.
func hybridControllers() bool {
	controllers, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	return err == nil && len(strings.TrimSpace(string(controllers))) > 0
}

// handlerTest is the scenarios of one handler.
type handlerTest struct {
	*runtime
	handler string
}

func (h handlerTest) on(scenario func(handlerTest)) func(*testing.T) {
	return func(t *testing.T) { scenario(handlerTest{h.runtime.on(t), h.handler}) }
}

func (h handlerTest) runPod(config *runtimeapi.PodSandboxConfig) string {
	h.t.Helper()
	must(h.t, os.MkdirAll(config.GetLogDirectory(), 0o755))
	resp, err := h.RunPodSandbox(h.ctx(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: h.handler})
	must(h.t, err)
	return resp.PodSandboxId
}

func (h handlerTest) life() {
	pod := h.podConfig("life")
	sandbox := h.runPod(pod)
	main := h.containerConfig("main", "testbox", "exit", "--print", "ready", "--code", "3", "--after", "1h")
	id := h.run(sandbox, pod, main)
	h.waitLog(pod, main, " stdout F ready")
	equal(h.t, "hostname", h.exec(id, "hostname"), "life")
	equal(h.t, "seccomp of the first process", h.exec(id, "sh", "-c", "grep ^Seccomp: /proc/1/status | tr -d '[:space:]'"), "Seccomp:2")
	resp, err := h.PodSandboxStatus(h.ctx(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	must(h.t, err)
	equal(h.t, "handler in the status", resp.Status.RuntimeHandler, h.handler)
	_, err = h.StopContainer(h.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
	must(h.t, err)
	equal(h.t, "exit code", h.waitExit(id).ExitCode, 3)
	h.removePod(sandbox, pod)
}

func (h handlerTest) badStart() {
	pod := h.podConfig("bad-start")
	sandbox := h.runPod(pod)
	id := h.create(sandbox, pod, h.containerConfig("main", "/nothing/here"))
	_, err := h.StartContainer(h.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "/nothing/here") {
		h.t.Errorf("the start says: %v", err)
	}
	equal(h.t, "reason", h.status(id).Reason, "StartError")
	h.removePod(sandbox, pod)
}

func (h handlerTest) execTimeout() {
	pod := h.podConfig("exec-timeout")
	sandbox := h.runPod(pod)
	id := h.run(sandbox, pod, h.containerConfig("main", "testbox", "pause"))
	_, err := h.ExecSync(h.ctx(), &runtimeapi.ExecSyncRequest{
		ContainerId: id, Cmd: []string{"sh", "-c", "sleep 4242 & setsid sleep 4242 & sleep 4242"}, Timeout: 1,
	})
	equal(h.t, "code", status.Code(err), codes.DeadlineExceeded)
	harness.Eventually(h.t, callTimeout, "end of what the exec started", func() string {
		if out := h.exec(id, "sh", "-c", "ps | grep 'sleep 424[2]' || true"); out != "" {
			return out
		}
		return ""
	})
	h.removePod(sandbox, pod)
}

func (h handlerTest) limits() {
	pod := h.podConfig("limits")
	sandbox := h.runPod(pod)
	config := h.containerConfig("main", "testbox", "pause")
	config.Linux.Resources = &runtimeapi.LinuxContainerResources{
		CpuShares: 512, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20,
	}
	id := h.run(sandbox, pod, config)
	k := kernelOf(h.runtime, pod, id)
	equal(h.t, "memory limit", k.memory(), "67108864")
	equal(h.t, "cpu quota", k.quota(), "50000")
	_, err := h.UpdateContainerResources(h.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuQuota: 75000, MemoryLimitInBytes: 96 << 20},
	})
	must(h.t, err)
	equal(h.t, "memory limit after the update", k.memory(), "100663296")
	equal(h.t, "cpu quota after the update", k.quota(), "75000")
	h.removePod(sandbox, pod)
}

func (h handlerTest) restart() {
	pod := h.podConfig("restart")
	sandbox := h.runPod(pod)
	running := h.run(sandbox, pod, h.containerConfig("running", "testbox", "pause"))
	created := h.create(sandbox, pod, h.containerConfig("created", "testbox", "pause"))
	pid := h.exec(running, "sh", "-c", "cut -d' ' -f22 /proc/1/stat")
	h.Kill()
	h.Start()
	equal(h.t, "start time of its first process", h.exec(running, "sh", "-c", "cut -d' ' -f22 /proc/1/stat"), pid)
	h.start(created)
	equal(h.t, "state", h.status(created).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	h.removePod(sandbox, pod)
}

func handlersInStatus(t *testing.T, r *runtime, crun bool) {
	resp, err := r.Status(r.ctx(), &runtimeapi.StatusRequest{Verbose: true})
	must(t, err)
	var names []string
	for _, h := range resp.RuntimeHandlers {
		names = append(names, h.Name)
		if h.Name == "" || h.Name == "runc" {
			equal(t, "recursive read-only mounts of "+h.Name, h.Features.RecursiveReadOnlyMounts, true)
		}
		if h.Name == "absent" {
			equal(t, "recursive read-only mounts of absent", h.Features.RecursiveReadOnlyMounts, false)
		}
	}
	want := ",absent,elsewhere,runc"
	if crun {
		want = ",absent,crun,elsewhere,runc"
	}
	equal(t, "handlers", strings.Join(names, ","), want)
}

func badHandlers(t *testing.T, r *runtime) {
	for handler, want := range map[string]struct {
		code codes.Code
		text string
	}{
		"gvisor": {codes.InvalidArgument, `runtime_handler: "gvisor" is not configured`},
		"absent": {codes.FailedPrecondition, "runtime handler absent: stat /nonexistent/runtime: no such file or directory"},
	} {
		_, err := r.RunPodSandbox(r.ctx(), &runtimeapi.RunPodSandboxRequest{Config: r.podConfig("bad"), RuntimeHandler: handler})
		if status.Code(err) != want.code || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", handler, err)
		}
	}
}

// kernel reads a container's limits where the kernel has them.
type kernel struct {
	t       testing.TB
	unified bool
	path    string
}

func kernelOf(r *runtime, pod *runtimeapi.PodSandboxConfig, id string) kernel {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	path := filepath.Join(pod.GetLinux().GetCgroupParent(), id)
	if r.Config.CgroupDriver == "systemd" {
		path = filepath.Join("berthtest.slice", pod.GetLinux().GetCgroupParent(), "berth-"+id+".scope")
	}
	return kernel{r.t, err == nil, path}
}

// read returns a file of the cgroup: of version 2, or of a controller's.
func (k kernel) read(v2, controller, v1 string) string {
	k.t.Helper()
	file := filepath.Join("/sys/fs/cgroup", controller, k.path, v1)
	if k.unified {
		file = filepath.Join("/sys/fs/cgroup", k.path, v2)
	}
	data, err := os.ReadFile(file)
	must(k.t, err)
	return strings.TrimSpace(string(data))
}

func (k kernel) memory() string { return k.read("memory.max", "memory", "memory.limit_in_bytes") }

func (k kernel) quota() string {
	quota, _, _ := strings.Cut(k.read("cpu.max", "cpu", "cpu.cfs_quota_us"), " ")
	return quota
}
