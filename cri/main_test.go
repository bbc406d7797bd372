package cri_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri"
	"github.com/berth-io/berth/cri/cgroup"
	"github.com/berth-io/berth/cri/image"
	"github.com/berth-io/berth/cri/network"
)

// The tests run in a network and a mount namespace of their own: the whole
// test program is started anew inside them.
const (
	insideEnv = "BERTH_CRI_TEST_INSIDE"
	// Makes the test program a daemon with this configuration, in JSON.
	daemonEnv = "BERTH_CRI_TEST_DAEMON"
	// To run the compiled test elsewhere, as in a virtual machine.
	binEnv    = "BERTH_CRI_TEST_BIN"    // directory with berth-shim, berth-cni and runc
	driverEnv = "BERTH_CRI_TEST_DRIVER" // cgroup driver; default cgroupfs
)

func TestMain(m *testing.M) {
	if config := os.Getenv(daemonEnv); config != "" {
		if err := runDaemon(config); err != nil {
			log.Fatal(err)
		}
		return
	}
	if os.Getuid() != 0 || os.Getenv(insideEnv) != "" {
		os.Exit(m.Run())
	}
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	self.Env = append(os.Environ(), insideEnv+"=1")
	self.Stdout, self.Stderr = os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := self.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		log.Fatal(err)
	}
}

func runDaemon(config string) error {
	var cfg cri.Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	r, err := cri.New(context.Background(), cfg)
	if err != nil {
		return err
	}
	return r.Run(context.Background())
}

// node is a runtime with its directories, a registry and an image.
type node struct {
	dir    string
	driver string
	cgroup string // of all pods
	image  string
	cfg    cri.Config
	logs   *os.File

	cancel  context.CancelFunc
	done    chan error
	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

func newNode(t testing.TB) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it runs containers")
	}
	repo, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	driver := os.Getenv(driverEnv)
	if driver == "" {
		driver = cri.DriverCgroupfs
	}
	dir, err := os.MkdirTemp("", "cri-") // short: it leads to sockets
	if err != nil {
		t.Fatal(err)
	}
	must(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1g"))
	must(t, exec.Command("ip", "link", "set", "lo", "up").Run())
	n := &node{dir: dir, driver: driver, cgroup: "berthcritest" + strconv.Itoa(os.Getpid())}
	t.Cleanup(func() {
		if t.Failed() {
			n.removeAll(t)
		}
		n.stop(t)
		n.checkEmpty(t)
		must(t, n.logs.Close())
		runtime.GC() // closes a probe of the content store's
		must(t, unix.Unmount(dir, 0))
		must(t, os.Remove(dir))
	})
	bin := binaries(t, repo, filepath.Join(dir, "bin"))
	must(t, os.MkdirAll(filepath.Join(dir, "net.d"), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "net.d", "10-test.conflist"), []byte(fmt.Sprintf(`{
		"cniVersion": "1.1.0", "name": "test", "plugins": [{
			"type": "berth-cni", "bridge": "tb0", "isGateway": true, "mtu": 1500,
			"ipam": {"subnets": ["10.99.0.0/24"], "dataDir": %q}}]}`, filepath.Join(dir, "leases"))), 0o644))
	n.logs, err = os.Create(filepath.Join(dir, "daemon.log"))
	must(t, err)
	n.cfg = cri.Config{
		RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"),
		Socket: filepath.Join(dir, "cri.sock"), ShimBinary: filepath.Join(bin, "berth-shim"),
		RuntimeBinary: filepath.Join(bin, "runc"), CgroupDriver: driver, Version: "test",
		Network: network.Config{
			ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{bin}, CacheDir: filepath.Join(dir, "cni"),
		},
		Image:  image.Config{Root: filepath.Join(dir, "images")},
		Logger: slog.New(slog.NewTextHandler(n.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "daemon.log"))
			t.Logf("the daemon's log:\n%s", text)
		}
	})
	n.start(t)
	n.serveImage(t)
	return n
}

