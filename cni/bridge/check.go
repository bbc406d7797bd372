package bridge

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Check compares the inside of the pod with cfg and returns the first
// difference.
func (p *Pod) Check(cfg PodConfig) error {
	link, err := p.nl.LinkByName(cfg.IfName)
	if err != nil {
		return fmt.Errorf("interface %s in %s: %w", cfg.IfName, p.path, err)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("interface %s in %s is down", cfg.IfName, p.path)
	}
	addrs, err := p.nl.AddrList(link, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses of %s in %s: %w", cfg.IfName, p.path, err)
	}
	for _, want := range cfg.Addresses {
		if !hasAddress(addrs, ipNet(want)) {
			return fmt.Errorf("interface %s in %s lacks address %s", cfg.IfName, p.path, want)
		}
	}
	for _, want := range cfg.Routes {
		found, err := p.hasRoute(want, link.Attrs().Index)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("interface %s in %s lacks the route to %s by %s", cfg.IfName, p.path, want.Dst, want.Gateway)
		}
	}
	return nil
}

func hasAddress(addrs []netlink.Addr, want *net.IPNet) bool {
	for _, a := range addrs {
		if a.IPNet.String() == want.String() {
			return true
		}
	}
	return false
}

func (p *Pod) hasRoute(want Route, index int) (bool, error) {
	family := unix.AF_INET6
	if want.Dst.Addr().Is4() {
		family = unix.AF_INET
	}
	filter, mask := want.netlink(index), uint64(netlink.RT_FILTER_DST|netlink.RT_FILTER_OIF)
	if want.Gateway.IsValid() {
		mask |= netlink.RT_FILTER_GW
	}
	if want.Table != 0 {
		mask |= netlink.RT_FILTER_TABLE
	}
	routes, err := p.nl.RouteListFiltered(family, filter, mask)
	if err != nil {
		return false, fmt.Errorf("list routes in %s: %w", p.path, err)
	}
	return len(routes) > 0, nil
}
