package harness

import (
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Reboot is a crash of the host and its next boot, as far as a node can tell:
// all processes, mounts, links, rules and cgroups are gone at once, and the
// boot has another ID. With keepRun the run directory is on a disk and is there
// again; otherwise it was a tmpfs.
func (n *Node) Reboot(keepRun bool) {
	n.t.Helper()
	n.Kill()
	for _, down := range []func() error{n.killAll, n.unmountAll, n.resetNetwork, n.removeCgroups} {
		if err := down(); err != nil {
			n.t.Fatalf("bring %s down: %v", n.Name, err)
		}
	}
	if !keepRun {
		if err := os.RemoveAll(n.Config.RunDir); err != nil {
			n.t.Fatalf("bring %s down: %v", n.Name, err)
		}
	}
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	n.bootID = filepath.Join(n.Dir, "boot_id")
	n.write(n.bootID, fmt.Appendf(nil, "%x-%x-%x-%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:]))
	n.Start()
}

// resetNetwork takes away what a node without pods has in its own namespace
// beside its uplink.
func (n *Node) resetNetwork() error {
	script := "ip link show " + n.Config.Network.Bridge + " >/dev/null 2>&1 && ip link del " + n.Config.Network.Bridge + "; nft flush ruleset"
	args := append(n.InNetNS(), "sh", "-c", script)
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", script, err, out)
	}
	return nil
}

// inBoot is a command line prefix that shows a program the boot ID of the last
// Reboot. It gets a mount namespace of its own for that: the kernel has but one
// boot, and other nodes are on it.
func (n *Node) inBoot() []string {
	if n.bootID == "" {
		return nil
	}
	const script = `mount --make-private /proc && mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	return []string{"unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, n.bootID}
}
