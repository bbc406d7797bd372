package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

const (
	// pullDeadline ends a pull that makes progress but never arrives.
	pullDeadline = 12 * time.Hour
	// leaseLifetime is how long the data of an interrupted pull waits to be
	// continued. It is longer than any pull can run, so that the lease of a
	// running pull never expires.
	leaseLifetime = 24 * time.Hour

	leasePull  = "berth.io/pull"   // label: the reference that is pulled
	leaseChain = "berth.io/in-use" // label: the chain that containers stand on
)

// pullLeases hold what pulls have brought so far against the garbage collector.
type pullLeases struct {
	manager leases.Manager

	mu      sync.Mutex
	running map[string]bool // lease IDs
}

// begin creates the lease of one pull. The returned context carries it to
// every writer and snapshot.
func (p *pullLeases) begin(ctx context.Context, ref string) (context.Context, string, error) {
	id := "pull-" + rand.Text()
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.manager.Create(ctx, leases.WithID(id), leases.WithLabel(leasePull, ref), leases.WithExpiration(leaseLifetime))
	if err != nil {
		return ctx, "", fmt.Errorf("create a lease: %w", err)
	}
	p.running[id] = true
	return leases.WithLease(ctx, id), id, nil
}

// end lets a pull's lease go. Kept, it waits for the next pull of the same
// reference, or for its expiry; otherwise it is deleted together with those
// that earlier pulls of the reference left.
func (p *pullLeases) end(ctx context.Context, id, ref string, keep bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, id)
	if keep {
		return nil
	}
	all, err := p.manager.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range all {
		if lease.Labels[leasePull] != ref || p.running[lease.ID] {
			continue
		}
		if err := p.manager.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
	}
	return nil
}
