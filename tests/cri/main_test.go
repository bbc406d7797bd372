// Package cri has a node with the roles cri and network, and asks it through
// its CRI socket, as a kubelet does, what its runtime does and says.
package cri

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

const (
	// maxMessage is the kubelet's bound on an answer.
	maxMessage = 16 << 20
	// callTimeout bounds what a test waits for, on a machine that may be busy.
	callTimeout = 3 * time.Minute
)

// runtime is a node with the roles cri and network, and clients of its socket.
// It is one test's; on gives it to a subtest.
type runtime struct {
	*harness.Node
	runtimeapi.RuntimeServiceClient
	images runtimeapi.ImageServiceClient

	t    testing.TB
	conn *grpc.ClientConn
}

// startRuntime starts a node and pulls harness.Box. It skips without root, so
// that `go test ./...` works for everyone; make test refuses to run without.
func startRuntime(t testing.TB, o harness.Options) *runtime {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	if o.CgroupDriver == "" {
		o.CgroupDriver = os.Getenv("BERTH_TEST_CGROUP_DRIVER")
	}
	amend := o.Amend
	o.Amend = func(c *harness.Config) {
		c.Roles = []string{"cri", "network"}
		if amend != nil {
			amend(c)
		}
	}
	n := harness.StartNode(t, o)
	conn, err := grpc.NewClient("unix://"+n.Config.CRISocket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// The daemon may be restarted: a call waits for it.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second}))
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	r := &runtime{
		Node: n, RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn),
		images: runtimeapi.NewImageServiceClient(conn), t: t, conn: conn,
	}
	r.pull(harness.Box)
	return r
}

// on is the runtime as a subtest sees it: what fails, fails that.
func (r *runtime) on(t testing.TB) *runtime {
	view := *r
	view.Node, view.t = r.Node.For(t), t
	return &view
}

func (r *runtime) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *runtime) pull(ref string) {
	r.t.Helper()
	_, err := r.images.PullImage(r.ctx(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	must(r.t, err)
}

// podConfig is a request for a sandbox that its test may change. Each has an
// identity and a cgroup parent of its own.
func (r *runtime) podConfig(name string) *runtimeapi.PodSandboxConfig {
	id := make([]byte, 4)
	_, _ = rand.Read(id) // never fails
	uid := hex.EncodeToString(id)
	parent := filepath.Join(r.Config.CgroupRoot, "pod"+uid)
	if r.Config.CgroupDriver == "systemd" {
		parent = "berthtest-pod" + uid + ".slice"
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: uid},
		Hostname:     name,
		LogDirectory: filepath.Join(r.Config.PodLogsDir, "default_"+name+"_"+uid),
		Labels: map[string]string{
			"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.uid": uid,
		},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: parent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// containerConfig is a request for a container of harness.Box.
func (r *runtime) containerConfig(name string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: harness.Box},
		Command:  command,
		LogPath:  name + "/0.log",
		Labels:   map[string]string{"io.kubernetes.container.name": name},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100, OomScoreAdj: 500},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			},
		},
	}
}

// runPod makes the log directory, as a kubelet does, and runs the sandbox.
// removePod is its end.
func (r *runtime) runPod(config *runtimeapi.PodSandboxConfig) string {
	r.t.Helper()
	must(r.t, os.MkdirAll(config.GetLogDirectory(), 0o755))
	resp, err := r.RunPodSandbox(r.ctx(), &runtimeapi.RunPodSandboxRequest{Config: config})
	must(r.t, err)
	return resp.PodSandboxId
}

func (r *runtime) create(sandbox string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	must(r.t, os.MkdirAll(filepath.Dir(filepath.Join(pod.GetLogDirectory(), config.GetLogPath())), 0o755))
	resp, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: sandbox, Config: config, SandboxConfig: pod,
	})
	must(r.t, err)
	return resp.ContainerId
}

func (r *runtime) start(id string) {
	r.t.Helper()
	_, err := r.StartContainer(r.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	must(r.t, err)
}

// run creates and starts a container.
func (r *runtime) run(sandbox string, pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	id := r.create(sandbox, pod, config)
	r.start(id)
	return id
}

// exec runs a command, which must exit 0, and returns its trimmed output.
func (r *runtime) exec(id string, command ...string) string {
	r.t.Helper()
	resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
	must(r.t, err)
	if resp.ExitCode != 0 {
		r.t.Fatalf("%q ended with %d: %s%s", command, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

func (r *runtime) status(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	resp, err := r.RuntimeServiceClient.ContainerStatus(r.ctx(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	must(r.t, err)
	return resp.Status
}

// log is what a container has printed so far, in the CRI's format.
func (r *runtime) log(pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	data, err := os.ReadFile(filepath.Join(pod.GetLogDirectory(), config.GetLogPath()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.t.Fatal(err)
	}
	return string(data)
}

// waitLog waits until a container has printed a text.
func (r *runtime) waitLog(pod *runtimeapi.PodSandboxConfig, config *runtimeapi.ContainerConfig, text string) {
	r.t.Helper()
	harness.Eventually(r.t, callTimeout, fmt.Sprintf("log of %s with %q", config.GetMetadata().GetName(), text), func() string {
		if log := r.log(pod, config); !strings.Contains(log, text) {
			return fmt.Sprintf("it is %.2000q", log)
		}
		return ""
	})
}

// waitExit waits for a container's end.
func (r *runtime) waitExit(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	var st *runtimeapi.ContainerStatus
	harness.Eventually(r.t, callTimeout, "end of container "+id, func() string {
		if st = r.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return st.State.String()
		}
		return ""
	})
	return st
}

// removePod stops and removes a sandbox, then what a kubelet makes and removes
// itself: the pod's cgroup and its logs.
func (r *runtime) removePod(sandbox string, config *runtimeapi.PodSandboxConfig) {
	r.t.Helper()
	_, err := r.StopPodSandbox(r.ctx(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
	must(r.t, err)
	_, err = r.RemovePodSandbox(r.ctx(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
	must(r.t, err)
	must(r.t, os.RemoveAll(config.GetLogDirectory()))
	r.removePodCgroup(config)
}

// removePodCgroup fails when a container's cgroup is left inside.
func (r *runtime) removePodCgroup(config *runtimeapi.PodSandboxConfig) {
	r.t.Helper()
	parent := config.GetLinux().GetCgroupParent()
	if parent == "" {
		return
	}
	if r.Config.CgroupDriver == "systemd" {
		if out, err := exec.Command("systemctl", "stop", parent).CombinedOutput(); err != nil {
			r.t.Errorf("stop %s: %v: %s", parent, err, out)
		}
		parent = "berthtest.slice/" + parent
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, err := filepath.Glob(filepath.Join(pattern, parent))
		must(r.t, err)
		for _, dir := range dirs {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				r.t.Errorf("remove cgroup %s: %v", dir, err)
			}
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
