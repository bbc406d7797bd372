package plugin

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-io/berth/cni/ipam"
)

// parseIPAM reads the ipam section: "subnets" for one range set per subnet,
// "ranges" for full control, or the single "subnet" of old host-local files.
func (n *network) parseIPAM(data []byte) error {
	o, err := parseObject("ipam.", data)
	if err != nil {
		return err
	}
	var kind string
	if o.take("type", &kind) && kind != "" && kind != "host-local" {
		o.fail("type", fmt.Sprintf("%q is not supported: berth-cni leases addresses itself; leave the field out or write \"host-local\"", kind))
	}
	n.dataDir = DefaultDataDir
	if o.take("dataDir", &n.dataDir) && !filepath.IsAbs(n.dataDir) {
		o.fail("dataDir", fmt.Sprintf("%q is not an absolute path", n.dataDir))
	}
	before := len(o.errs)
	n.parseRanges(o)
	if len(n.sets) == 0 && len(o.errs) == before {
		o.errs = append(o.errs, errNoRanges)
	}
	if len(o.errs) == before {
		n.rejectOverlaps(o)
	}
	var routes []json.RawMessage
	o.take("routes", &routes)
	for i, raw := range routes {
		route, err := n.parseRoute(fmt.Sprintf("ipam.routes[%d].", i), raw)
		o.adopt(err)
		n.routes = append(n.routes, route)
	}
	return o.finish(refusedIPAMFields...)
}

func (n *network) parseRanges(o *object) {
	var subnets []string
	o.take("subnets", &subnets)
	for i, s := range subnets {
		key := fmt.Sprintf("subnets[%d]", i)
		subnet, err := netip.ParsePrefix(s)
		if err != nil {
			o.fail(key, fmt.Sprintf("%q is not a subnet such as 10.88.0.0/16", s))
			continue
		}
		r, err := ipam.NewRange(subnet)
		if err != nil {
			o.fail(key, err.Error())
			continue
		}
		n.sets = append(n.sets, ipam.Set{r})
	}
	var sets [][]json.RawMessage
	o.take("ranges", &sets)
	for i, ranges := range sets {
		n.parseSet(o, i, ranges)
	}
	if _, ok := o.fields["subnet"]; ok {
		r, err := takeRange(o)
		o.adopt(err)
		n.sets = append(n.sets, ipam.Set{r})
	}
}

func (n *network) parseSet(o *object, i int, ranges []json.RawMessage) {
	if len(ranges) == 0 {
		o.fail(fmt.Sprintf("ranges[%d]", i), "empty list")
		return
	}
	var set ipam.Set
	for j, raw := range ranges {
		path := fmt.Sprintf("ipam.ranges[%d][%d].", i, j)
		ro, err := parseObject(path, raw)
		if err != nil {
			o.adopt(err)
			return
		}
		r, err := takeRange(ro)
		o.adopt(err)
		o.adopt(ro.finish())
		set = append(set, r)
		if r.Subnet.IsValid() && set[0].Subnet.IsValid() && r.Subnet.Addr().Is4() != set[0].Subnet.Addr().Is4() {
			o.errs = append(o.errs, fieldError(path+"subnet", "not of the same family as the first range of the set: an attachment gets one address of each set"))
		}
	}
	n.sets = append(n.sets, set)
}

// takeRange reads a range from the fields of o.
func takeRange(o *object) (ipam.Range, error) {
	var s string
	if !o.take("subnet", &s) {
		return ipam.Range{}, fieldError(o.path+"subnet", "missing or not a string")
	}
	subnet, err := netip.ParsePrefix(s)
	if err != nil {
		return ipam.Range{}, fieldError(o.path+"subnet", fmt.Sprintf("%q is not a subnet such as 10.88.0.0/16", s))
	}
	r, err := ipam.NewRange(subnet)
	if err != nil {
		return ipam.Range{}, fieldError(o.path+"subnet", err.Error())
	}
	takeAddr(o, "gateway", subnet, &r.Gateway)
	takeAddr(o, "rangeStart", subnet, &r.Start)
	takeAddr(o, "rangeEnd", subnet, &r.End)
	if r.Start.Compare(r.End) > 0 {
		o.fail("rangeEnd", fmt.Sprintf("%s is before rangeStart %s", r.End, r.Start))
	}
	var exclude []string
	o.take("exclude", &exclude)
	for i, s := range exclude {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr, addrErr := netip.ParseAddr(s)
			if addrErr != nil {
				o.fail(fmt.Sprintf("exclude[%d]", i), fmt.Sprintf("%q is neither an address nor a subnet", s))
				continue
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		r.Exclude = append(r.Exclude, p.Masked())
	}
	return r, nil
}

// takeAddr reads an address that must be in subnet.
func takeAddr(o *object, key string, subnet netip.Prefix, dst *netip.Addr) {
	var s string
	if !o.take(key, &s) || s == "" {
		return
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		o.fail(key, fmt.Sprintf("%q is not an IP address", s))
		return
	}
	if !subnet.Contains(addr) {
		o.fail(key, fmt.Sprintf("%s is not in subnet %s", addr, subnet))
		return
	}
	*dst = addr
}

// rejectOverlaps refuses ranges that would lease an address twice.
func (n *network) rejectOverlaps(o *object) {
	var seen []ipam.Range
	for _, set := range n.sets {
		for _, r := range set {
			for _, other := range seen {
				if r.Overlaps(other) {
					o.fail("ranges", fmt.Sprintf("%s and %s overlap", ipam.Set{other}, ipam.Set{r}))
				}
			}
			seen = append(seen, r)
		}
	}
}

func (n *network) parseRoute(path string, data []byte) (types.Route, error) {
	var route types.Route
	o, err := parseObject(path, data)
	if err != nil {
		return route, err
	}
	var dst, gw string
	o.take("dst", &dst)
	prefix, err := netip.ParsePrefix(dst)
	if err != nil {
		o.fail("dst", fmt.Sprintf("%q is not a subnet such as 0.0.0.0/0", dst))
	} else {
		route.Dst = netOf(prefix.Masked())
		if !n.hasFamily(prefix.Addr()) {
			o.fail("dst", fmt.Sprintf("%s is of a family that the network has no addresses of", prefix))
		}
	}
	if o.take("gw", &gw) && gw != "" {
		addr, err := netip.ParseAddr(gw)
		switch {
		case err != nil || addr.Zone() != "":
			o.fail("gw", fmt.Sprintf("%q is not an IP address", gw))
		case prefix.IsValid() && addr.Is4() != prefix.Addr().Is4():
			o.fail("gw", fmt.Sprintf("%s is not of the family of %s", addr, prefix))
		default:
			route.GW = addr.AsSlice()
		}
	}
	o.take("mtu", &route.MTU)
	o.take("advmss", &route.AdvMSS)
	o.take("priority", &route.Priority)
	o.take("table", &route.Table)
	o.take("scope", &route.Scope)
	return route, o.finish()
}

func (n *network) hasFamily(addr netip.Addr) bool {
	for _, set := range n.sets {
		if set[0].Subnet.Addr().Is4() == addr.Is4() {
			return true
		}
	}
	return len(n.sets) == 0 // said elsewhere
}

func netOf(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
