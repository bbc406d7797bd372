package cri

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestSecurityOfPods(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	for name, run := range map[string]func(*testing.T, *runtime){
		"sandboxes that cannot be had are refused":            refusedSandboxes,
		"sysctls of a pod":                                    podSysctls,
		"a container enters the process namespace of another": targetNamespace,
		"name, name servers and hosts":                        podFiles,
		"the OOM score is what the daemon may set":            oomScore,
		"the stop signal of the request":                      stopSignal,
	} {
		t.Run(name, func(t *testing.T) { run(t, r.on(t)) })
	}
	r.CheckNothingLeft()
}

func refusedSandboxes(t *testing.T, r *runtime) {
	for _, c := range []struct {
		change func(*runtimeapi.PodSandboxConfig, *runtimeapi.LinuxSandboxSecurityContext)
		text   string
	}{
		{func(_ *runtimeapi.PodSandboxConfig, sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		}, "config.linux.security_context.run_as_group: it needs run_as_user"},
		{func(pod *runtimeapi.PodSandboxConfig, _ *runtimeapi.LinuxSandboxSecurityContext) {
			pod.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}, "config.linux.sysctls: sysctl kernel.panic is not namespaced"},
		{func(pod *runtimeapi.PodSandboxConfig, _ *runtimeapi.LinuxSandboxSecurityContext) {
			pod.Linux.Sysctls = map[string]string{"net.ipv4/../../kernel.panic": "1"}
		}, "is not a valid name"},
		{func(pod *runtimeapi.PodSandboxConfig, sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
			pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		}, "config.linux.sysctls: sysctl net.ipv4.ip_forward cannot be set: the pod uses the net namespace of the node"},
		{func(pod *runtimeapi.PodSandboxConfig, sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
			pod.Linux.Sysctls = map[string]string{"kernel.shmmax": "1"}
		}, "config.linux.sysctls: sysctl kernel.shmmax cannot be set: the pod uses the ipc namespace of the node"},
		{func(_ *runtimeapi.PodSandboxConfig, sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER
		}, "namespace_options.network: a pod's is POD or NODE"},
		{func(_ *runtimeapi.PodSandboxConfig, sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.UsernsOptions = userNamespace()
			sc.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
		}, "a pod with a user namespace cannot use the node's pid namespace"},
		{func(pod *runtimeapi.PodSandboxConfig, sc *runtimeapi.LinuxSandboxSecurityContext) {
			sc.NamespaceOptions.UsernsOptions = userNamespace()
			pod.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}, "config.linux.sysctls: sysctl kernel.panic is not namespaced"},
	} {
		pod := r.podConfig("refused")
		c.change(pod, pod.Linux.SecurityContext)
		_, err := r.RunPodSandbox(r.ctx(), &runtimeapi.RunPodSandboxRequest{Config: pod})
		r.refused(err, codes.InvalidArgument, c.text)
		r.removePodCgroup(pod)
	}
}

func podSysctls(t *testing.T, r *runtime) {
	pod := r.podConfig("sysctls")
	pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1", "net/ipv4/conf/all/rp_filter": "0"}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	for name, want := range map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "80", "kernel/shm_rmid_forced": "1", "net/ipv4/conf/all/rp_filter": "0",
		"net/ipv4/ping_group_range": "0\t2147483647", // not asked for
	} {
		equal(t, name, r.exec(id, "cat", "/proc/sys/"+name), want)
	}
	r.removePod(sandbox, pod)
}

func targetNamespace(t *testing.T, r *runtime) {
	pod := r.podConfig("target")
	sandbox := r.runPod(pod)
	stubborn := r.containerConfig("first", "testbox", "stubborn")
	first := r.run(sandbox, pod, stubborn)
	r.waitLog(pod, stubborn, "ready")
	debug := r.containerConfig("debug", "testbox", "pause")
	debug.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
	debug.Linux.SecurityContext.NamespaceOptions.TargetId = first
	id := r.run(sandbox, pod, debug)
	if ps := r.exec(id, "ps"); !strings.Contains(ps, "stubborn") {
		t.Errorf("processes seen by the debugger:\n%s", ps)
	}
	// Another pod's container is none of its business.
	other := r.podConfig("other")
	otherSandbox := r.runPod(other)
	debug.Metadata.Name = "stranger"
	_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: otherSandbox, Config: debug, SandboxConfig: other})
	r.refused(err, codes.FailedPrecondition, "does not run in sandbox "+otherSandbox)
	debug.Linux.SecurityContext.NamespaceOptions.TargetId = ""
	_, err = r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: debug, SandboxConfig: pod})
	r.refused(err, codes.InvalidArgument, "namespace_options.target_id: it is empty")
	r.removePod(otherSandbox, other)
	r.removePod(sandbox, pod)
}

func podFiles(t *testing.T, r *runtime) {
	pod := r.podConfig("files")
	pod.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1", "192.0.2.2"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5"}}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	equal(t, "hostname", r.exec(id, "hostname"), "files")
	equal(t, "/etc/hostname", r.exec(id, "cat", "/etc/hostname"), "files")
	equal(t, "$HOSTNAME", r.exec(id, "sh", "-c", "echo $HOSTNAME"), "files")
	equal(t, "/etc/resolv.conf", r.exec(id, "cat", "/etc/resolv.conf"), "search a.example b.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\noptions ndots:5")
	r.removePod(sandbox, pod)
}

func oomScore(t *testing.T, r *runtime) {
	lowest := -1000
	if allCapabilities()&(1<<24) == 0 { // CAP_SYS_RESOURCE
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", r.Pid()))
		must(t, err)
		lowest, err = strconv.Atoi(strings.TrimSpace(string(text)))
		must(t, err)
	}
	pod := r.podConfig("oom")
	sandbox := r.runPod(pod)
	for name, score := range map[string]int{"high": 900, "low": -998} {
		c := r.containerConfig(name, "testbox", "pause")
		c.Linux.Resources.OomScoreAdj = int64(score)
		equal(t, name, r.exec(r.run(sandbox, pod, c), "cat", "/proc/1/oom_score_adj"), fmt.Sprint(max(score, lowest)))
	}
	r.removePod(sandbox, pod)
}

func stopSignal(t *testing.T, r *runtime) {
	pod := r.podConfig("signal")
	sandbox := r.runPod(pod)
	c := r.containerConfig("main", "sh", "-c", "trap 'echo got it; exit 5' USR1; echo ready; while :; do sleep 0.1; done")
	c.StopSignal = runtimeapi.Signal_SIGUSR1
	id := r.run(sandbox, pod, c)
	r.waitLog(pod, c, "ready")
	equal(t, "in the status", r.status(id).StopSignal, runtimeapi.Signal_SIGUSR1)
	// With another signal it would have to wait for longer than a call may take.
	_, err := r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 3600})
	must(t, err)
	equal(t, "exit code", r.waitExit(id).ExitCode, 5)
	r.removePod(sandbox, pod)
}
