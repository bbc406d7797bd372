package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/tests/harness"
)

// bareResult has what each part of a pod costs when nothing manages it, in
// milliseconds.
type bareResult struct{ network, rootfs, runc, total []float64 }

func (r *bareResult) add(cost [3]float64) {
	r.network = append(r.network, cost[0])
	r.rootfs = append(r.rootfs, cost[1])
	r.runc = append(r.runc, cost[2])
	r.total = append(r.total, cost[0]+cost[1]+cost[2])
}

func (r *bareResult) print() {
	fmt.Printf("%-44s %8.1f ms  p90 %.1f  = network %.1f + overlay %.1f + runc run -d %.1f\n", fmt.Sprintf("bare cost of a pod, %d one at a time, p50", len(r.total)),
		percentile(r.total, 50), percentile(r.total, 90), percentile(r.network, 50), percentile(r.rootfs, 50), percentile(r.runc, 50))
}

// bareMaker makes containers of the same image and command as the pods, in the
// network namespace and cgroup of the node that runs those.
type bareMaker struct {
	n          *harness.Node
	dir, lower string
	bridge     netlink.Link
	made       int
}

func newBareMaker(t harness.TB, n *harness.Node) *bareMaker {
	m := &bareMaker{n: n, dir: filepath.Join(n.Dir, "bare")}
	m.lower = filepath.Join(m.dir, "image")
	if err := extract(n, m.lower); err != nil {
		t.Fatalf("unpack busybox: %v", err)
	}
	m.bridge = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bare0"}}
	if err := n.InNetwork(func() error { return errors.Join(netlink.LinkAdd(m.bridge), netlink.LinkSetUp(m.bridge)) }); err != nil {
		t.Fatalf("bridge of the bare containers: %v", err)
	}
	return m
}

// close removes what all containers shared.
func (m *bareMaker) close(t harness.TB) {
	if err := m.n.InNetwork(func() error { return netlink.LinkDel(m.bridge) }); err != nil {
		t.Errorf("bridge of the bare containers: %v", err)
	}
}

// measure makes and removes one container.
func (m *bareMaker) measure(t harness.TB) [3]float64 {
	m.made++
	c := &bareContainer{n: m.n, id: fmt.Sprintf("bare-%d", m.made), dir: filepath.Join(m.dir, fmt.Sprint(m.made)), lower: m.lower, bridge: m.bridge}
	var cost [3]float64
	err := m.n.InNetwork(func() (err error) {
		cost, err = c.run(m.made)
		return errors.Join(err, c.remove())
	})
	if err != nil {
		t.Fatalf("bare container: %v", err)
	}
	return cost
}

type bareContainer struct {
	n              *harness.Node
	id, dir, lower string
	bridge         netlink.Link
}

// run returns what network, root file system and runc cost.
func (c *bareContainer) run(i int) (cost [3]float64, err error) {
	for _, sub := range []string{"upper", "work", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(c.dir, sub), 0o755); err != nil {
			return cost, err
		}
	}
	if err := c.writeSpec(); err != nil {
		return cost, err
	}
	steps := []func() error{func() error { return c.network(i) }, c.mount, c.start}
	for step, f := range steps {
		start := time.Now()
		if err := f(); err != nil {
			return cost, err
		}
		cost[step] = milliseconds(time.Since(start))
	}
	return cost, nil
}

// network makes a namespace with a veth on the bridge and an address, in the
// cheapest way there is.
func (c *bareContainer) network(i int) error {
	home, err := netns.Get()
	if err != nil {
		return err
	}
	defer home.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare the network: %w", err)
	}
	pod, err := netns.Get()
	if err != nil {
		return err
	}
	defer pod.Close()
	if err := os.WriteFile(c.netns(), nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount("/proc/thread-self/ns/net", c.netns(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin the network namespace: %w", err)
	}
	if err := netns.Set(home); err != nil {
		return err
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: fmt.Sprintf("bare%d", i+1), MasterIndex: c.bridge.Attrs().Index, Flags: net.FlagUp},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(pod),
	}
	if err := errors.Join(netlink.LinkAdd(veth), netlink.LinkSetUp(veth)); err != nil {
		return fmt.Errorf("veth: %w", err)
	}
	h, err := netlink.NewHandleAt(pod, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(fmt.Sprintf("10.99.0.%d/24", i%250+2))
	if err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(h.AddrAdd(eth0, addr), h.LinkSetUp(eth0), h.LinkSetUp(lo),
		h.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.IPv4(10, 99, 0, 1)}))
}

func (c *bareContainer) netns() string { return filepath.Join(c.dir, "netns") }

func (c *bareContainer) mount() error {
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", c.lower, c.dir, c.dir)
	return unix.Mount("overlay", filepath.Join(c.dir, "rootfs"), "overlay", 0, options)
}

func (c *bareContainer) start() error {
	cmd := exec.Command(c.n.Config.RuntimeBinary, "--root", c.runcRoot(), "run", "--detach", "--bundle", c.dir, c.id)
	// The container inherits these: a pipe would keep Output waiting for it.
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("runc run: %w: %s", err, text)
	}
	return nil
}

func (c *bareContainer) runcRoot() string { return filepath.Join(filepath.Dir(c.dir), "runc") }

func (c *bareContainer) remove() error {
	out, err := exec.Command(c.n.Config.RuntimeBinary, "--root", c.runcRoot(), "delete", "--force", c.id).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("runc delete: %w: %s", err, out)
	}
	return errors.Join(err, unix.Unmount(filepath.Join(c.dir, "rootfs"), 0), unix.Unmount(c.netns(), unix.MNT_DETACH), os.RemoveAll(c.dir))
}

// writeSpec describes the container as a pod's is: its own namespaces, a
// cgroup, masked paths, and the capabilities that are the default.
func (c *bareContainer) writeSpec() error {
	capabilities := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	spec := specs.Spec{
		Version: "1.2.0",
		Process: &specs.Process{
			Args: command, Env: []string{"PATH=/bin"}, Cwd: "/",
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: c.id,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join(c.n.Config.CgroupRoot, c.id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: c.netns()},
			},
			MaskedPaths:   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "config.json"), data, 0o644)
}

// extract unpacks the busybox image.
func extract(n *harness.Node, dir string) error {
	img, err := n.Builder().Busybox()
	if err != nil {
		return err
	}
	content := mutate.Extract(img)
	defer content.Close()
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, os.FileMode(h.Mode))
		case tar.TypeLink:
			err = os.Link(filepath.Join(dir, h.Linkname), path)
		default:
			var data []byte
			if data, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, data, os.FileMode(h.Mode))
			}
		}
		if err != nil {
			return err
		}
	}
}

func machine() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d CPUs, Linux %s", runtime.NumCPU(), string(release[:len(release)-1]))
}
