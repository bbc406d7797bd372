package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestNRI(t *testing.T) {
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) {
		c.CDISpecDirs = []string{filepath.Dir(c.RootDir) + "/cdi"}
		c.NRI = harness.NRI{
			Enable: true, SocketPath: c.RunDir + "/nri.sock", PluginPath: c.RunDir + "/none", ConfigPath: c.RunDir + "/none",
			RequestTimeout: "8s", // for a plugin on a machine that is busy with other things
		}
	}})
	for _, s := range []struct {
		name string
		run  func(*testing.T, *runtime)
	}{
		{"a plugin is told of the life of a pod and its container, in order", nriLife},
		{"a plugin is told of a container that ends by itself", nriSelfExit},
		{"what a plugin wants of a container is how it runs", nriAdjust},
		{"what a plugin changes of limits is in the kernel and in the status", nriLimits},
		{"a refused container leaves nothing, and the next one is made", nriRefuseCreate},
		{"a refused pod leaves nothing, and the next try makes it", nriRefusePod},
		{"a refused start ends the container with the plugin's reason", nriRefuseStart},
		{"a plugin is synchronized with what there is, and after a restart of the daemon", nriSynchronize},
		{"a plugin changes limits by itself, and is told what it cannot", nriUnsolicited},
		{"a plugin changes another container when one gets new limits", nriOthers},
		{"a plugin asks for limits of others when a container ends", nriStopUpdates},
		{"a pod's new limits pass by the plugins", nriPodUpdate},
		{"a plugin that hangs holds up one request, and is dropped", nriHang},
	} {
		t.Run(s.name, func(t *testing.T) { s.run(t, r.on(t)) })
	}
	r.CheckNothingLeft()
}

// plugin records what it is told; what is set answers.
type plugin struct {
	t    *testing.T
	stub stub.Stub
	done chan error

	onRun         func(*api.PodSandbox) error
	onCreate      func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	onStart       func(*api.Container) error
	onUpdate      func(*api.Container, *api.LinuxResources) ([]*api.ContainerUpdate, error)
	onStop        func(*api.Container) ([]*api.ContainerUpdate, error)
	onUpdatePod   func(overhead, resources *api.LinuxResources) error
	onSynchronize func([]*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error)

	mu     sync.Mutex
	events []string
	last   map[string]*api.Container // by event
	synced []string                  // IDs
	ready  chan struct{}
}

// connect registers the plugin; it is gone when the test ends.
func (r *runtime) connect(t *testing.T, index string, p *plugin) *plugin {
	t.Helper()
	// The CRI is served after NRI is.
	_, err := r.Status(r.ctx(), &runtimeapi.StatusRequest{})
	must(t, err)
	p.t, p.done, p.ready, p.last = t, make(chan error, 1), make(chan struct{}), map[string]*api.Container{}
	p.stub, err = stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(r.Config.NRI.SocketPath),
		stub.WithOnClose(func() {}))
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { p.done <- p.stub.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		p.stub.Stop()
	})
	select {
	case <-p.ready:
	case err := <-p.done:
		t.Fatalf("the plugin ended: %v", err)
	case <-time.After(callTimeout):
		t.Fatal("the plugin was not synchronized")
	}
	return p
}

func (p *plugin) note(event string, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event)
	p.last[event] = c
}

func (p *plugin) told() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.events, " ")
}

func (p *plugin) of(event string) *api.Container {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last[event]
}

