// Package bare makes what a pod is made of, a network namespace with a veth, an
// overlay and a container by runc, with nothing that manages it: what a node
// cannot be faster than. Benchmarks measure it in turns with what they compare.
package bare

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
	"sync"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// Command is what the containers run, and what a benchmark runs in the pods it
// compares them with: it ends at once on SIGTERM.
var Command = []string{"sh", "-c", `trap "exit 0" TERM; sleep 100000 & wait`}

// Result has what each part of a pod costs, in milliseconds. Exec is no part of
// Total.
type Result struct{ Network, Rootfs, Runc, Total, Exec measure.Series }

// Add takes in what one container cost.
func (r *Result) Add(cost Cost) {
	r.Network.Add(cost.Network)
	r.Rootfs.Add(cost.Rootfs)
	r.Runc.Add(cost.Runc)
	r.Total.Add(cost.Network + cost.Rootfs + cost.Runc)
	r.Exec.Add(cost.Exec)
}

// Cost of one container, in milliseconds.
type Cost struct{ Network, Rootfs, Runc, Exec float64 }

// Host is where containers are made: that of the node they are compared with.
type Host struct {
	Dir        string // for files; it has room below bare/
	Runtime    string // the runc binary
	CgroupRoot string
	// Inside runs a function in the host's network namespace.
	Inside  func(func() error) error
	Busybox func() (v1.Image, error)
}

// HostOf is the host of a test's node.
func HostOf(n *harness.Node) Host {
	return Host{
		Dir: n.Dir, Runtime: n.Config.RuntimeBinary, CgroupRoot: n.Config.CgroupRoot,
		Inside: n.InNetwork, Busybox: n.Builder().Busybox,
	}
}

// Maker makes containers of the busybox image, in the network namespace and
// cgroup of a host.
type Maker struct {
	Seccomp bool // with the filter of RuntimeDefault

	host       Host
	dir, lower string
	bridge     netlink.Link
	made       int
}

// NewMaker prepares what all containers share; Close removes it.
func NewMaker(t harness.TB, host Host) *Maker {
	m := &Maker{host: host, dir: filepath.Join(host.Dir, "bare")}
	m.lower = filepath.Join(m.dir, "image")
	if err := extract(host.Busybox, m.lower); err != nil {
		t.Fatalf("unpack busybox: %v", err)
	}
	m.bridge = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bare0"}}
	if err := host.Inside(func() error { return errors.Join(netlink.LinkAdd(m.bridge), netlink.LinkSetUp(m.bridge)) }); err != nil {
		t.Fatalf("bridge of the bare containers: %v", err)
	}
	return m
}

// Close removes what all containers shared.
func (m *Maker) Close(t harness.TB) {
	if err := m.host.Inside(func() error { return netlink.LinkDel(m.bridge) }); err != nil {
		t.Errorf("bridge of the bare containers: %v", err)
	}
}

// Measure makes and removes one container.
func (m *Maker) Measure(t harness.TB) Cost {
	c := m.next()
	var cost Cost
	err := m.host.Inside(func() (err error) {
		if cost, err = c.run(); err == nil {
			start := time.Now()
			err = c.exec()
			cost.Exec = measure.Milliseconds(time.Since(start))
		}
		return errors.Join(err, c.remove())
	})
	if err != nil {
		t.Fatalf("bare container: %v", err)
	}
	return cost
}