// binaries builds what the runtime executes, unless they are given.
func binaries(t testing.TB, repo, into string) string {
	t.Helper()
	if given := os.Getenv(binEnv); given != "" {
		return given
	}
	runc, err := os.ReadFile(filepath.Join(repo, "bin", "runc"))
	if err != nil {
		t.Skip("needs bin/runc: run make build")
	}
	for _, program := range []string{"berth-shim", "berth-cni"} {
		build := exec.Command("go", "build", "-o", filepath.Join(into, program), "./cmd/"+program)
		build.Dir = repo
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", program, err, out)
		}
	}
	must(t, os.WriteFile(filepath.Join(into, "runc"), runc, 0o755))
	return into
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// start is the daemon's start, and a restart when it ran before.
func (n *node) start(t testing.TB) {
	t.Helper()
	r, err := cri.New(context.Background(), n.cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	go func() { n.done <- r.Run(ctx) }()
	n.dial(t)
}

func (n *node) dial(t testing.TB) {
	t.Helper()
	n.connect(t)
	_, err := n.runtime.Version(context.Background(), &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	must(t, err)
}

func (n *node) connect(t testing.TB) {
	t.Helper()
	var err error
	n.conn, err = grpc.NewClient("unix://"+n.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	n.runtime, n.images = runtimeapi.NewRuntimeServiceClient(n.conn), runtimeapi.NewImageServiceClient(n.conn)
}

func (n *node) stop(t testing.TB) {
	t.Helper()
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.cancel = nil
	if err := <-n.done; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	must(t, n.conn.Close())
}

// removeAll is for a test that failed half-way.
func (n *node) removeAll(t testing.TB) {
	if n.cancel == nil {
		n.start(t)
	}
	ctx := context.Background() // the test's own has ended
	list, err := n.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Log(err)
		return
	}
	for _, sb := range list.Items {
		if _, err := n.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb.Id}); err != nil {
			t.Log(err)
		}
	}
}

// serveImage puts busybox into a registry of its own and pulls it.
func (n *node) serveImage(t testing.TB) {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox: install busybox-static")
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	file := func(name string, mode int64, content []byte) {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content))}))
		_, err := w.Write(content)
		must(t, err)
	}
	file("bin/busybox", 0o755, busybox)
	for _, applet := range []string{"sh", "sleep", "cat", "id", "hostname", "ps", "env", "mount", "ls", "nc", "httpd", "kill", "touch", "grep", "stat"} {
		must(t, w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}))
	}
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"))
	file("etc/group", 0o644, []byte("root:x:0:\nuser:x:1000:\nextra:x:2000:user\n"))
	file("seed/data", 0o644, []byte("from the image"))
	must(t, w.Close())
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	must(t, err)
	img, err := mutate.AppendLayers(empty.Image, l)
	must(t, err)
	file0, err := img.ConfigFile()
	must(t, err)
	config := file0.DeepCopy()
	config.Architecture, config.OS = "amd64", "linux"
	config.Config = v1.Config{Cmd: []string{"/bin/sleep", "1000"}, Volumes: map[string]struct{}{"/seed": {}}}
	img, err = mutate.ConfigFile(img, config)
	must(t, err)
	reg := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(reg.Close)
	n.image = strings.TrimPrefix(reg.URL, "http://") + "/busybox:1"
	ref, err := name.ParseReference(n.image)
	must(t, err)
	must(t, remote.Write(ref, img))
	_, err = n.images.PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.image}})
	must(t, err)
}