func (p *plugin) wait(what string) {
	p.t.Helper()
	harness.Eventually(p.t, callTimeout, "events "+what, func() string {
		if got := p.told(); got != what {
			return got
		}
		return ""
	})
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	p.synced = nil
	for _, pod := range pods {
		p.synced = append(p.synced, pod.GetId())
	}
	for _, c := range containers {
		p.synced = append(p.synced, c.GetId())
	}
	p.mu.Unlock()
	defer close(p.ready)
	if p.onSynchronize != nil {
		return p.onSynchronize(pods, containers)
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("run-pod", nil)
	if p.onRun != nil {
		return p.onRun(pod)
	}
	return nil
}

func (p *plugin) StopPodSandbox(context.Context, *api.PodSandbox) error {
	p.note("stop-pod", nil)
	return nil
}

func (p *plugin) RemovePodSandbox(context.Context, *api.PodSandbox) error {
	p.note("remove-pod", nil)
	return nil
}

func (p *plugin) UpdatePodSandbox(_ context.Context, _ *api.PodSandbox, overhead, resources *api.LinuxResources) error {
	p.note("update-pod", nil)
	if p.onUpdatePod != nil {
		return p.onUpdatePod(overhead, resources)
	}
	return nil
}

func (p *plugin) PostUpdatePodSandbox(context.Context, *api.PodSandbox) error {
	p.note("pod-updated", nil)
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c)
	if p.onCreate != nil {
		return p.onCreate(pod, c)
	}
	return nil, nil, nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("created", c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("start", c)
	if p.onStart != nil {
		return p.onStart(c)
	}
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("started", c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("update", c)
	if p.onUpdate != nil {
		return p.onUpdate(c, r)
	}
	return nil, nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("updated", c)
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop", c)
	if p.onStop != nil {
		return p.onStop(c)
	}
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("remove", c)
	return nil
}

func nriLife(t *testing.T, r *runtime) {
	p := r.connect(t, "10", &plugin{})
	pod := r.podConfig("life")
	pod.Annotations = map[string]string{"example.test/note": "pod"}
	var seen *api.PodSandbox
	p.onRun = func(pod *api.PodSandbox) error { seen = pod; return nil }
	sandbox := r.runPod(pod)
	main := r.containerConfig("main", "testbox", "pause")
	id := r.run(sandbox, pod, main)
	_, err := r.UpdateContainerResources(r.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 200},
	})
	must(t, err)
	_, err = r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
	must(t, err)
	_, err = r.RemoveContainer(r.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	must(t, err)
	r.removePod(sandbox, pod)
	p.wait("run-pod create created start started update updated stop remove stop-pod remove-pod")
	equal(t, "pod ID", seen.GetId(), sandbox)
	equal(t, "pod", seen.GetNamespace()+"/"+seen.GetName()+"/"+seen.GetUid(), "default/life/"+pod.Metadata.Uid)
	equal(t, "annotation", seen.GetAnnotations()["example.test/note"], "pod")
	equal(t, "addresses", len(seen.GetIps()), 1)
	equal(t, "cgroup parent", seen.GetLinux().GetCgroupParent(), pod.Linux.CgroupParent)
	if !slices.ContainsFunc(seen.GetLinux().GetNamespaces(), func(n *api.LinuxNamespace) bool { return n.Type == "network" && n.Path != "" }) {
		t.Errorf("no network namespace in %v", seen.GetLinux().GetNamespaces())
	}
	made := p.of("create")
	equal(t, "container", made.GetName()+"/"+made.GetId()+"/"+made.GetPodSandboxId(), "main/"+id+"/"+sandbox)
	equal(t, "arguments", strings.Join(made.GetArgs(), " "), "testbox pause")
	equal(t, "image", made.GetImage().GetName(), harness.Box)
	equal(t, "shares", made.GetLinux().GetResources().GetCpu().GetShares().GetValue(), 100)
	equal(t, "shares once updated", p.of("updated").GetLinux().GetResources().GetCpu().GetShares().GetValue(), 200)
	equal(t, "state once started", p.of("started").GetState(), api.ContainerState_CONTAINER_RUNNING)
	if p.of("started").GetPid() == 0 {
		t.Error("no pid of a container that runs")
	}
	equal(t, "state at the end", p.of("stop").GetState(), api.ContainerState_CONTAINER_STOPPED)
}

func nriSelfExit(t *testing.T, r *runtime) {
	pod := r.podConfig("self-exit")
	sandbox := r.runPod(pod)
	p := r.connect(t, "10", &plugin{})
	r.run(sandbox, pod, r.containerConfig("main", "testbox", "exit", "--code", "3"))
	p.wait("create created start started stop")
	equal(t, "exit code", p.of("stop").GetExitCode(), 3)
	r.removePod(sandbox, pod)
	p.wait("create created start started stop stop-pod remove remove-pod")
}

func nriAdjust(t *testing.T, r *runtime) {
	shared := t.TempDir()
	must(t, os.WriteFile(filepath.Join(shared, "file"), []byte("from the plugin\n"), 0o644))
	hook := filepath.Join(t.TempDir(), "hook")
	must(t, os.WriteFile(hook, []byte("#!/bin/sh\ncat >"+hook+".ran\n"), 0o755))
	must(t, os.MkdirAll(r.Dir+"/cdi", 0o755))
	must(t, os.WriteFile(r.Dir+"/cdi/example.json", []byte(`{"cdiVersion": "0.6.0", "kind": "example.test/thing", "devices": [
		{"name": "one", "containerEdits": {"deviceNodes": [{"path": "/dev/cdi-zero", "hostPath": "/dev/zero"}]}}]}`), 0o644))
	pod := r.podConfig("adjust")
	sandbox := r.runPod(pod)
	r.connect(t, "10", &plugin{onCreate: func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.AddEnv("FROM_PLUGIN", "yes")
		a.AddEnv("CHANGED", "by the plugin")
		a.AddAnnotation("example.test/by", "plugin")
		a.AddMount(&api.Mount{Source: shared, Destination: "/plugin", Type: "bind", Options: []string{"bind", "ro"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugin-null", Type: "c", Major: 1, Minor: 3})
		a.AddCDIDevice(&api.CDIDevice{Name: "example.test/thing=one"})
		a.AddRlimit("RLIMIT_CORE", 4321, 1234)
		a.SetLinuxOomScoreAdj(ptr(777))
		a.SetLinuxSysctl("net.core.somaxconn", "321")
		a.SetLinuxCPUShares(300)
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: hook, Args: []string{"hook"}}}})
		a.SetArgs([]string{"testbox", "term", "--code", "9"})
		return a, nil, nil
	}})
	config := r.containerConfig("main", "testbox", "pause")
	config.Envs = []*runtimeapi.KeyValue{{Key: "CHANGED", Value: []byte("by the request")}}
	id := r.run(sandbox, pod, config)
	r.waitLog(pod, config, "ready")
	for what, c := range map[string]struct{ command, want string }{
		"added variable":   {`tr '\0' '\n' </proc/1/environ | grep ^FROM_PLUGIN=`, "FROM_PLUGIN=yes"},
		"changed variable": {`tr '\0' '\n' </proc/1/environ | grep ^CHANGED=`, "CHANGED=by the plugin"},
		"arguments":        {`tr '\0' ' ' </proc/1/cmdline`, "testbox term --code 9"},
		"mount":            {"cat /plugin/file; touch /plugin/x 2>&1 | grep -o 'Read-only file system'", "from the plugin\nRead-only file system"},
		"device":           {"echo gone >/dev/plugin-null && stat -c %t:%T /dev/plugin-null", "1:3"},
		"CDI device":       {"stat -c %t:%T /dev/cdi-zero", "1:5"},
		"core limit":       {"grep 'core file' /proc/1/limits | tr -s ' '", "Max core file size 1234 4321 bytes"},
		"OOM score":        {"cat /proc/1/oom_score_adj", "777"},
		"sysctl":           {"cat /proc/sys/net/core/somaxconn", "321"},
	} {
		equal(t, what, r.exec(id, "sh", "-c", c.command), c.want)
	}
	equal(t, "shares in the status", r.status(id).GetResources().GetLinux().GetCpuShares(), 300)
	if ran, err := os.ReadFile(hook + ".ran"); err != nil || !strings.Contains(string(ran), id) {
		t.Errorf("the hook: %q, %v", ran, err)
	}
	_, err := r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
	must(t, err)
	equal(t, "exit code", r.waitExit(id).ExitCode, 9)
	r.removePod(sandbox, pod)
}

