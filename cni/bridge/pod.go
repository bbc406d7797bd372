package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// loopbackIndex is the index of lo in every network namespace.
const loopbackIndex = 1

// ErrNetNS says that a path is not a usable network namespace of a pod.
var ErrNetNS = errors.New("unusable network namespace")

// Pod configures the inside of a pod's network namespace.
type Pod struct {
	path string
	ns   *os.File
	nl   *netlink.Handle
}

// Route is a route inside the pod.
type Route struct {
	Dst      netip.Prefix
	Gateway  netip.Addr // invalid: Dst is on the link
	MTU      int        // 0: that of the link
	AdvMSS   int
	Priority int
	Table    int // 0: main
	Scope    int
}

// PodConfig is what the pod's interface gets.
type PodConfig struct {
	IfName    string
	Addresses []netip.Prefix
	Routes    []Route
}

// OpenPod opens the network namespace at path. It must be one, and not that of
// the calling thread. The caller closes the Pod. Errors wrap ErrNetNS when the
// path is to blame.
func OpenPod(path string) (*Pod, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNetNS, err)
	}
	pod := &Pod{path: path, ns: f}
	if err := pod.verify(); err != nil {
		f.Close()
		return nil, err
	}
	pod.nl, err = netlink.NewHandleAt(netns.NsHandle(f.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open a netlink socket in %s: %w", path, err)
	}
	return pod, nil
}

// verify asserts that the file is a network namespace, and not this one.
func (p *Pod) verify() error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(p.ns.Fd()), &fs); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNetNS, p.path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("%w: %s is not a namespace", ErrNetNS, p.path)
	}
	var own, pod unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &own); err != nil {
		return fmt.Errorf("stat own network namespace: %w", err)
	}
	if err := unix.Fstat(int(p.ns.Fd()), &pod); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNetNS, p.path, err)
	}
	if own.Dev == pod.Dev && own.Ino == pod.Ino {
		return fmt.Errorf("%w: %s is the host's own", ErrNetNS, p.path)
	}
	return nil
}

// Close releases the namespace and the netlink socket.
func (p *Pod) Close() {
	p.nl.Close()
	p.ns.Close()
}

// Prepare sets the defaults that interfaces made in the pod later inherit: no
// router advertisements, which any other pod on the bridge could forge
// (CVE-2020-10749), and no duplicate address detection.
func (p *Pod) Prepare() error {
	done := make(chan error, 1)
	go func() {
		// A thread that could not be brought back must not run other
		// goroutines: it ends with this one because it stays locked.
		runtime.LockOSThread()
		back, err := p.inside(func() error {
			if err := setSysctl("net/ipv6/conf/default/accept_ra", "0"); err != nil {
				return err
			}
			return setSysctl("net/ipv6/conf/default/accept_dad", "0")
		})
		if back {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("prepare network namespace %s: %w", p.path, err)
	}
	return nil
}

// inside runs f on the calling thread, which must be locked, in the pod's
// namespace. back tells that the thread is in its own namespace again.
func (p *Pod) inside(f func() error) (back bool, err error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return true, fmt.Errorf("open own network namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return true, fmt.Errorf("enter network namespace: %w", err)
	}
	err = f()
	if backErr := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); backErr != nil {
		return false, errors.Join(err, fmt.Errorf("leave network namespace: %w", backErr))
	}
	return true, err
}

// Configure brings loopback up and gives the interface made by Host.Attach its
// addresses and routes. It returns the interface's hardware address.
func (p *Pod) Configure(cfg PodConfig) (net.HardwareAddr, error) {
	lo := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: loopbackIndex}}
	if err := p.nl.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("set lo up in %s: %w", p.path, err)
	}
	link, err := p.nl.LinkByName(cfg.IfName)
	if err != nil {
		return nil, fmt.Errorf("find %s in %s: %w", cfg.IfName, p.path, err)
	}
	// First of all, so that the carrier event is over when the rest is done.
	if err := p.nl.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set %s up in %s: %w", cfg.IfName, p.path, err)
	}
	for _, addr := range cfg.Addresses {
		if err := addAddress(p.nl, link, addr); err != nil {
			return nil, fmt.Errorf("add address %s to %s in %s: %w", addr, cfg.IfName, p.path, err)
		}
	}
	for _, r := range cfg.Routes {
		if err := p.nl.RouteAdd(r.netlink(link.Attrs().Index)); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("add route to %s by %s in %s: %w", r.Dst, r.Gateway, p.path, err)
		}
	}
	return link.Attrs().HardwareAddr, nil
}

func (r Route) netlink(index int) *netlink.Route {
	out := &netlink.Route{
		LinkIndex: index,
		Dst:       ipNet(r.Dst),
		MTU:       r.MTU,
		AdvMSS:    r.AdvMSS,
		Priority:  r.Priority,
		Table:     r.Table,
		Scope:     netlink.Scope(r.Scope),
	}
	if r.Gateway.IsValid() {
		out.Gw = r.Gateway.AsSlice()
	}
	return out
}
