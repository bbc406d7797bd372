package portmap

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ForgetUDP makes the kernel forget the UDP flows to the host ports of
// mappings, in the network namespace of the calling thread. A flow remembers
// where its first packet went: without this, a client that keeps sending from
// one port would never reach a pod that came later, or go on sending to one
// that is gone.
func ForgetUDP(mappings []Mapping) error {
	var filters []netlink.CustomConntrackFilter
	for _, m := range mappings {
		if m.Protocol != "udp" {
			continue
		}
		filter := &netlink.ConntrackFilter{}
		if err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP),
			filter.AddPort(netlink.ConntrackOrigDstPort, m.HostPort)); err != nil {
			return fmt.Errorf("select UDP flows to port %d: %w", m.HostPort, err)
		}
		filters = append(filters, filter)
	}
	if len(filters) == 0 {
		return nil
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filters...)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("forget UDP flows to published ports: %w", err)
		}
	}
	return nil
}