// checkEmpty fails the test if anything but images is left.
func (n *node) checkEmpty(t testing.TB) {
	t.Helper()
	for _, sub := range []string{"run/sandboxes", "run/containers", "run/ns", "run/runc", "state/containers", "cni/results"} {
		entries, err := os.ReadDir(filepath.Join(n.dir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left: %s/%s", sub, e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, n.dir+"/") {
			t.Errorf("left: mount %s", line)
		}
	}
	for _, root := range n.cgroupDirs("") {
		pods, err := filepath.Glob(filepath.Join(root, "*", "cgroup.procs"))
		must(t, err)
		for _, pod := range pods {
			t.Errorf("left: cgroup %s", filepath.Dir(pod))
		}
	}
	links, err := filepath.Glob("/sys/class/net/veth*")
	must(t, err)
	if len(links) > 0 {
		t.Errorf("left: links %v", links)
	}
	leases, err := filepath.Glob(filepath.Join(n.dir, "leases", "*", "10.99.*"))
	must(t, err)
	if len(leases) > 0 {
		t.Errorf("left: leases %v", leases)
	}
	n.checkProcesses(t)
	n.removeCgroups(t)
}

// checkProcesses waits for the ends that a kill has begun.
func (n *node) checkProcesses(t testing.TB) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		var left []string
		commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
		must(t, err)
		for _, path := range commands {
			command, err := os.ReadFile(path)
			if err == nil && strings.Contains(string(command), n.dir+"/") {
				left = append(left, filepath.Base(filepath.Dir(path))+" "+strings.ReplaceAll(string(command), "\x00", " "))
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("left: processes %q", left)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (n *node) removeCgroups(t testing.TB) {
	t.Helper()
	n.removeCgroup(t, "")
}

// parent is the cgroup of a pod, as the agent names it for the driver.
func (n *node) parent(pod string) string {
	if n.driver == cri.DriverCgroupfs {
		return filepath.Join("/", n.cgroup, pod)
	}
	if pod == "" {
		return n.cgroup + ".slice"
	}
	return n.cgroup + "-" + strings.ReplaceAll(pod, "-", "") + ".slice"
}

// cgroupDirs are those of a pod, or of all pods, that exist.
func (n *node) cgroupDirs(pod string) []string {
	path := n.parent(pod)
	if n.driver == cri.DriverSystemd && pod != "" {
		path = filepath.Join(n.parent(""), path)
	}
	var dirs []string
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(filepath.Join(root, path)) // the pattern is a constant
		dirs = append(dirs, found...)
	}
	return dirs
}

// removeCgroup is what the agent does after a pod. It fails if a container's
// cgroup is left inside.
func (n *node) removeCgroup(t testing.TB, pod string) {
	t.Helper()
	if n.driver == cri.DriverSystemd {
		must(t, exec.Command("systemctl", "stop", n.parent(pod)).Run())
	}
	for _, d := range n.cgroupDirs(pod) {
		if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
	}
}

// pod is a request for a sandbox that its test may change.
func (n *node) pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(n.dir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.parent(name),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

func (n *node) container(name string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: n.image},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 500},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				MaskedPaths:      []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
			},
		},
	}
}

func (n *node) run(t testing.TB, config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	must(t, n.makeCgroup(config.Linux.CgroupParent))
	resp, err := n.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	must(t, err)
	return resp.PodSandboxId
}

// makeCgroup is what the agent does before a pod.
func (n *node) makeCgroup(parent string) error {
	if n.driver == cri.DriverSystemd {
		return nil // a slice comes with the first scope in it
	}
	tree, err := cgroup.Open()
	if err != nil {
		return err
	}
	_, err = tree.Ensure(parent)
	return err
}

func (n *node) create(t testing.TB, sandbox string, config *runtimeapi.ContainerConfig) string {
	t.Helper()
	resp, err := n.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config})
	must(t, err)
	return resp.ContainerId
}

func (n *node) startContainer(t testing.TB, id string) {
	t.Helper()
	_, err := n.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	must(t, err)
}

func (n *node) remove(t testing.TB, sandbox string, config *runtimeapi.PodSandboxConfig) {
	t.Helper()
	_, err := n.runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox})
	must(t, err)
	_, err = n.runtime.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox})
	must(t, err)
	n.removeCgroup(t, config.Metadata.Name)
}

func (n *node) exec(t testing.TB, id string, command ...string) string {
	t.Helper()
	resp, err := n.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 30})
	must(t, err)
	if resp.ExitCode != 0 {
		t.Errorf("%v ended with %d: %s%s", command, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

func (n *node) status(t testing.TB, id string) *runtimeapi.ContainerStatus {
	t.Helper()
	resp, err := n.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	must(t, err)
	return resp.Status
}

// waitFor asks until an answer is right; events are another test's.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
