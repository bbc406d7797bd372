// Package netnstest gives tests network namespaces of their own: hosts, pods
// and the world outside, on one machine, without a mount or a name that could
// be left behind.
package netnstest

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace that lives as long as its test.
type NS struct {
	// Path opens the namespace from any process of the machine.
	Path string
	file *os.File
}

// New makes a network namespace with loopback up. It skips the test when not
// root.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	made := make(chan error, 1)
	ns := &NS{}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		made <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			if ns.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		}()
	}()
	if err := <-made; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
	t.Cleanup(func() { ns.file.Close() })
	return ns
}

// Fd returns the file descriptor of the namespace.
func (n *NS) Fd() int { return int(n.file.Fd()) }

// Close drops the namespace before the end of the test.
func (n *NS) Close() { n.file.Close() }

// Do runs f on a thread inside the namespace, and programs that f starts are
// inside too.
func (n *NS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, as in New
		if err := unix.Setns(n.Fd(), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Must is Do for steps that a test cannot do without.
func (n *NS) Must(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Do(f); err != nil {
		t.Fatal(err)
	}
}

// Connect links two namespaces by a veth pair with the given addresses
// (10.0.0.1/24), the first of which becomes the far side's default gateway when
// gateway is set.
func Connect(t testing.TB, near, far *NS, name string, nearAddrs, farAddrs []string, gateway bool) {
	t.Helper()
	near.Must(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(far.Fd())})
	})
	for _, side := range []struct {
		ns    *NS
		addrs []string
	}{{near, nearAddrs}, {far, farAddrs}} {
		side.ns.Must(t, func() error { return configure(name, side.addrs) })
	}
	if !gateway {
		return
	}
	far.Must(t, func() error {
		for _, a := range nearAddrs {
			ip, _, err := net.ParseCIDR(a)
			if err != nil {
				return err
			}
			if err := netlink.RouteAdd(&netlink.Route{Gw: ip}); err != nil {
				return fmt.Errorf("default route by %s: %w", ip, err)
			}
		}
		return nil
	})
}

func configure(name string, addrs []string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if strings.Contains(a, ":") {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}
