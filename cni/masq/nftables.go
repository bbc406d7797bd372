package masq

import (
	"context"
	"fmt"
	"strings"

	"sigs.k8s.io/knftables"

	"github.com/berth-io/berth/cni/netfilter"
)

// NFTables is the Backend on nftables.
type NFTables struct{ nft knftables.Interface }

// NewNFTables returns a backend on nft, Berth's table.
func NewNFTables(nft knftables.Interface) *NFTables { return &NFTables{nft: nft} }

// Ensure implements Backend, in one transaction.
func (b *NFTables) Ensure(ctx context.Context, n Network) error {
	tx := b.nft.NewTransaction()
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{
		Name:     n.chain(),
		Type:     knftables.PtrTo(knftables.NATType),
		Hook:     knftables.PtrTo(knftables.PostroutingHook),
		Priority: knftables.PtrTo(knftables.SNATPriority),
	})
	tx.Flush(&knftables.Chain{Name: n.chain()})
	for _, v6 := range []bool{false, true} {
		subnets := n.family(v6)
		if len(subnets) == 0 {
			continue
		}
		ip := "ip"
		if v6 {
			ip = "ip6"
		}
		var names []string
		for _, s := range subnets {
			names = append(names, s.String())
		}
		own := strings.Join(names, ", ")
		tx.Add(&knftables.Rule{
			Chain: n.chain(),
			Rule: knftables.Concat(ip, "saddr", "{", own, "}",
				ip, "daddr", "!=", "{", own+",", multicast(v6), "}", "masquerade"),
			Comment: knftables.PtrTo(comment(n)),
		})
	}
	if err := b.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("install masquerade rules of network %s: %w", n.Name, err)
	}
	return nil
}

// Present implements Backend without running nft.
func (b *NFTables) Present(_ context.Context, n Network) (bool, error) {
	return netfilter.HasRules(n.chain())
}

// Remove implements Backend.
func (b *NFTables) Remove(ctx context.Context, n Network) error {
	tx := b.nft.NewTransaction()
	// Adding first makes the deletion of an absent chain succeed.
	tx.Add(&knftables.Table{})
	tx.Add(&knftables.Chain{Name: n.chain()})
	tx.Delete(&knftables.Chain{Name: n.chain()})
	if err := b.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("remove masquerade rules of network %s: %w", n.Name, err)
	}
	return nil
}

// comment labels the rules of n for the reader. nftables allows 128 bytes.
func comment(n Network) string {
	text := "leaves network " + n.Name
	return text[:min(len(text), 120)]
}
