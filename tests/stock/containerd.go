// Package stock runs the stock counterparts of Berth's parts, containerd and
// the kubelet, in a node's network namespace, directories and cgroups: to
// measure beside them, and to see Berth's parts work under them.
package stock

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

const startTimeout = 2 * time.Minute

// ContainerdConfig is where a containerd keeps what, and what it uses.
type ContainerdConfig struct {
	Dir      string // what outlives a reboot
	RunDir   string // what does not
	Socket   string // CRI; its neighbour is NRI's
	Bin      string // its shim, runc and the CNI plugins
	CertsDir string // registries, as HOST/hosts.toml
	Pause    string // reference of its pods' own container
}

// Nothing but what has to differ from containerd's defaults: directories, the
// registry, and OOM scores that this machine may refuse.
const containerdConfig = `version = 3
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = %[7]q
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = %[4]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[5]q]
    conf_dir = %[6]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      Root = %[10]q
[plugins.'io.containerd.nri.v1.nri']
  socket_path = %[8]q
  plugin_path = %[9]q
  plugin_config_path = %[9]q
`

// containerdNetwork is the list that containerd's own documentation installs,
// but with hairpins instead of promiscuous mode: a pod reaches itself through a
// service.
const containerdNetwork = `{"cniVersion": "1.0.0", "name": "containerd-net", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// NRISocket is where plugins connect.
func (c ContainerdConfig) NRISocket() string {
	return filepath.Join(filepath.Dir(c.Socket), "nri.sock")
}

func (c ContainerdConfig) netDir() string { return filepath.Join(c.Dir, "net.d") }

// Write writes the configuration file and returns its path. There is no network
// until WriteNetwork.
func (c ContainerdConfig) Write() (file string, err error) {
	for _, dir := range []string{c.netDir(), c.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	file = filepath.Join(c.Dir, "config.toml")
	config := fmt.Sprintf(containerdConfig, filepath.Join(c.Dir, "root"), filepath.Join(c.RunDir, "containerd"),
		c.Socket, c.CertsDir, c.Bin, c.netDir(), c.Pause, c.NRISocket(), filepath.Join(c.Dir, "nri"), filepath.Join(c.RunDir, "containerd", "runc"))
	return file, os.WriteFile(file, []byte(config), 0o644)
}

// WriteNetwork gives pods a network with addresses of a subnet.
func (c ContainerdConfig) WriteNetwork(subnet string) error {
	list := fmt.Sprintf(containerdNetwork, filepath.Join(c.Dir, "ipam"), subnet)
	return os.WriteFile(filepath.Join(c.netDir(), "10-containerd-net.conflist"), []byte(list), 0o644)
}

// Containerd is containerd with its usual network, in the network namespace of
// a node and with its registry. It ends with the test.
type Containerd struct {
	Socket    string
	NRISocket string
	Dir       string // everything that outlives a reboot

	cmd *exec.Cmd
}

// podSubnet is one that no other network of a node has.
const podSubnet = "10.89.0.0/16"

// StartContainerd runs the containerd in bin, where its shim, runc and the CNI
// plugins are too. pause is the reference of its pods' own container.
func StartContainerd(t harness.TB, n *harness.Node, bin, pause string) *Containerd {
	t.Helper()
	where := ContainerdConfig{
		Dir: filepath.Join(n.Dir, "containerd"), RunDir: n.Config.RunDir, Socket: filepath.Join(n.Config.RunDir, "containerd.sock"),
		Bin: bin, CertsDir: n.CertsDir(), Pause: pause,
	}
	config, err := where.Write()
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := where.WriteNetwork(podSubnet); err != nil {
		t.Fatalf("%v", err)
	}
	c := &Containerd{Socket: where.Socket, NRISocket: where.NRISocket(), Dir: where.Dir}
	logFile := filepath.Join(c.Dir, "containerd.log")
	args := append(n.InNetNS(), filepath.Join(bin, "containerd"), "--config", config)
	if c.cmd, _, err = start(t, logFile, append(n.Environ(), "PATH="+bin+":"+os.Getenv("PATH")), args); err != nil {
		t.Fatalf("%v", err)
	}
	client := harness.DialCRI(t, c.Socket)
	harness.Eventually(t, startTimeout, "containerd ready", func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		st, err := client.Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			return err.Error() + "\n" + tail(logFile)
		}
		for _, cond := range st.GetStatus().GetConditions() {
			if !cond.Status && (cond.Type == runtimeapi.RuntimeReady || cond.Type == runtimeapi.NetworkReady) {
				return cond.Type + ": " + cond.Message
			}
		}
		return ""
	})
	return c
}

// Pid of containerd; nsenter became it by exec.
func (c *Containerd) Pid() int { return c.cmd.Process.Pid }

// start runs a program until the test ends. The channel is closed when it has
// ended by then.
func start(t harness.TB, logFile string, env, args []string) (*exec.Cmd, <-chan struct{}, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, log, log
	// Interrupting a test must not stop it before the clean-up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start %s: %w", args, err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error means that it has ended
		<-exited
	})
	return cmd, exited, nil
}

// tail returns the end of a log.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4000):])
}
