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

const startTimeout = 30 * time.Second

// Containerd is containerd with its usual network, in the network namespace of
// a node and with its registry. It ends with the test.
type Containerd struct {
	Socket    string
	NRISocket string
	Dir       string // everything that outlives a reboot

	cmd *exec.Cmd
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
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[5]q]
    conf_dir = %[6]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.nri.v1.nri']
  socket_path = %[8]q
  plugin_path = %[9]q
  plugin_config_path = %[9]q
`

// containerdNetwork is the list that containerd's own documentation installs,
// with a subnet that no other network of the node has.
const containerdNetwork = `{"cniVersion": "1.0.0", "name": "containerd-net", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// StartContainerd runs the containerd in bin, where its shim, runc and the CNI
// plugins are too. pause is the reference of its pods' own container.
func StartContainerd(t harness.TB, n *harness.Node, bin, pause string) *Containerd {
	t.Helper()
	c := &Containerd{
		Socket:    filepath.Join(n.Config.RunDir, "containerd.sock"),
		NRISocket: filepath.Join(n.Config.RunDir, "nri.sock"),
		Dir:       filepath.Join(n.Dir, "containerd"),
	}
	confDir := filepath.Join(c.Dir, "net.d")
	config := filepath.Join(c.Dir, "config.toml")
	for _, dir := range []string{confDir, n.Config.RunDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatalf("%v", err)
		}
	}
	for path, content := range map[string]string{
		config: fmt.Sprintf(containerdConfig, filepath.Join(c.Dir, "root"), filepath.Join(n.Config.RunDir, "containerd"),
			c.Socket, n.CertsDir(), bin, confDir, pause, c.NRISocket, filepath.Join(c.Dir, "nri")),
		filepath.Join(confDir, "10-containerd-net.conflist"): fmt.Sprintf(containerdNetwork, filepath.Join(c.Dir, "ipam")),
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatalf("%v", err)
		}
	}
	logFile := filepath.Join(c.Dir, "containerd.log")
	args := append(n.InNetNS(), filepath.Join(bin, "containerd"), "--config", config)
	var err error
	if c.cmd, _, err = start(t, logFile, append(n.Environ(), "PATH="+bin+":"+os.Getenv("PATH")), args); err != nil {
		t.Fatalf("%v", err)
	}
	client := harness.DialCRI(t, c.Socket)
	harness.Eventually(t, startTimeout, "containerd ready", func() string {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
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