func ptr[T any](v T) *T { return &v }

func nriLimits(t *testing.T, r *runtime) {
	pod := r.podConfig("limits")
	sandbox := r.runPod(pod)
	r.connect(t, "10", &plugin{
		onCreate: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			a.SetLinuxCPUSetCPUs("0")
			a.SetLinuxMemoryLimit(80 << 20)
			return a, nil, nil
		},
		onUpdate: func(c *api.Container, want *api.LinuxResources) ([]*api.ContainerUpdate, error) {
			u := &api.ContainerUpdate{}
			u.SetContainerId(c.Id)
			u.SetLinuxMemoryLimit(want.GetMemory().GetLimit().GetValue() + 1<<20)
			return []*api.ContainerUpdate{u}, nil
		},
	})
	config := r.containerConfig("main", "testbox", "pause")
	config.Linux.Resources.MemoryLimitInBytes = 64 << 20
	id := r.run(sandbox, pod, config)
	k := kernelOf(r, pod, id)
	equal(t, "memory limit", k.memory(), fmt.Sprint(80<<20))
	equal(t, "CPUs", k.read("cpuset.cpus", "cpuset", "cpuset.cpus"), "0")
	_, err := r.UpdateContainerResources(r.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
	})
	must(t, err)
	equal(t, "memory limit after the update", k.memory(), fmt.Sprint(97<<20))
	got := r.status(id).GetResources().GetLinux()
	equal(t, "memory limit in the status", got.GetMemoryLimitInBytes(), 97<<20)
	equal(t, "CPUs in the status", got.GetCpusetCpus(), "0")
	r.removePod(sandbox, pod)
}

