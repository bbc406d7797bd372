package masq

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/coreos/go-iptables/iptables"

	"github.com/berth-io/berth/cni/netfilter"
)

const natTable = "nat"

// IPTables is the Backend on iptables and ip6tables.
type IPTables struct{}

// NewIPTables returns the backend. It runs nothing.
func NewIPTables() *IPTables { return &IPTables{} }

// chainName returns the iptables chain of the network, of at most 28 bytes.
func chainName(n Network) string {
	return "BERTH-MASQ-" + strings.ToUpper(netfilter.ShortHash(n.Name))
}

// rules returns what the chain of n holds for a family.
func rules(n Network, v6 bool) [][]string {
	var out [][]string
	for _, own := range n.family(v6) {
		out = append(out, []string{"-d", own.String(), "-j", "RETURN"})
	}
	for _, own := range n.family(v6) {
		out = append(out, []string{"-s", own.String(), "!", "-d", multicast(v6),
			"-m", "comment", "--comment", comment(n), "-j", "MASQUERADE"})
	}
	return out
}

// Ensure implements Backend.
func (b *IPTables) Ensure(_ context.Context, n Network) error {
	return eachFamily(n, func(ipt *iptables.IPTables, v6 bool) error {
		if err := ipt.ClearChain(natTable, chainName(n)); err != nil {
			return err
		}
		for _, rule := range rules(n, v6) {
			if err := ipt.Append(natTable, chainName(n), rule...); err != nil {
				return err
			}
		}
		return ipt.AppendUnique(natTable, "POSTROUTING", "-j", chainName(n))
	})
}

// Present implements Backend. It runs iptables for every family of n.
func (b *IPTables) Present(_ context.Context, n Network) (bool, error) {
	present := true
	err := eachFamily(n, func(ipt *iptables.IPTables, v6 bool) error {
		for _, rule := range rules(n, v6) {
			found, err := ipt.Exists(natTable, chainName(n), rule...)
			if err != nil {
				return err
			}
			present = present && found
		}
		if !present {
			return nil
		}
		found, err := ipt.Exists(natTable, "POSTROUTING", "-j", chainName(n))
		present = present && found
		return err
	})
	return present, err
}

// Remove implements Backend.
func (b *IPTables) Remove(_ context.Context, n Network) error {
	return eachFamily(n, func(ipt *iptables.IPTables, _ bool) error {
		exists, err := ipt.ChainExists(natTable, chainName(n))
		if err != nil || !exists {
			return err
		}
		if err := ipt.DeleteIfExists(natTable, "POSTROUTING", "-j", chainName(n)); err != nil {
			return err
		}
		return ipt.ClearAndDeleteChain(natTable, chainName(n))
	})
}

// eachFamily calls f for the families that n has subnets of.
func eachFamily(n Network, f func(ipt *iptables.IPTables, v6 bool) error) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		if len(n.family(v6)) == 0 {
			continue
		}
		ipt, err := netfilter.OpenIPTables(v6)
		if err == nil {
			err = f(ipt, v6)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("masquerade rules of network %s: %w", n.Name, err))
		}
	}
	return errors.Join(errs...)
}
