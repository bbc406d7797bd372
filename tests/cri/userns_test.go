package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// podIDs are a pod's IDs on the host, as a kubelet gives them.
const (
	podIDs    = 196608
	podIDsLen = 65536
)

func mapping() []*runtimeapi.IDMapping {
	return []*runtimeapi.IDMapping{{ContainerId: 0, HostId: podIDs, Length: podIDsLen}}
}

func userNamespace() *runtimeapi.UserNamespace {
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: mapping(), Gids: mapping()}
}

func TestUserNamespaces(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	st, err := r.Status(r.ctx(), &runtimeapi.StatusRequest{Verbose: true})
	must(t, err)
	if !st.RuntimeHandlers[0].GetFeatures().GetUserNamespaces() {
		t.Fatalf("no user namespaces here: %s", st.Info["info"])
	}
	for name, run := range map[string]func(*testing.T, *runtime){
		"a pod's root is nobody on the host":                    rootIsNobody,
		"a pod's root owns its network, its files and its name": rootOwnsItsNamespaces,
		"a user of the image writes to its streams":             userWritesToStreams,
		"containers share a process namespace":                  sharedProcesses,
		"a privileged container":                                privilegedInUserNamespace,
		"on the network of the node":                            hostNetworkInUserNamespace,
		"several mappings":                                      severalMappings,
		"volumes of images":                                     imagesInUserNamespace,
		"what cannot be mapped is refused":                      unmappedIsRefused,
		"the pod outlives its daemon":                           outlivesDaemon,
	} {
		t.Run(name, func(t *testing.T) { run(t, r.on(t)) })
	}
	r.CheckNothingLeft()
}

// usernsPod is a request for a pod with a user namespace, and one for a
// container of it.
func usernsPod(r *runtime, name string, command ...string) (*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {
	pod, container := r.podConfig(name), r.containerConfig("main", command...)
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace()
	container.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace()
	return pod, container
}

func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func rootIsNobody(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "nobody", "sh", "-c", "echo to the log > /dev/stdout; exec testbox pause")
	volume := t.TempDir()
	file := filepath.Join(volume, "of-user-1000")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Chown(file, 1000, 1000))
	c.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/volume", HostPath: volume, UidMappings: mapping(), GidMappings: mapping()},
		{ContainerPath: "/unmapped", HostPath: volume},
	}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	r.waitLog(pod, c, "to the log")
	equal(t, "uid inside", r.exec(id, "id", "-u"), "0")
	equal(t, "uid_map", strings.Join(strings.Fields(r.exec(id, "cat", "/proc/self/uid_map")), " "), fmt.Sprintf("0 %d %d", podIDs, podIDsLen))
	equal(t, "owner of the image's files", r.exec(id, "stat", "-c", "%u:%g", "/bin/testbox"), "0:0")
	equal(t, "owner of the volume's file", r.exec(id, "stat", "-c", "%u:%g", "/volume/of-user-1000"), "1000:1000")
	equal(t, "owner of it where IDs are not mapped", r.exec(id, "stat", "-c", "%u:%g", "/unmapped/of-user-1000"), "65534:65534")
	r.exec(id, "touch", "/volume/of-root", "/of-root")
	equal(t, "owner on the host of what root made in the volume", owner(t, filepath.Join(volume, "of-root")), "0:0")
	equal(t, "owner on the host of what root made in its own layer", owner(t, filepath.Join(r.Config.RootDir, "containers", id, "upper", "of-root")), "196608:196608")
	r.exec(id, "chown", "1000:1000", "/bin/testbox")
	equal(t, "owner after chown", r.exec(id, "stat", "-c", "%u:%g", "/bin/testbox"), "1000:1000")
	pid := fmt.Sprintf("/proc/%s", infoPid(t, r, id))
	equal(t, "owner of the process on the host", owner(t, pid), "196608:196608")
	r.removePod(sandbox, pod)
}

