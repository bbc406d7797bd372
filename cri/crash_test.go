//go:build failpoints

package cri_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// scenario takes a pod through its whole life. After a crash its calls fail;
// that is for the restart to mend. It reports what it was told.
func scenario(ctx context.Context, n *node, pod *runtimeapi.PodSandboxConfig) (told map[string]string, err error) {
	told = map[string]string{}
	sandbox, err := n.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return told, err
	}
	told["sandbox"] = sandbox.PodSandboxId
	for _, name := range []string{"stopped", "killed"} {
		c := n.container(name, "sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.02; done")
		if name == "killed" {
			c.Linux.SecurityContext.NamespaceOptions = pod.Linux.SecurityContext.NamespaceOptions
		}
		created, err := n.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, Config: c})
		if err != nil {
			return told, err
		}
		told["created "+name] = created.ContainerId
		if _, err := n.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
			return told, err
		}
		told["started "+name] = created.ContainerId
	}
	time.Sleep(50 * time.Millisecond) // for the trap
	if _, err := n.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: told["created stopped"], Timeout: 30}); err != nil {
		return told, err
	}
	told["stopped"] = told["created stopped"]
	if _, err := n.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: told["stopped"]}); err != nil {
		return told, err
	}
	told["removed"] = told["stopped"]
	if _, err := n.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId}); err != nil {
		return told, err
	}
	_, err = n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
	return told, err
}

func TestACrashAtAnyLineIsMendedByTheRestart(t *testing.T) {
	n := newNode(t)
	n.stop(t)
	pod := func(name string) *runtimeapi.PodSandboxConfig {
		p := n.pod(name)
		p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		p.Linux.CgroupParent = "" // the runtime's own
		return p
	}
	trace := filepath.Join(n.dir, "trace")
	daemon := n.daemon(t, "BERTH_FAILPOINT_TRACE="+trace)
	if _, err := scenario(t.Context(), n, pod("whole")); err != nil {
		t.Fatal(err)
	}
	n.kill(t, daemon)
	hits, err := os.ReadFile(trace)
	must(t, err)
	var names []string
	for name := range strings.Lines(string(hits)) {
		name = strings.TrimSpace(name)
		if (strings.HasPrefix(name, "cri/") || strings.HasPrefix(name, "shim/")) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) < 30 {
		t.Errorf("only %d failpoints: %v", len(names), names)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { crashAt(t, n, name, pod("crash")) })
	}
	n.start(t)
}

func crashAt(t *testing.T, n *node, name string, pod *runtimeapi.PodSandboxConfig) {
	daemon := n.daemon(t, "BERTH_FAILPOINT="+name)
	var told map[string]string
	if daemon != nil {
		var err error
		if told, err = scenario(t.Context(), n, pod); err == nil {
			time.Sleep(100 * time.Millisecond) // for what is done in the background
		}
		n.kill(t, daemon)
	}
	sandboxes, err := os.ReadDir(filepath.Join(n.cfg.RunDir, "sandboxes"))
	must(t, err)
	n.start(t)
	defer n.stop(t)
	for what, id := range told {
		resp, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		switch {
		case what == "sandbox" || told["removed"] != "" || err != nil:
		case what == "stopped" && resp.Status.ExitCode != 3:
			t.Errorf("the exit code is lost: %v", resp.Status)
		case what == "started killed" && told["stopped"] == "" && resp.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING:
			t.Errorf("a container did not live through the crash: %v", resp.Status)
		}
	}
	// What the caller does next: the same again, until it is done.
	list, err := n.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	must(t, err)
	for _, sb := range list.Items {
		_, err := n.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb.Id})
		must(t, err)
	}
	if _, err := scenario(t.Context(), n, pod); err != nil {
		t.Errorf("the same pod again: %v", err)
	}
	n.checkEmpty(t)
	for _, sb := range sandboxes {
		left, err := filepath.Glob("/sys/fs/cgroup/*/berth/" + sb.Name())
		must(t, err)
		if len(left) > 0 {
			t.Errorf("left: cgroups %s", left)
		}
	}
}

// daemon starts the runtime as a process of its own; nil when it was killed on
// its way up.
func (n *node) daemon(t *testing.T, env string) *daemon {
	t.Helper()
	cfg := n.cfg
	cfg.Logger = nil
	config, err := json.Marshal(cfg)
	must(t, err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), daemonEnv+"="+string(config), env)
	cmd.Stdout, cmd.Stderr = n.logs, n.logs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	must(t, cmd.Start())
	d := &daemon{process: cmd.Process, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // killed, always
		close(d.ended)
	}()
	if !n.await(t, d.ended) {
		return nil
	}
	return d
}

type daemon struct {
	process *os.Process
	ended   chan struct{}
}

// await waits for the daemon to serve, or to end.
func (n *node) await(t *testing.T, ended <-chan struct{}) (up bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	served := make(chan error, 1)
	n.connect(t)
	go func() {
		for {
			_, err := n.runtime.Version(ctx, &runtimeapi.VersionRequest{})
			if err == nil || ctx.Err() != nil {
				served <- err
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	select {
	case err := <-served:
		must(t, err)
		return true
	case <-ended:
		must(t, n.conn.Close())
		return false
	}
}

func (n *node) kill(t *testing.T, d *daemon) {
	t.Helper()
	_ = d.process.Kill() // it may have done so itself
	<-d.ended
	must(t, n.conn.Close())
}
