package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/vishvananda/netns"
)

// Addresses of a node: it has one interface, to a second namespace that stands
// for the rest of its network. Neither has a route to the machine's network.
const (
	NodeIP          = "192.0.2.10"
	OutsideIP       = "192.0.2.1"
	registryAddress = "127.0.0.1:5000"
)

// namespaces are the network of one node.
type namespaces struct {
	node, outside string // names, below /run/netns
}

func newNamespaces(name string) (*namespaces, error) {
	ns := &namespaces{node: name, outside: name + "-out"}
	for _, args := range []string{
		"netns add " + ns.node,
		"netns add " + ns.outside,
		"-n " + ns.node + " link set lo up",
		"-n " + ns.outside + " link set lo up",
		"-n " + ns.node + " link add eth0 type veth peer name eth0 netns " + ns.outside,
		"-n " + ns.node + " addr add " + NodeIP + "/24 dev eth0",
		"-n " + ns.outside + " addr add " + OutsideIP + "/24 dev eth0",
		"-n " + ns.node + " link set eth0 up",
		"-n " + ns.outside + " link set eth0 up",
		"-n " + ns.node + " route add default via " + OutsideIP,
	} {
		if err := ip(args); err != nil {
			return nil, errors.Join(err, ns.remove())
		}
	}
	return ns, nil
}

func (ns *namespaces) path() string { return "/run/netns/" + ns.node }

// remove deletes what there is of the namespaces.
func (ns *namespaces) remove() error {
	var errs []error
	for _, name := range []string{ns.node, ns.outside} {
		if _, err := os.Stat("/run/netns/" + name); err == nil {
			errs = append(errs, ip("netns del "+name))
		}
	}
	return errors.Join(errs...)
}

func ip(args string) error {
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, out)
	}
	return nil
}

// listen opens a listener inside the node's namespace.
func (ns *namespaces) listen(address string) (net.Listener, error) {
	var l net.Listener
	err := Inside(ns.node, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// Dialer connects from within a namespace, by its name below /run/netns.
func Dialer(name string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var c net.Conn
		err := Inside(name, func() (err error) {
			// A dialer of several addresses would use other threads.
			d := net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}
			c, err = d.DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
}

// Inside runs f on a thread that has entered a namespace, by its name below
// /run/netns. A socket stays in the namespace it was made in.
func Inside(name string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Not unlocked: the thread ends with the goroutine, and takes the
		// namespace it entered with it.
		runtime.LockOSThread()
		ns, err := netns.GetFromName(name)
		if err != nil {
			result <- fmt.Errorf("open network namespace %s: %w", name, err)
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("enter network namespace %s: %w", name, err)
			return
		}
		result <- f()
	}()
	return <-result
}

// Dial connects from the node itself.
func (n *Node) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return Dialer(n.netns.node)(ctx, network, address)
}

// DialOutside connects from another machine in the node's network.
func (n *Node) DialOutside(ctx context.Context, network, address string) (net.Conn, error) {
	return Dialer(n.netns.outside)(ctx, network, address)
}

// ListenOutside opens a listener on another machine in the node's network.
func (n *Node) ListenOutside(address string) (net.Listener, error) {
	var l net.Listener
	err := Inside(n.netns.outside, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// InNetNS is a command line prefix that runs a program in the node's network.
func (n *Node) InNetNS() []string { return []string{"nsenter", "--net=" + n.netns.path(), "--"} }

// InNetwork runs f on a thread inside the node's network namespace.
func (n *Node) InNetwork(f func() error) error { return Inside(n.netns.node, f) }
