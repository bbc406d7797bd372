package portmap

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/berth-io/berth/cni/netfilter"
)

// Chains of Berth's table. The base chains jump where rules are tagged, or
// hold the rules themselves.
const (
	preroutingChain = "prerouting"
	outputChain     = "output"
	hostPortsChain  = "hostports"
	replyChain      = "hostports_masq"
	guardChain      = "hostports_guard"
)

// NFTables is the Backend on nftables.
type NFTables struct{ nft knftables.Interface }

// NewNFTables returns a backend on nft, Berth's table.
func NewNFTables(nft knftables.Interface) *NFTables { return &NFTables{nft: nft} }

// Add implements Backend: one list if rules with the tag may be there already,
// and one transaction.
func (b *NFTables) Add(ctx context.Context, a Attachment) error {
	tx := b.nft.NewTransaction()
	b.addBase(tx, a.Bridge)
	stale, err := b.tagged(ctx, func(tag string) bool { return tag == a.Tag })
	if err != nil {
		return err
	}
	for _, rule := range stale {
		tx.Delete(rule)
	}
	for _, f := range a.forwards() {
		b.addForward(tx, a.Tag, f)
	}
	if err := b.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("install port mappings: %w", err)
	}
	return nil
}

// addBase makes the chains that all port mappings share.
func (b *NFTables) addBase(tx *knftables.Transaction, bridge string) {
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: hostPortsChain})
	for _, base := range []struct {
		name string
		hook knftables.BaseChainHook
	}{{preroutingChain, knftables.PreroutingHook}, {outputChain, knftables.OutputHook}} {
		tx.Add(&knftables.Chain{Name: base.name, Type: knftables.PtrTo(knftables.NATType),
			Hook: knftables.PtrTo(base.hook), Priority: knftables.PtrTo(knftables.DNATPriority)})
		tx.Flush(&knftables.Chain{Name: base.name})
		tx.Add(&knftables.Rule{Chain: base.name, Rule: "fib daddr type local jump " + hostPortsChain})
	}
	tx.Add(&knftables.Chain{Name: replyChain, Type: knftables.PtrTo(knftables.NATType),
		Hook: knftables.PtrTo(knftables.PostroutingHook), Priority: knftables.PtrTo(knftables.SNATPriority)})
	// With route_localnet on the bridge, pods could reach what listens on the
	// host's localhost only (CVE-2020-8558).
	guard := guardChain + "_" + netfilter.ShortHash(bridge)
	tx.Add(&knftables.Chain{Name: guard, Type: knftables.PtrTo(knftables.FilterType),
		Hook: knftables.PtrTo(knftables.PreroutingHook), Priority: knftables.PtrTo(knftables.RawPriority)})
	tx.Flush(&knftables.Chain{Name: guard})
	tx.Add(&knftables.Rule{Chain: guard, Rule: knftables.Concat("iifname", strconv.Quote(bridge), "ip daddr 127.0.0.0/8 drop")})
}

// addForward adds the rules of one redirection.
func (b *NFTables) addForward(tx *knftables.Transaction, tag string, f forward) {
	ip, match := "ip", "meta nfproto ipv4"
	if f.pod.Is6() {
		ip, match = "ip6", "meta nfproto ipv6"
	}
	if f.HostIP.IsValid() {
		match = knftables.Concat(ip, "daddr", f.HostIP.String())
	}
	tx.Add(&knftables.Rule{
		Chain:   hostPortsChain,
		Rule:    knftables.Concat(match, f.Protocol, "dport", f.HostPort, "dnat", ip, "to", f.target()),
		Comment: &tag,
	})
	tx.Add(&knftables.Rule{
		Chain: replyChain,
		Rule: knftables.Concat(ip, "saddr", "{", strings.Join(f.clients(), ", "), "}", ip, "daddr", f.pod.String(),
			f.Protocol, "dport", f.ContainerPort, "ct original proto-dst", f.HostPort, "masquerade"),
		Comment: &tag,
	})
}

// tagged returns the rules whose tag match accepts.
func (b *NFTables) tagged(ctx context.Context, match func(tag string) bool) ([]*knftables.Rule, error) {
	var out []*knftables.Rule
	for _, chain := range []string{hostPortsChain, replyChain} {
		// The kernel answers without a process where there is nothing to list.
		if has, err := netfilter.HasRules(chain); err != nil || !has {
			if err != nil {
				return nil, err
			}
			continue
		}
		rules, err := b.nft.ListRules(ctx, chain)
		if err != nil && !knftables.IsNotFound(err) {
			return nil, fmt.Errorf("list port mappings: %w", err)
		}
		for _, rule := range rules {
			if rule.Comment != nil && match(*rule.Comment) {
				out = append(out, rule)
			}
		}
	}
	return out, nil
}

// Check implements Backend.
func (b *NFTables) Check(ctx context.Context, a Attachment) error {
	rules, err := b.tagged(ctx, func(tag string) bool { return tag == a.Tag })
	if err != nil {
		return err
	}
	if want := 2 * len(a.forwards()); len(rules) != want {
		return fmt.Errorf("%d of %d port mapping rules are in nftables table %s", len(rules), want, netfilter.Table)
	}
	return nil
}

// Remove implements Backend.
func (b *NFTables) Remove(ctx context.Context, tag string) error {
	return b.remove(ctx, func(t string) bool { return t == tag })
}

// Prune implements Backend.
func (b *NFTables) Prune(ctx context.Context, network string, keep map[string]bool) error {
	return b.remove(ctx, func(t string) bool { return strings.HasPrefix(t, prefix(network)) && !keep[t] })
}

func (b *NFTables) remove(ctx context.Context, match func(tag string) bool) error {
	rules, err := b.tagged(ctx, match)
	if err != nil || len(rules) == 0 {
		return err
	}
	tx := b.nft.NewTransaction()
	for _, rule := range rules {
		tx.Delete(rule)
	}
	if err := b.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove port mappings: %w", err)
	}
	return nil
}
