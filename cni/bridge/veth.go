package bridge

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// aliasMax is the longest alias a link may have (IFALIASZ of linux/if.h less
// the final zero).
const aliasMax = 255

// Port is a veth to be made.
type Port struct {
	Name    string // of the host end, from VethName
	IfName  string // of the end in the pod
	MAC     net.HardwareAddr
	Alias   string // shown on the host end by "ip link"; cut at 255 bytes
	Hairpin bool   // the pod may reach itself through the bridge
}

// Veth is the host end of a veth that exists.
type Veth struct {
	Name   string
	Alias  string
	MAC    net.HardwareAddr
	Index  int
	MTU    int
	Master int // index of its bridge; 0: none
	Up     bool
}

// Attach makes a veth with one end in br and the other, still down, in pod.
// What an earlier Attach of the same port has left is replaced.
func (h *Host) Attach(br Bridge, pod *Pod, port Port) (Veth, error) {
	err := h.addVeth(br, pod, port)
	if errors.Is(err, unix.EEXIST) {
		if err := h.Detach(port.Name); err != nil {
			return Veth{}, err
		}
		err = h.addVeth(br, pod, port)
		if errors.Is(err, unix.EEXIST) {
			return Veth{}, fmt.Errorf("interface %s exists in %s already and is not part of this network", port.IfName, pod.path)
		}
	}
	if err != nil {
		return Veth{}, fmt.Errorf("create veth %s in bridge %s: %w", port.Name, br.Name, err)
	}
	failpoint.Hit("cni/veth-made")
	veth, err := h.Port(port.Name)
	if err != nil {
		return Veth{}, err
	}
	link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: veth.Name, Index: veth.Index}}
	veth.Alias = port.Alias[:min(len(port.Alias), aliasMax)]
	if err := h.nl.LinkSetAlias(link, veth.Alias); err != nil {
		return Veth{}, fmt.Errorf("set the alias of veth %s: %w", veth.Name, err)
	}
	if port.Hairpin {
		if err := h.nl.LinkSetHairpin(link, true); err != nil {
			return Veth{}, fmt.Errorf("set hairpin mode of veth %s: %w", veth.Name, err)
		}
	}
	return veth, nil
}

// addVeth makes both ends with one message: the host's in the bridge and up,
// the pod's in its namespace, with names, address and MTU. Each request of this
// kind waits for the kernel's one lock on network configuration, so fewer is
// faster under load. Only the pod's end cannot come up with it: the kernel links
// the two after it configures the peer (veth_newlink).
func (h *Host) addVeth(br Bridge, pod *Pod, port Port) error {
	mtu := nl.Uint32Attr(uint32(br.MTU))
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags = unix.IFF_UP
	msg.Change = unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(port.Name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(br.Index))))

	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vethInfoPeer, nil)
	peer.AddChild(nl.NewIfInfomsg(unix.AF_UNSPEC))
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(port.IfName))
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_ADDRESS, port.MAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(pod.ns.Fd())))
	req.AddData(info)

	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// Port returns the link called name as a port. The error is a
// netlink.LinkNotFoundError when there is none.
func (h *Host) Port(name string) (Veth, error) {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return Veth{}, fmt.Errorf("find veth %s: %w", name, err)
	}
	return vethOf(link), nil
}

// Ports returns every host veth that this package has made in the namespace,
// in any bridge.
func (h *Host) Ports() ([]Veth, error) {
	links, err := h.nl.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var ports []Veth
	for _, link := range links {
		if link.Type() == "veth" && strings.HasPrefix(link.Attrs().Name, vethPrefix) {
			ports = append(ports, vethOf(link))
		}
	}
	return ports, nil
}

func vethOf(link netlink.Link) Veth {
	a := link.Attrs()
	return Veth{Name: a.Name, Alias: a.Alias, MAC: a.HardwareAddr, Index: a.Index, MTU: a.MTU,
		Master: a.MasterIndex, Up: a.Flags&net.FlagUp != 0}
}

// detachPause is the time between two looks whether a veth is gone.
const detachPause = 300 * time.Microsecond

// Detach deletes the host veth called name, and with it the end in the pod,
// whether or not the pod's namespace is still reachable. An absent veth is no
// error.
//
// It returns when no one can see or reach either end any more. The request
// itself takes some 20 ms longer: the kernel frees the devices after a grace
// period (rcu_barrier in netdev_run_todo). That needs nothing from us, so it is
// left to run.
func (h *Host) Detach(name string) error {
	// A socket stays in the namespace that it was opened in, whichever thread
	// sends.
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		defer socket.Close()
		done <- deleteLink(socket, name)
	}()
	for {
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete veth %s: %w", name, err)
			}
			return nil
		case <-time.After(detachPause):
			if _, err := h.nl.LinkByName(name); IsNotFound(err) {
				return nil
			}
		}
	}
}

// deleteLink deletes by name, so that no index is looked up first that may be
// reused.
func deleteLink(socket *nl.NetlinkSocket, name string) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: socket}}
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// MAC returns the hardware address of the pod that holds addr. An address that
// passes to another pod takes its hardware address along, so no neighbour has a
// stale entry for it and nothing needs to be announced. The first two bytes
// are locally administered.
func MAC(addr netip.Addr) net.HardwareAddr {
	b := addr.AsSlice()
	return append(net.HardwareAddr{0x0a, 0x58}, b[len(b)-4:]...)
}
