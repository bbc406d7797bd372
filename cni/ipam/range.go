package ipam

import (
	"fmt"
	"iter"
	"net/netip"
)

// Range is a part of a subnet from which addresses are leased.
type Range struct {
	Subnet     netip.Prefix   // masked
	Start, End netip.Addr     // first and last address to lease
	Gateway    netip.Addr     // never leased; invalid: none
	Exclude    []netip.Prefix // never leased
}

// Set is a list of ranges of one address family. An attachment gets one address
// of each set.
type Set []Range

// NewRange returns the range of the whole subnet: every address but the
// network's, the IPv4 broadcast address and the gateway, which is the first.
func NewRange(subnet netip.Prefix) (Range, error) {
	if subnet.Masked() != subnet {
		return Range{}, fmt.Errorf("subnet %s has host bits set: write %s", subnet, subnet.Masked())
	}
	if subnet.Addr().Is4In6() {
		return Range{}, fmt.Errorf("subnet %s is IPv4 written as IPv6", subnet)
	}
	if subnet.Addr().BitLen()-subnet.Bits() < 2 {
		return Range{}, fmt.Errorf("subnet %s is too small to lease addresses from: /30 (IPv4) or /126 (IPv6) is the smallest", subnet)
	}
	first := subnet.Addr().Next()
	end := lastAddr(subnet)
	if subnet.Addr().Is4() {
		end = end.Prev()
	}
	return Range{Subnet: subnet, Start: first, End: end, Gateway: first}, nil
}

// Usable tells whether addr may be leased from the range.
func (r Range) Usable(addr netip.Addr) bool {
	if addr.Compare(r.Start) < 0 || addr.Compare(r.End) > 0 || addr == r.Gateway {
		return false
	}
	_, excluded := r.excluded(addr)
	return !excluded
}

func (r Range) excluded(addr netip.Addr) (netip.Prefix, bool) {
	for _, p := range r.Exclude {
		if p.Contains(addr) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Overlaps tells whether the ranges have an address in common.
func (r Range) Overlaps(o Range) bool {
	return r.Start.BitLen() == o.Start.BitLen() &&
		r.Start.Compare(o.End) <= 0 && o.Start.Compare(r.End) <= 0
}

// usable yields the addresses of [from, to] that may be leased.
func (r Range) usable(from, to netip.Addr) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for addr := from; addr.IsValid() && addr.Compare(to) <= 0; addr = addr.Next() {
			if p, ok := r.excluded(addr); ok {
				addr = lastAddr(p)
				continue
			}
			if addr != r.Gateway && !yield(addr) {
				return
			}
		}
	}
}

// Find returns the range that may lease addr.
func (s Set) Find(addr netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.Usable(addr) {
			return r, true
		}
	}
	return Range{}, false
}

// After yields every address of the set once, starting with the one that
// follows last. A last that is invalid or outside starts at the beginning.
func (s Set) After(last netip.Addr) iter.Seq[netip.Addr] {
	at := s.indexOf(last)
	return func(yield func(netip.Addr) bool) {
		more := true
		each := func(seq iter.Seq[netip.Addr]) {
			for addr := range seq {
				if more = yield(addr); !more {
					return
				}
			}
		}
		if at < 0 {
			for _, r := range s {
				if each(r.usable(r.Start, r.End)); !more {
					return
				}
			}
			return
		}
		if each(s[at].usable(last.Next(), s[at].End)); !more {
			return
		}
		for i := 1; i < len(s); i++ {
			r := s[(at+i)%len(s)]
			if each(r.usable(r.Start, r.End)); !more {
				return
			}
		}
		each(s[at].usable(s[at].Start, last))
	}
}

func (s Set) indexOf(addr netip.Addr) int {
	for i, r := range s {
		if addr.IsValid() && addr.Compare(r.Start) >= 0 && addr.Compare(r.End) <= 0 {
			return i
		}
	}
	return -1
}

// String lists the ranges as error messages show them.
func (s Set) String() string {
	out := ""
	for i, r := range s {
		if i > 0 {
			out += ", "
		}
		out += fmt.Sprintf("%s-%s", r.Start, r.End)
	}
	return out
}

// lastAddr returns the last address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