func nriRefuseCreate(t *testing.T, r *runtime) {
	pod := r.podConfig("refused")
	sandbox := r.runPod(pod)
	refuse := true
	p := r.connect(t, "10", &plugin{onCreate: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if refuse {
			return nil, nil, errors.New("not on my node")
		}
		return nil, nil, nil
	}})
	config := r.containerConfig("main", "testbox", "pause")
	_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
	if err == nil || !strings.Contains(err.Error(), "an NRI plugin refuses the container") || !strings.Contains(err.Error(), "not on my node") {
		t.Errorf("the creation says: %v", err)
	}
	list, err := r.ListContainers(r.ctx(), &runtimeapi.ListContainersRequest{})
	must(t, err)
	equal(t, "containers", len(list.Containers), 0)
	dirs, err := filepath.Glob(r.Config.RunDir + "/containers/*")
	must(t, err)
	equal(t, "bundles", len(dirs), 0)
	p.wait("create stop remove")
	refuse = false
	r.run(sandbox, pod, config)
	r.removePod(sandbox, pod)
}

func nriRefusePod(t *testing.T, r *runtime) {
	refuse := true
	var listed int
	p := r.connect(t, "10", &plugin{onRun: func(pod *api.PodSandbox) error {
		list, err := r.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		listed = len(list.Items)
		if refuse {
			return errors.New("no pods today")
		}
		return nil
	}})
	pod := r.podConfig("refused-pod")
	must(t, os.MkdirAll(pod.GetLogDirectory(), 0o755))
	_, err := r.RunPodSandbox(r.ctx(), &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err == nil || !strings.Contains(err.Error(), "no pods today") {
		t.Errorf("the sandbox says: %v", err)
	}
	equal(t, "sandboxes listed while plugins are asked", listed, 0)
	p.wait("run-pod stop-pod remove-pod")
	refuse = false
	r.removePod(r.runPod(pod), pod)
}

func nriRefuseStart(t *testing.T, r *runtime) {
	pod := r.podConfig("refused-start")
	sandbox := r.runPod(pod)
	p := r.connect(t, "10", &plugin{onStart: func(*api.Container) error { return errors.New("stay down") }})
	id := r.create(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	_, err := r.StartContainer(r.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "stay down") {
		t.Errorf("the start says: %v", err)
	}
	st := r.status(id)
	equal(t, "state", st.State, runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(t, "reason", st.Reason, "StartError")
	p.wait("create created start stop")
	r.removePod(sandbox, pod)
}

func nriSynchronize(t *testing.T, r *runtime) {
	pod := r.podConfig("synchronize")
	sandbox := r.runPod(pod)
	running := r.run(sandbox, pod, r.containerConfig("running", "testbox", "pause"))
	created := r.create(sandbox, pod, r.containerConfig("created", "testbox", "pause"))
	ended := r.run(sandbox, pod, r.containerConfig("ended", "testbox", "exit"))
	r.waitExit(ended)
	want := []string{sandbox, running, created}
	slices.Sort(want)
	check := func(p *plugin) {
		t.Helper()
		got := slices.Sorted(slices.Values(p.synced))
		if !slices.Equal(got, want) {
			t.Errorf("synchronized with %v, want %v", got, want)
		}
	}
	first := r.connect(t, "10", &plugin{onSynchronize: func(_ []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
		u := &api.ContainerUpdate{}
		u.SetContainerId(running)
		u.SetLinuxCPUShares(400)
		return []*api.ContainerUpdate{u}, nil
	}})
	check(first)
	harness.Eventually(t, callTimeout, "limits that the plugin asked for when it was synchronized", func() string {
		if got := r.status(running).GetResources().GetLinux().GetCpuShares(); got != 400 {
			return fmt.Sprint(got)
		}
		return ""
	})
	r.Kill()
	r.Start()
	select {
	case <-first.done: // plugins connect again, as they are started again
	case <-time.After(callTimeout):
		t.Error("the plugin was not told that the daemon has gone")
	}
	check(r.connect(t, "10", &plugin{}))
	r.removePod(sandbox, pod)
}

func nriUnsolicited(t *testing.T, r *runtime) {
	pod := r.podConfig("unsolicited")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	p := r.connect(t, "10", &plugin{})
	good, bad := &api.ContainerUpdate{}, &api.ContainerUpdate{}
	good.SetContainerId(id)
	good.SetLinuxMemoryLimit(48 << 20)
	bad.SetContainerId("nobody")
	bad.SetLinuxMemoryLimit(48 << 20)
	failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{bad, good})
	must(t, err)
	if len(failed) != 1 || failed[0].GetContainerId() != "nobody" {
		t.Errorf("failed: %v", failed)
	}
	equal(t, "memory limit", kernelOf(r, pod, id).memory(), fmt.Sprint(48<<20))
	equal(t, "what the plugin was told of its own change", p.told(), "")
	r.removePod(sandbox, pod)
}

func nriOthers(t *testing.T, r *runtime) {
	pod := r.podConfig("evict")
	sandbox := r.runPod(pod)
	other := r.run(sandbox, pod, r.containerConfig("other", "testbox", "pause"))
	r.connect(t, "10", &plugin{onUpdate: func(c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
		u := &api.ContainerUpdate{}
		u.SetContainerId(other)
		u.SetLinuxCPUShares(77)
		return []*api.ContainerUpdate{u}, nil
	}})
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	_, err := r.UpdateContainerResources(r.ctx(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 500},
	})
	must(t, err)
	equal(t, "shares of the other", r.status(other).GetResources().GetLinux().GetCpuShares(), 77)
	equal(t, "shares of its own", r.status(id).GetResources().GetLinux().GetCpuShares(), 500)
	r.removePod(sandbox, pod)
}

func nriStopUpdates(t *testing.T, r *runtime) {
	pod := r.podConfig("stop-updates")
	sandbox := r.runPod(pod)
	stays := r.run(sandbox, pod, r.containerConfig("stays", "testbox", "pause"))
	ends := r.run(sandbox, pod, r.containerConfig("ends", "testbox", "pause"))
	r.connect(t, "10", &plugin{onStop: func(c *api.Container) ([]*api.ContainerUpdate, error) {
		u := &api.ContainerUpdate{}
		u.SetContainerId(stays)
		u.SetLinuxCPUShares(900)
		return []*api.ContainerUpdate{u}, nil
	}})
	_, err := r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: ends, Timeout: 1})
	must(t, err)
	harness.Eventually(t, callTimeout, "what the ended one gave free", func() string {
		if got := r.status(stays).GetResources().GetLinux().GetCpuShares(); got != 900 {
			return fmt.Sprint(got)
		}
		return ""
	})
	r.removePod(sandbox, pod)
}

