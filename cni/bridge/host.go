package bridge

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// defaultMTU is used where the host has no route out.
const defaultMTU = 1500

// Config describes the bridge of a network.
type Config struct {
	Name string
	// MTU in bytes; 0 takes the MTU of the link that the host's default route
	// uses. It applies when the bridge is created.
	MTU int
	// Gateways are the addresses the bridge holds, each with the length of its
	// subnet. Empty: the bridge is a switch only.
	Gateways []netip.Prefix
}

// Bridge is a bridge that exists.
type Bridge struct {
	Name  string
	Index int
	MTU   int
	MAC   net.HardwareAddr
	// Stamp is what the last SetStamp wrote, empty on a new bridge.
	Stamp string
	// Up tells that the bridge is administratively up.
	Up bool
}

// Host makes links in one network namespace.
type Host struct {
	nl *netlink.Handle
}

// Open returns a Host for the network namespace of the calling thread. The
// caller closes it.
func Open() (*Host, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &Host{nl: h}, nil
}

// Close releases the netlink socket.
func (h *Host) Close() { h.nl.Close() }

// Find returns the bridge called name. The error is a netlink.LinkNotFoundError
// when there is no such link.
func (h *Host) Find(name string) (Bridge, error) {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return Bridge{}, fmt.Errorf("find bridge %s: %w", name, err)
	}
	if link.Type() != "bridge" {
		return Bridge{}, fmt.Errorf("link %s is a %s, not a bridge: choose another name in the field \"bridge\"", name, link.Type())
	}
	a := link.Attrs()
	return Bridge{Name: name, Index: a.Index, MTU: a.MTU, MAC: a.HardwareAddr, Stamp: a.Alias, Up: a.Flags&net.FlagUp != 0}, nil
}

// Ensure makes the bridge as cfg wants it: created, up, with its gateway
// addresses, the host forwarding for their families. It may be called again at
// any time and repairs what is missing. Addresses that cfg does not name are
// left alone.
func (h *Host) Ensure(cfg Config) (Bridge, error) {
	br, err := h.create(cfg)
	if err != nil {
		return Bridge{}, err
	}
	failpoint.Hit("cni/bridge-made")
	// Before it is up. The bridge forwards for its pods and takes no advice from
	// them; and until duplicate address detection is over for its link-local
	// address, it could not ask for the neighbours of packets it forwards.
	for _, name := range []string{"accept_ra", "accept_dad"} {
		if err := setSysctl("net/ipv6/conf/"+cfg.Name+"/"+name, "0"); err != nil {
			return Bridge{}, err
		}
	}
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: cfg.Name, Index: br.Index}}
	if !br.Up {
		if err := h.nl.LinkSetUp(link); err != nil {
			return Bridge{}, fmt.Errorf("set bridge %s up: %w", cfg.Name, err)
		}
	}
	for _, gw := range cfg.Gateways {
		if err := addAddress(h.nl, link, gw); err != nil {
			return Bridge{}, fmt.Errorf("add gateway %s to bridge %s: %w", gw, cfg.Name, err)
		}
	}
	failpoint.Hit("cni/bridge-addressed")
	return br, enableForwarding(cfg.Gateways)
}

// create returns the bridge, made if it was not there.
func (h *Host) create(cfg Config) (Bridge, error) {
	br, err := h.Find(cfg.Name)
	if err == nil || !IsNotFound(err) {
		return br, err
	}
	mtu := cfg.MTU
	if mtu == 0 {
		mtu = h.egressMTU()
	}
	mac, err := randomMAC()
	if err != nil {
		return Bridge{}, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = cfg.Name
	attrs.MTU = mtu
	// A bridge without an address of its own takes that of a port, and changes
	// it when the port goes: pods would have to learn their gateway anew.
	attrs.HardwareAddr = mac
	err = h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	// EEXIST: another process was faster.
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return Bridge{}, fmt.Errorf("create bridge %s: %w", cfg.Name, err)
	}
	return h.Find(cfg.Name)
}

// SetStamp stores a short text on the bridge (its alias, as "ip link" shows).
// It lives exactly as long as the bridge, so it can say what was set up for it
// and is gone after a reboot, with the namespace, or with the bridge.
func (h *Host) SetStamp(br Bridge, stamp string) error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: br.Name, Index: br.Index}}
	if err := h.nl.LinkSetAlias(link, stamp); err != nil {
		return fmt.Errorf("set the alias of bridge %s: %w", br.Name, err)
	}
	return nil
}

// IsNotFound tells whether err says that a link does not exist.
func IsNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

// egressMTU returns the MTU of the link that the host's default route uses.
func (h *Host) egressMTU() int {
	// Documentation addresses (RFC 5737, RFC 3849) match no route but a default
	// one. Asking sends nothing.
	for _, dst := range []string{"192.0.2.1", "2001:db8::1"} {
		routes, err := h.nl.RouteGet(net.ParseIP(dst))
		if err != nil || len(routes) == 0 {
			continue
		}
		link, err := h.nl.LinkByIndex(routes[0].LinkIndex)
		if err != nil || link.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if routes[0].MTU > 0 {
			return routes[0].MTU
		}
		return link.Attrs().MTU
	}
	return defaultMTU
}

// addAddress adds addr to link, without duplicate address detection: the
// address comes from an exclusive lease, and a tentative address is useless for
// a second. An address that is there is no error.
func addAddress(nl *netlink.Handle, link netlink.Link, addr netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// randomMAC returns a locally administered unicast address.
func randomMAC() (net.HardwareAddr, error) {
	mac := make(net.HardwareAddr, 6)
	if _, err := rand.Read(mac); err != nil {
		return nil, fmt.Errorf("make a hardware address: %w", err)
	}
	mac[0] = mac[0]&^1 | 2
	return mac, nil
}
