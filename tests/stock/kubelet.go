package stock

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/harness"
)

const (
	kubeletPort = "10250"
	stopTimeout = time.Minute
)

// Kubelet is a kubelet without an API server, on the runtime of a node: it runs
// the pods of the node's manifest directory, in the node's cgroups. It ends
// with the test.
type Kubelet struct {
	Config KubeletConfig // for the next start
	API    *rest.Config  // of its server on port 10250

	t    harness.TB
	n    *harness.Node
	bin  string
	http *http.Client
	cmd  *exec.Cmd
	done <-chan struct{}
}

// KubeletConfig is a KubeletConfiguration (kubelet.config.k8s.io/v1beta1).
type KubeletConfig map[string]any

// NewKubelet prepares the kubelet in bin without starting it.
func NewKubelet(t harness.TB, n *harness.Node, bin string) *Kubelet {
	t.Helper()
	k := &Kubelet{t: t, n: n, bin: filepath.Join(bin, "kubelet"), Config: defaultConfig(n)}
	k.API = &rest.Config{Host: "https://" + k.relay(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	k.http = &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, IdleConnTimeout: time.Second}, // its certificate is its own
	}
	if err := harness.MakeCgroup(n.Config.CgroupRoot); err != nil {
		t.Fatalf("the kubelet's cgroup root: %v", err)
	}
	k.shareVolumes()
	k.keepSysctls()
	return k
}

// defaultConfig is the kubelet's own where it can be: what differs is what
// keeps it inside the node, and that nobody need authenticate.
func defaultConfig(n *harness.Node) KubeletConfig {
	return KubeletConfig{
		"apiVersion":                   "kubelet.config.k8s.io/v1beta1",
		"kind":                         "KubeletConfiguration",
		"authentication":               map[string]any{"anonymous": map[string]any{"enabled": true}, "webhook": map[string]any{"enabled": false}},
		"authorization":                map[string]any{"mode": "AlwaysAllow"},
		"containerRuntimeEndpoint":     "unix://" + n.Config.CRISocket,
		"staticPodPath":                n.Config.ManifestDir,
		"podLogsDir":                   n.Config.PodLogsDir,
		"volumePluginDir":              filepath.Join(n.Dir, "volume-plugins"),
		"cgroupRoot":                   n.Config.CgroupRoot,
		"failCgroupV1":                 false,
		"failSwapOn":                   false,
		"makeIPTablesUtilChains":       false,
		"enableControllerAttachDetach": false,
		"registerNode":                 false,
		// The machine's disk is not what is tested.
		"evictionHard": map[string]string{"memory.available": "50Mi"},
	}
}