func nriPodUpdate(t *testing.T, r *runtime) {
	pod := r.podConfig("pod-update")
	sandbox := r.runPod(pod)
	var asked int64
	p := r.connect(t, "10", &plugin{onUpdatePod: func(_, resources *api.LinuxResources) error {
		if asked = resources.GetMemory().GetLimit().GetValue(); asked > 1<<30 {
			return errors.New("too much")
		}
		return nil
	}})
	update := func(limit int64) error {
		_, err := r.UpdatePodSandboxResources(r.ctx(), &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: sandbox, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: limit},
		})
		return err
	}
	must(t, update(256<<20))
	if err := update(2 << 30); err == nil || !strings.Contains(err.Error(), "too much") {
		t.Errorf("a refused update says: %v", err)
	}
	p.wait("update-pod pod-updated update-pod")
	r.removePod(sandbox, pod)
}

func nriHang(t *testing.T, r *runtime) {
	pod := r.podConfig("hang")
	sandbox := r.runPod(pod)
	release := make(chan struct{})
	p := r.connect(t, "10", &plugin{onCreate: func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		<-release
		return nil, nil, nil
	}})
	t.Cleanup(func() { close(release) })
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	equal(t, "state", r.status(id).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	select {
	case <-p.done:
	case <-time.After(callTimeout):
		t.Error("the plugin was not dropped")
	}
	r.run(sandbox, pod, r.containerConfig("next", "testbox", "pause"))
	r.removePod(sandbox, pod)
	equal(t, "what it was told", p.told(), "create")
}
