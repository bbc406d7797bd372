package harness

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/berth-io/berth/tests/leak"
	"golang.org/x/sys/unix"
)

func (n *Node) scope() leak.Scope {
	return leak.Scope{
		Dirs: []string{
			n.Config.RunDir, n.Config.RootDir, n.Config.KubeletDir, n.Config.PodLogsDir, n.Config.ContainerLogsDir,
		},
		Tag:        tagName + "=" + n.Name,
		NetNS:      n.netns.path(),
		CgroupRoot: n.Config.CgroupRoot,
		Machine:    os.Getenv("BERTH_TEST_EXCLUSIVE") != "",
	}
}

func (n *Node) snapshot() leak.Snapshot {
	n.t.Helper()
	s, err := leak.Take(n.scope())
	if err != nil {
		n.t.Fatalf("leak check: %v", err)
	}
	return s
}

// Residue is what a node without pods keeps, and why.
func (c Config) Residue() []leak.Allowed {
	return []leak.Allowed{
		{Kind: "link", Pattern: "node " + c.Network.Bridge, Reason: "the bridge is the node's, not a pod's"},
		{Kind: "cgroup", Pattern: c.CgroupRoot + `(/kubepods(/burstable|/besteffort)?)?`, Reason: "the QoS tree is the node's"},
		{Kind: "cgroup", Pattern: `.*/kubepods\.slice(/kubepods-(burstable|besteffort)\.slice)?`, Reason: "the QoS tree is the node's"},
		{Kind: "process", Pattern: `.*/berth node --config .*`, Reason: "the daemon, when it still runs"},
		{Kind: "rule", Pattern: `table inet berth_cni chain hostports(_masq: type nat .*|_masq|_guard_\w+.*)?`, Reason: "the frame of the host ports, without ports"},
		{Kind: "rule", Pattern: `table inet berth_cni chain (output|prerouting)(: type nat .*|: fib daddr type local jump hostports)?`, Reason: "the same"},
		{Kind: "rule", Pattern: `table inet berth_cni( chain masq_\w+(: type nat .*|: .* comment "leaves network berth")?)?`, Reason: "masquerading is the network's, not a pod's"},
		{Kind: "file", Pattern: c.RootDir + `(/images(/.*)?)?`, Reason: "images stay until they are removed"},
		{Kind: "file", Pattern: c.RootDir + `/claims(/.*)?`, Reason: "claims outlive their pods"},
		{Kind: "file", Pattern: c.RootDir + `/agent/events`, Reason: "the node's history"},
		{Kind: "file", Pattern: c.RootDir + `/(agent(/manifests|/pods)?|containers)`, Reason: "empty directories"},
		{Kind: "file", Pattern: strings.Join([]string{c.KubeletDir, c.KubeletDir + "/pods", c.PodLogsDir, c.ContainerLogsDir}, "|"), Reason: "empty directories"},
		{Kind: "file", Pattern: c.RunDir + `(/cni(/berth(/attachments)?)?|/cni-cache(/results)?|/containers|/ns|/runc|/seccomp(/runtime)?|/runtime-[a-z0-9-]+(/\.cache(/seccomp(/[0-9a-f]+)?)?)?|/sandboxes)?`, Reason: "empty directories"},
		{Kind: "file", Pattern: c.RunDir + `/(cri\.lock|cni/berth/lock|cni/berth/last-reserved-\d)`, Reason: "one for the node, without content of pods"},
		{Kind: "file", Pattern: strings.Join([]string{c.CRISocket, c.APISocket, c.RunDir + `/nri\.sock`}, "|"), Reason: "the daemon's sockets"},
	}
}

// CheckNothingLeft fails the test when anything of a pod is still on the
// machine shortly after the last pod was removed.
func (n *Node) CheckNothingLeft(more ...leak.Allowed) {
	n.t.Helper()
	allowed := append(n.Config.Residue(), more...)
	var left []leak.Item
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if left = leak.Diff(n.before, n.snapshot(), allowed); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	n.t.Errorf("left behind by %s:\n%s", n.Name, leak.Format(left))
}

// sweep removes what the node left, after the checks have had their say.
func (n *Node) sweep() []error {
	var errs []error
	if n.netns != nil {
		errs = append(errs, n.killAll())
	}
	errs = append(errs, n.unmountAll())
	if n.netns != nil {
		errs = append(errs, n.netns.remove())
	}
	errs = append(errs, n.removeCgroups())
	if os.Getenv("BERTH_TEST_KEEP") != "" {
		n.t.Logf("kept: %s %s", n.Dir, n.Config.RunDir)
	} else {
		errs = append(errs, os.RemoveAll(n.Dir), os.RemoveAll(n.Config.RunDir))
	}
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

func (n *Node) killAll() error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		pids, err := leak.Processes(n.scope())
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	}
}

func (n *Node) unmountAll() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, line := range slices.Backward(strings.Split(string(data), "\n")) {
		f := strings.Fields(line)
		if len(f) < 5 || !(strings.HasPrefix(f[4], n.Dir+"/") || strings.HasPrefix(f[4], n.Config.RunDir+"/")) {
			continue
		}
		if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", f[4], err))
		}
	}
	return errors.Join(errs...)
}

func (n *Node) removeCgroups() error {
	if n.Config.CgroupRoot == "/" {
		return nil
	}
	tops, err := filepath.Glob("/sys/fs/cgroup/*" + n.Config.CgroupRoot)
	if err != nil {
		return err
	}
	var errs []error
	for _, top := range append(tops, "/sys/fs/cgroup"+n.Config.CgroupRoot) {
		var dirs []string
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil // what is not there needs no removal
		})
		errs = append(errs, err)
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// ImageFiles are the paths of everything that the node keeps of images.
func (n *Node) ImageFiles() map[string]bool {
	n.t.Helper()
	paths := map[string]bool{}
	err := filepath.WalkDir(n.Config.RootDir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone while we looked
		}
		paths[path] = true
		return err
	})
	if err != nil {
		n.t.Fatalf("list images: %v", err)
	}
	return paths
}