// infoPid is the process ID that the verbose status has.
func infoPid(t *testing.T, r *runtime, id string) string {
	t.Helper()
	resp, err := r.RuntimeServiceClient.ContainerStatus(r.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(t, err)
	_, after, _ := strings.Cut(resp.Info["info"], `"pid":`)
	pid, _, _ := strings.Cut(after, ",")
	return pid
}

func rootOwnsItsNamespaces(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "owner", "testbox", "pause")
	pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 30000", "kernel.shmmax": "12345678", "fs.mqueue.msg_max": "11"}
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "SYS_ADMIN"}}
	c.Linux.SecurityContext.ReadonlyPaths = nil
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	for name, want := range map[string]string{
		"net/ipv4/ip_local_port_range": "20000 30000", "kernel/shmmax": "12345678", "fs/mqueue/msg_max": "11",
		"net/ipv4/ping_group_range": "0 65535", "net/ipv4/ip_unprivileged_port_start": "0",
	} {
		equal(t, name, strings.Join(strings.Fields(r.exec(id, "cat", "/proc/sys/"+name)), " "), want)
	}
	r.exec(id, "sh", "-c", "echo 2 > /proc/sys/net/ipv4/conf/eth0/rp_filter")
	r.exec(id, "ip", "link", "set", "lo", "mtu", "1400")
	equal(t, "hostname", r.exec(id, "hostname"), "owner")
	r.exec(id, "sh", "-c", "hostname other && echo 10.0.0.1 x >> /etc/hosts && echo y > /dev/shm/y")
	r.exec(id, "mount", "-t", "tmpfs", "tmpfs", "/mnt")
	equal(t, "ping of the loopback by a user", r.exec(id, "sh", "-c", "ping -c 1 -W 5 127.0.0.1 >/dev/null && echo works"), "works")
	r.removePod(sandbox, pod)
}

func userWritesToStreams(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "streams", "sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr; exec testbox pause")
	c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 3000}
	c.Linux.SecurityContext.SupplementalGroups = []int64{4000}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	r.waitLog(pod, c, "stdout F out")
	r.waitLog(pod, c, "stderr F err")
	equal(t, "groups", r.exec(id, "id", "-G"), "3000 2000 4000")
	equal(t, "exec's stdout", r.exec(id, "sh", "-c", "echo again > /dev/stdout"), "again")
	r.removePod(sandbox, pod)
}

func sharedProcesses(t *testing.T, r *runtime) {
	pod, first := usernsPod(r, "shared", "testbox", "pause")
	pod.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	first.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	sandbox := r.runPod(pod)
	a := r.run(sandbox, pod, first)
	_, second := usernsPod(r, "", "testbox", "stubborn")
	second.Metadata.Name, second.LogPath = "second", "second/0.log"
	second.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	b := r.run(sandbox, pod, second)
	r.waitLog(pod, second, "ready")
	if ps := r.exec(a, "ps"); !strings.Contains(ps, "stubborn") || !strings.Contains(ps, "pause") || !strings.Contains(ps, " init") {
		t.Errorf("processes seen by the first container:\n%s", ps)
	}
	for _, ns := range []string{"/proc/self/ns/user", "/proc/self/ns/pid"} {
		equal(t, ns, r.exec(a, "readlink", ns), r.exec(b, "readlink", ns))
	}
	r.removePod(sandbox, pod)
}

func privilegedInUserNamespace(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "privileged", "testbox", "pause")
	pod.Linux.SecurityContext.Privileged = true
	c.Linux.SecurityContext.Privileged = true
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	r.exec(id, "mount", "-t", "tmpfs", "tmpfs", "/mnt")
	r.exec(id, "sh", "-c", "test -c /dev/full && echo x > /dev/null")
	resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo 1 > /proc/sys/kernel/panic"}, Timeout: 30})
	must(t, err)
	if resp.ExitCode == 0 {
		t.Error("root of a user namespace changed the node's kernel.panic")
	}
	r.removePod(sandbox, pod)
}

func hostNetworkInUserNamespace(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "host-network", "testbox", "pause")
	pod.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	pod.Hostname = ""
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	equal(t, "uid_map", strings.Fields(r.exec(id, "cat", "/proc/self/uid_map"))[1], fmt.Sprint(podIDs))
	r.exec(id, "ls", "/sys/class/net/lo")
	resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"ip", "link", "set", "lo", "mtu", "1400"}, Timeout: 30})
	must(t, err)
	if resp.ExitCode == 0 {
		t.Error("root of a user namespace changed the node's network")
	}
	r.removePod(sandbox, pod)
}