// Burst makes a number of containers, some of them at once, and removes them. It
// returns how long making them took.
func (m *Maker) Burst(t harness.TB, count, atOnce int) time.Duration {
	var all []*container
	todo := make(chan *container, count)
	for range count {
		c := m.next()
		all = append(all, c)
		todo <- c
	}
	close(todo)
	var makers sync.WaitGroup
	errs := make([]error, atOnce)
	start := time.Now()
	for i := range errs {
		makers.Go(func() {
			errs[i] = m.host.Inside(func() error {
				for c := range todo {
					if _, err := c.run(); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	makers.Wait()
	took := time.Since(start)
	errs = append(errs, m.host.Inside(func() error {
		var errs []error
		for _, c := range all {
			errs = append(errs, c.remove())
		}
		return errors.Join(errs...)
	}))
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("bare containers: %v", err)
	}
	return took
}

func (m *Maker) next() *container {
	m.made++
	return &container{
		host: m.host, number: m.made, id: fmt.Sprintf("bare-%d", m.made), dir: filepath.Join(m.dir, fmt.Sprint(m.made)),
		lower: m.lower, bridge: m.bridge, seccomp: m.Seccomp,
	}
}

type container struct {
	host           Host
	number         int
	id, dir, lower string
	bridge         netlink.Link
	seccomp        bool
}

// run returns what network, root file system and runc cost.
func (c *container) run() (cost Cost, err error) {
	for _, sub := range []string{"upper", "work", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(c.dir, sub), 0o755); err != nil {
			return cost, err
		}
	}
	if err := c.writeSpec(); err != nil {
		return cost, err
	}
	for _, step := range []struct {
		do   func() error
		took *float64
	}{
		{c.network, &cost.Network},
		{c.mount, &cost.Rootfs},
		{c.start, &cost.Runc},
	} {
		start := time.Now()
		if err := step.do(); err != nil {
			return cost, err
		}
		*step.took = measure.Milliseconds(time.Since(start))
	}
	return cost, nil
}

// network makes a namespace with a veth on the bridge and an address, in the
// cheapest way there is.
func (c *container) network() error {
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
		LinkAttrs:     netlink.LinkAttrs{Name: fmt.Sprintf("bare%d", c.number), MasterIndex: c.bridge.Attrs().Index, Flags: net.FlagUp},
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
	addr, err := netlink.ParseAddr(fmt.Sprintf("10.99.0.%d/24", c.number%250+2))
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

func (c *container) netns() string { return filepath.Join(c.dir, "netns") }

func (c *container) mount() error {
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", c.lower, c.dir, c.dir)
	return unix.Mount("overlay", filepath.Join(c.dir, "rootfs"), "overlay", 0, options)
}

func (c *container) start() error {
	cmd := exec.Command(c.host.Runtime, "--root", c.runcRoot(), "run", "--detach", "--bundle", c.dir, c.id)
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

func (c *container) exec() error {
	out, err := exec.Command(c.host.Runtime, "--root", c.runcRoot(), "exec", c.id, "echo", "hello").CombinedOutput()
	if err != nil || string(out) != "hello\n" {
		return fmt.Errorf("runc exec: %w: %s", err, out)
	}
	return nil
}

func (c *container) runcRoot() string { return filepath.Join(filepath.Dir(c.dir), "runc") }

func (c *container) remove() error {
	out, err := exec.Command(c.host.Runtime, "--root", c.runcRoot(), "delete", "--force", c.id).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("runc delete: %w: %s", err, out)
	}
	return errors.Join(err, unix.Unmount(filepath.Join(c.dir, "rootfs"), 0), unix.Unmount(c.netns(), unix.MNT_DETACH), os.RemoveAll(c.dir))
}

// writeSpec describes the container as a pod's is: its own namespaces, a
// cgroup, masked paths, and the capabilities that are the default.
func (c *container) writeSpec() error {
	capabilities := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	spec := specs.Spec{
		Version: "1.2.0",
		Process: &specs.Process{
			Args: Command, Env: []string{"PATH=/bin"}, Cwd: "/",
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
			CgroupsPath: filepath.Join(c.host.CgroupRoot, c.id),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace, Path: c.netns()},
			},
			MaskedPaths:   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	if c.seccomp {
		spec.Linux.Seccomp = seccomp.DefaultProfile(&spec)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.dir, "config.json"), data, 0o644)
}

// extract unpacks the busybox image.
func extract(busybox func() (v1.Image, error), dir string) error {
	img, err := busybox()
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