// Start runs the kubelet and waits until it is healthy.
func (k *Kubelet) Start() {
	k.t.Helper()
	data, err := yaml.Marshal(k.Config)
	if err != nil {
		k.t.Fatalf("%v", err)
	}
	config := filepath.Join(k.n.Dir, "kubelet.yaml")
	if err := os.WriteFile(config, data, 0o644); err != nil {
		k.t.Fatalf("%v", err)
	}
	args := append(k.n.InNetNS(), k.bin, "--config", config, "--root-dir", k.n.Config.KubeletDir,
		"--cert-dir", filepath.Join(k.n.Dir, "kubelet-pki"), "--hostname-override", k.n.Name, "--node-ip", harness.NodeIP)
	err = inPrivate(func() (err error) {
		k.cmd, k.done, err = start(k.t, k.logFile(), k.n.Environ(), args)
		return err
	})
	if err != nil {
		k.t.Fatalf("start the kubelet: %v", err)
	}
	harness.Eventually(k.t, startTimeout, "kubelet healthy", func() string {
		select {
		case <-k.done:
			k.t.Fatalf("the kubelet has ended:\n%s", tail(k.logFile()))
		default:
		}
		if _, err := k.Get("/healthz"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// Stop ends the kubelet; its pods run on.
func (k *Kubelet) Stop() {
	k.t.Helper()
	if err := k.cmd.Process.Signal(unix.SIGTERM); err != nil {
		k.t.Fatalf("stop the kubelet: %v", err)
	}
	select {
	case <-k.done:
	case <-time.After(stopTimeout):
		k.t.Fatalf("the kubelet runs %v after SIGTERM", stopTimeout)
	}
}

func (k *Kubelet) logFile() string { return filepath.Join(k.n.Dir, "kubelet.log") }

// Log is everything that the kubelet printed.
func (k *Kubelet) Log() string {
	data, err := os.ReadFile(k.logFile())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Get asks the kubelet's server on port 10250.
func (k *Kubelet) Get(path string) ([]byte, error) {
	resp, err := k.http.Get(k.API.Host + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
	return body, nil
}

// Pods are the kubelet's, with their status.
func (k *Kubelet) Pods() ([]corev1.Pod, error) {
	body, err := k.Get("/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("GET /pods: %w", err)
	}
	return list.Items, nil
}

// relay makes the kubelet's server reachable from here: the clients of its
// streams cannot be told how to dial.
func (k *Kubelet) relay() (address string) {
	k.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		k.t.Fatalf("%v", err)
	}
	k.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go k.forward(c)
		}
	}()
	return l.Addr().String()
}

func (k *Kubelet) forward(c net.Conn) {
	defer c.Close()
	to, err := k.n.Dial(context.Background(), "tcp", "127.0.0.1:"+kubeletPort)
	if err != nil {
		return // the client sees its connection closed
	}
	defer to.Close()
	go func() {
		_, _ = io.Copy(to, c) // either side ends when it likes
		_ = to.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, to)
}

// shareVolumes lets the runtime see what the kubelet mounts for its pods.
func (k *Kubelet) shareVolumes() {
	k.t.Helper()
	if err := ShareVolumes(k.n.Config.KubeletDir); err != nil {
		k.t.Fatalf("%v", err)
	}
}

// ShareVolumes makes a kubelet's directory a mount of its own whose mounts are
// seen in all mount namespaces that have it.
func ShareVolumes(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := bindToItself(dir); err != nil {
		return fmt.Errorf("bind %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

// bindToItself makes a directory a mount. Where its parent mount is shared, a
// plain bind would be propagated to itself, and be there twice.
func bindToItself(dir string) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// Close gives back what NewKubelet took from the machine, for those who look
// for what is left before the test ends.
func (k *Kubelet) Close() {
	k.t.Helper()
	dir := k.n.Config.KubeletDir
	err := unix.Unmount(dir, 0)
	for err == nil {
		// The kubelet binds its directory to itself once more where it does not take
		// it for shared (pkg/volume/util/hostutil, DoMakeRShared).
		if err = unix.Unmount(dir, 0); errors.Is(err, unix.EINVAL) {
			return
		}
	}
	k.t.Errorf("unmount the kubelet's directory: %v", err)
}

// fixedDirs are above the directories that the kubelet uses whatever its
// configuration says: /var/lib/kubelet/device-plugins and /var/log/containers.
var fixedDirs = []string{"/var/lib", "/var/log"}

// inPrivate calls f on a thread where fixedDirs are empty and the kubelet's own,
// so that one that belongs to this machine is not disturbed.
func inPrivate(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("unshare mounts: %w", err)
			return
		}
		for _, dir := range fixedDirs {
			if err := hide(dir); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// hide mounts an empty directory over dir, for this mount namespace alone.
func hide(dir string) error {
	parents, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return err
	}
	for _, m := range parents {
		if err := unix.Mount("", m.Mountpoint, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make %s private: %w", m.Mountpoint, err)
		}
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", dir, err)
	}
	return nil
}

// kubeletSysctls are those that the kubelet sets for the whole machine.
var kubeletSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

// keepSysctls puts them back when the test ends.
func (k *Kubelet) keepSysctls() {
	k.t.Helper()
	for _, name := range kubeletSysctls {
		path := filepath.Join("/proc/sys", name)
		value, err := os.ReadFile(path)
		if err != nil {
			k.t.Fatalf("%v", err)
		}
		k.t.Cleanup(func() {
			if err := os.WriteFile(path, value, 0o644); err != nil {
				k.t.Errorf("restore %s to %s: %v", path, strings.TrimSpace(string(value)), err)
			}
		})
	}
}