// severalMappings leave a hole: 1000 IDs, then 500 from 2000 on.
func severalMappings(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "several", "testbox", "pause")
	for _, u := range []*runtimeapi.UserNamespace{pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions, c.Linux.SecurityContext.NamespaceOptions.UsernsOptions} {
		u.Uids = []*runtimeapi.IDMapping{{HostId: 300000, Length: 1000}, {ContainerId: 2000, HostId: 400000, Length: 500}}
		u.Gids = u.Uids
	}
	c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: t.TempDir(), UidMappings: mapping(), GidMappings: mapping()}}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	r.exec(id, "sh", "-c", "touch /x && chown 2001:2001 /x")
	upper := filepath.Join(r.Config.RootDir, "containers", id, "upper")
	equal(t, "owner on the host", owner(t, filepath.Join(upper, "x")), "400001:400001")
	equal(t, "owner in the volume, whose mapping is another", r.exec(id, "stat", "-c", "%u", "/volume"), "65534")
	r.removePod(sandbox, pod)
}

func imagesInUserNamespace(t *testing.T, r *runtime) {
	r.pull(harness.Busybox)
	pod, c := usernsPod(r, "images", "testbox", "pause")
	for path, image := range map[string]string{"/one-layer": harness.Busybox, "/two-layers": harness.Box} {
		c.Mounts = append(c.Mounts, &runtimeapi.Mount{
			ContainerPath: path, Image: &runtimeapi.ImageSpec{Image: image}, Readonly: true, UidMappings: mapping(), GidMappings: mapping(),
		})
	}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	for _, path := range []string{"/one-layer/bin/busybox", "/two-layers/bin/busybox", "/two-layers/bin/testbox"} {
		equal(t, "owner of "+path, r.exec(id, "stat", "-c", "%u:%g", path), "0:0")
	}
	for _, path := range []string{"/one-layer/x", "/two-layers/x"} {
		if out := r.fails(id, "touch", path); !strings.Contains(out, "Read-only") {
			t.Errorf("touch %s: %s", path, out)
		}
	}
	r.removePod(sandbox, pod)
}

func unmappedIsRefused(t *testing.T, r *runtime) {
	pod, _ := usernsPod(r, "refused")
	sandbox := r.runPod(pod)
	for _, c := range []struct {
		change func(*runtimeapi.ContainerConfig)
		code   codes.Code
		text   string
	}{
		{func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: podIDsLen}
		}, codes.InvalidArgument, "user 65536 is not mapped in the pod's user namespace"},
		{func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.SupplementalGroups = []int64{70000}
		}, codes.InvalidArgument, "group 70000 is not mapped in the pod's user namespace"},
		{func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/volume", HostPath: "/proc/fs", UidMappings: mapping(), GidMappings: mapping()}}
		}, codes.FailedPrecondition, "mounts[/volume].uidMappings: map the IDs of /proc/fs: its file system cannot have ID-mapped mounts"},
		{func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = nil
		}, codes.InvalidArgument, "userns_options: it is not that of the pod"},
	} {
		_, config := usernsPod(r, "")
		c.change(config)
		_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("got %v, want %v: %s", err, c.code, c.text)
		}
	}
	r.removePod(sandbox, pod)
}

func outlivesDaemon(t *testing.T, r *runtime) {
	pod, c := usernsPod(r, "outlives", "testbox", "pause")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, c)
	before := r.exec(id, "readlink", "/proc/self/ns/user")
	r.Kill()
	r.Start()
	equal(t, "state", r.status(id).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "user namespace of an exec", r.exec(id, "readlink", "/proc/self/ns/user"), before)
	_, second := usernsPod(r, "", "testbox", "pause")
	second.Metadata.Name, second.LogPath = "second", "second/0.log"
	equal(t, "user namespace of the next container", r.exec(r.run(sandbox, pod, second), "readlink", "/proc/self/ns/user"), before)
	r.removePod(sandbox, pod)
}
