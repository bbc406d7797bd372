// Package masq masquerades what leaves a pod network: packets from a pod to
// anything outside the network's own subnets get the address of the host.
//
// It owns one chain per network and family of tools. The rules belong to the
// network, not to a pod: they are installed when the network is first used and
// cost nothing afterwards.
package masq

import (
	"context"
	"net/netip"

	"github.com/berth-io/berth/cni/netfilter"
)

// Network is a network to masquerade.
type Network struct {
	Name    string
	Subnets []netip.Prefix
}

// chain returns the nftables chain of the network. Network names may have
// characters that chain names may not.
func (n Network) chain() string { return "masq_" + netfilter.ShortHash(n.Name) }

// family returns the subnets of one address family.
func (n Network) family(v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range n.Subnets {
		if s.Addr().Is6() == v6 {
			out = append(out, s)
		}
	}
	return out
}

// multicast is left alone: it does not leave through a route.
func multicast(v6 bool) string {
	if v6 {
		return "ff00::/8"
	}
	return "224.0.0.0/4"
}

// Backend installs the rules of networks.
type Backend interface {
	// Ensure makes the rules of n exactly what they should be.
	Ensure(ctx context.Context, n Network) error
	// Present tells whether the rules of n are there, as cheaply as it can.
	Present(ctx context.Context, n Network) (bool, error)
	// Remove deletes the rules of n. Absent ones are no error.
	Remove(ctx context.Context, n Network) error
}
