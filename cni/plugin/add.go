package plugin

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-io/berth/cni/bridge"
	"github.com/berth-io/berth/cni/ipam"
	"github.com/berth-io/berth/cni/portmap"
	"github.com/berth-io/berth/internal/failpoint"
)

// undoTimeout bounds the clean-up after a failed ADD.
const undoTimeout = 10 * time.Second

// add attaches the sandbox. Repeated after a crash it keeps the addresses and
// replaces what is half made; after an error it leaves nothing.
func (c *call) add(ctx context.Context) (*types100.Result, error) {
	if c.net.prevResult != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "prevResult: berth-cni must be the first plugin of the list", "")
	}
	pod, err := bridge.OpenPod(c.env.netns)
	if err != nil {
		return nil, err
	}
	defer pod.Close()
	br, err := c.ensureNetwork(ctx)
	if err != nil {
		return nil, err
	}
	att := ipam.Attachment{Lease: ipam.Lease{Sandbox: c.env.containerID, IfName: c.env.ifName, Pod: c.env.pod}}
	if len(c.net.ports) > 0 {
		backend, err := choose(c.net.portmapBackend)
		if err != nil {
			return nil, err
		}
		att.PortBackend = string(backend)
	}
	att.Addresses, err = c.leases.Acquire(ctx, att, c.net.sets)
	if err != nil {
		return nil, err
	}
	result, err := c.attach(ctx, br, pod, att)
	if err != nil {
		return nil, c.undo(ctx, att, err)
	}
	return result, nil
}

// attach makes the links of an attachment whose addresses are leased.
func (c *call) attach(ctx context.Context, br bridge.Bridge, pod *bridge.Pod, att ipam.Attachment) (*types100.Result, error) {
	if err := pod.Prepare(); err != nil {
		return nil, err
	}
	veth, err := c.host.Attach(br, pod, bridge.Port{
		Name:    c.vethName(att.Sandbox, att.IfName),
		IfName:  att.IfName,
		MAC:     bridge.MAC(att.Addresses[0]),
		Alias:   c.alias(att),
		Hairpin: c.net.hairpin,
	})
	if err != nil {
		return nil, err
	}
	inside := c.inside(att)
	mac, err := pod.Configure(inside)
	if err != nil {
		return nil, err
	}
	failpoint.Hit("cni/pod-configured")
	if err := bridge.WaitCarrier(ctx, c.host, veth, pod, inside.IfName); err != nil {
		return nil, err
	}
	if len(c.net.ports) > 0 {
		if err := c.mapPorts(ctx, att, inside.Addresses); err != nil {
			return nil, err
		}
		failpoint.Hit("cni/ports-mapped")
	}
	return c.result(br, veth, mac, inside), nil
}

// aliasPrefix starts the alias of every host veth of this network.
func (c *call) aliasPrefix() string { return Type + " " + c.net.name + " " }

// alias says on the host veth whose it is, for GC and for people.
func (c *call) alias(att ipam.Attachment) string {
	alias := c.aliasPrefix() + att.Sandbox + " " + att.IfName
	if att.Pod != "" {
		alias += " " + att.Pod
	}
	return alias
}

// mapPorts publishes the ports of an attachment.
func (c *call) mapPorts(ctx context.Context, att ipam.Attachment, addrs []netip.Prefix) error {
	backend, err := c.portBackend(backendOf(att))
	if err != nil {
		return err
	}
	if err := backend.Add(ctx, c.portAttachment(att, addrs)); err != nil {
		return err
	}
	// After the rules that keep pods off the host's localhost.
	if err := bridge.RouteLocalnet(c.net.bridge.Name); err != nil {
		return err
	}
	return portmap.ForgetUDP(c.net.ports)
}

func (c *call) portAttachment(att ipam.Attachment, addrs []netip.Prefix) portmap.Attachment {
	return portmap.Attachment{
		Tag:       portmap.Tag(c.net.name, att.Sandbox, att.IfName),
		Bridge:    c.net.bridge.Name,
		Addresses: addrs,
		Mappings:  c.net.ports,
	}
}

// inside returns what the pod's interface gets.
func (c *call) inside(att ipam.Attachment) bridge.PodConfig {
	cfg := bridge.PodConfig{IfName: att.IfName}
	for i, addr := range att.Addresses {
		r, _ := c.net.sets[i].Find(addr)
		cfg.Addresses = append(cfg.Addresses, netip.PrefixFrom(addr, r.Subnet.Bits()))
	}
	for _, r := range c.net.routes {
		dst := prefixOf(r.Dst)
		route := bridge.Route{Dst: dst, MTU: r.MTU, AdvMSS: r.AdvMSS, Priority: r.Priority}
		if r.Table != nil {
			route.Table = *r.Table
		}
		if r.Scope != nil {
			route.Scope = *r.Scope
		}
		if gw, ok := netip.AddrFromSlice(r.GW); ok {
			route.Gateway = gw.Unmap()
		} else {
			route.Gateway = c.gateway(att, dst.Addr().Is4())
		}
		cfg.Routes = append(cfg.Routes, route)
	}
	return cfg
}

// gateway returns the gateway of the attachment for a family, invalid if it has
// no address of it.
func (c *call) gateway(att ipam.Attachment, v4 bool) netip.Addr {
	for i, addr := range att.Addresses {
		if addr.Is4() == v4 {
			r, _ := c.net.sets[i].Find(addr)
			return r.Gateway
		}
	}
	return netip.Addr{}
}

// result reports bridge, host veth and container interface, in this order.
func (c *call) result(br bridge.Bridge, veth bridge.Veth, mac net.HardwareAddr, inside bridge.PodConfig) *types100.Result {
	const containerInterface = 2
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: br.Name, Mac: br.MAC.String(), Mtu: br.MTU},
			{Name: veth.Name, Mac: veth.MAC.String(), Mtu: veth.MTU},
			{Name: inside.IfName, Mac: mac.String(), Mtu: veth.MTU, Sandbox: c.env.netns},
		},
		DNS: c.net.dns,
	}
	for i, addr := range inside.Addresses {
		r, _ := c.net.sets[i].Find(addr.Addr())
		ip := &types100.IPConfig{Interface: types100.Int(containerInterface), Address: netOf(addr)}
		if r.Gateway.IsValid() {
			ip.Gateway = r.Gateway.AsSlice()
		}
		result.IPs = append(result.IPs, ip)
	}
	for i, route := range c.net.routes {
		route := route
		if gw := inside.Routes[i].Gateway; gw.IsValid() {
			route.GW = gw.AsSlice()
		}
		result.Routes = append(result.Routes, &route)
	}
	return result
}
