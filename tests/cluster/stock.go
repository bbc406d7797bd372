package cluster

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-io/berth/tests/images"
	"github.com/berth-io/berth/tests/stock"
)

const socketTimeout = 2 * time.Minute

func (n *Node) containerd() stock.ContainerdConfig {
	return stock.ContainerdConfig{
		Dir: n.path("containerd"), RunDir: n.RunDir, Socket: n.criSocket(),
		Bin: n.c.peers(), CertsDir: n.CertsDir(), Pause: images.PauseReference,
	}
}

// startStock runs containerd, unless it runs, and the kubelet.
func (n *Node) startStock() error {
	name := n.Name + "-containerd"
	if p := n.c.part(name); p == nil || !p.running() {
		config, err := n.containerd().Write()
		if err != nil {
			return err
		}
		if err := stock.ShareVolumes(n.KubeletDir()); err != nil {
			return err
		}
		line := append(n.alone("", "/run/containerd"), filepath.Join(n.c.peers(), "containerd"), "--config", config)
		if err := n.c.start(n.Name, name, line...); err != nil {
			return err
		}
		err = n.c.eventually(context.Background(), socketTimeout, []string{name}, func(context.Context) error {
			_, err := os.Stat(n.criSocket())
			return err
		})
		if err != nil {
			return err
		}
	}
	line := append(n.alone(n.ownSysctls(), "/var/lib", "/var/log"), filepath.Join(n.c.peers(), "kubelet"),
		"--config", n.kubeletConfig(), "--kubeconfig", n.kubeconfig(), "--root-dir", n.KubeletDir(), "--cert-dir", n.path("kubelet-pki"),
		"--hostname-override", n.Name, "--node-ip", n.IP)
	return n.c.start(n.Name, n.agent(), line...)
}

// alone is a command line prefix that gives a program the node's host name, and
// hides from it directories that it would share with others of its kind on
// this machine, whatever its configuration says. It then goes on as more says.
func (n *Node) alone(more string, dirs ...string) []string {
	script := `hostname "$0"
for dir in ` + strings.Join(dirs, " ") + `; do
	mkdir -p $dir
	mount --make-private "$(findmnt --noheadings --output TARGET --target $dir | tail -1)"
	mount -t tmpfs tmpfs $dir
done
` + more + `
exec "$@"`
	return []string{"unshare", "--uts", "--mount", "--propagation", "unchanged", "sh", "-euc", script, n.Name}
}

// ownSysctls shows a kubelet files of its own in place of the sysctls that it
// sets for the whole machine. Not for a runtime: a pod in a user namespace may
// not mount its /proc where part of this one is hidden.
func (n *Node) ownSysctls() string {
	return `mount --make-private /proc
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	own=` + n.path("sysctl") + `/$name
	mkdir -p $(dirname $own)
	cat /proc/sys/$name >$own
	mount --bind $own /proc/sys/$name
done`
}
