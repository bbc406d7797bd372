package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-io/berth/tests/harness"
)

// containerdConfig is containerd as its own project tests it, but with the
// node's directories and registry.
const containerdConfig = `version = 3
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.registry]
    config_path = %[4]q
[plugins.'io.containerd.cri.v1.runtime']
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
  restrict_oom_score_adj = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = [%[5]q]
    conf_dir = %[6]q
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.nri.v1.nri']
  disable = %[7]t
  socket_path = %[8]q
  plugin_path = %[9]q
  plugin_config_path = %[9]q
`

const containerdNetwork = `{"cniVersion": "1.0.0", "name": "critest", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "promiscMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// startContainerd runs containerd where the daemon of the node would run. What
// it leaves behind is removed with the node.
func startContainerd(t harness.TB, n *harness.Node, o options) runtimeUnderTest {
	t.Helper()
	dir, err := filepath.Abs(o.containerd)
	if err != nil {
		t.Fatalf("%v", err)
	}
	run := n.Config.RunDir
	rt := runtimeUnderTest{name: "containerd", socket: filepath.Join(run, "containerd.sock")}
	if o.nri {
		rt.nri = filepath.Join(run, "nri.sock")
	}
	plugins := filepath.Join(n.Dir, "nri")
	config := filepath.Join(n.Dir, "containerd.toml")
	for path, content := range map[string]string{
		config: fmt.Sprintf(containerdConfig, filepath.Join(n.Config.RootDir, "containerd"), filepath.Join(run, "containerd"),
			rt.socket, n.CertsDir(), dir, n.Config.CNIConfDir, !o.nri, filepath.Join(run, "nri.sock"), plugins),
		filepath.Join(n.Config.CNIConfDir, "10-critest.conflist"): containerdNetwork,
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatalf("%v", err)
		}
	}
	if err := os.MkdirAll(run, 0o755); err != nil {
		t.Fatalf("%v", err)
	}
	log, err := os.Create(n.LogFile())
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer log.Close()
	args := append(n.InNetNS(), filepath.Join(dir, "containerd"), "--config", config)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(n.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start containerd: %v", err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error means that it has ended
		<-exited
	})
	harness.Eventually(t, 30*time.Second, "containerd serves", func() string {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c, err := new(net.Dialer).DialContext(ctx, "unix", rt.socket)
		if err != nil {
			return err.Error() + "\n" + n.LogTail(20)
		}
		return errorText(c.Close())
	})
	return rt
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
