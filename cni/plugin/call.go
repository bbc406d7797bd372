package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-io/berth/cni/bridge"
	"github.com/berth-io/berth/cni/ipam"
	"github.com/berth-io/berth/cni/masq"
	"github.com/berth-io/berth/cni/netfilter"
	"github.com/berth-io/berth/cni/portmap"
	"github.com/berth-io/berth/internal/failpoint"
)

// call is one CNI command with what it works on.
type call struct {
	plugin *Plugin
	net    *network
	env    environment
	host   *bridge.Host
	leases *ipam.Allocator
}

// newCall opens what every command needs. The caller closes call.host.
func (p *Plugin) newCall(net *network, env environment) (*call, error) {
	bootID, err := p.bootID()
	if err != nil {
		return nil, err
	}
	host, err := bridge.Open()
	if err != nil {
		return nil, err
	}
	store := queued{Store: ipam.NewDisk(net.dataDir), turn: p.turn(net.dataDir)}
	return &call{plugin: p, net: net, env: env, host: host, leases: ipam.New(store, bootID)}, nil
}

// queued is a store whose lock is taken in turn by the goroutines of a process,
// before the lock between processes.
type queued struct {
	ipam.Store
	turn chan struct{}
}

// Lock implements ipam.Store.
func (q queued) Lock(ctx context.Context) (func(), error) {
	select {
	case q.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the leases: %w", context.Cause(ctx))
	}
	unlock, err := q.Store.Lock(ctx)
	if err != nil {
		<-q.turn
		return nil, err
	}
	return func() { unlock(); <-q.turn }, nil
}

// vethName returns the name of the host veth of an attachment.
func (c *call) vethName(containerID, ifName string) string {
	return bridge.VethName(c.net.name, containerID, ifName)
}

// stamp says what was set up on the host for this network. As long as the
// bridge carries it, there is nothing to set up: it is written last, and is
// gone with the bridge.
func (c *call) stamp() string {
	var text strings.Builder
	fmt.Fprintln(&text, c.net.bridge.MTU, c.net.bridge.Gateways, c.net.ipMasq, c.net.ipMasqBackend, c.net.subnets())
	sum := sha256.Sum256([]byte(text.String()))
	return fmt.Sprintf("%s %s %s", Type, c.net.name, hex.EncodeToString(sum[:6]))
}

// ensureNetwork returns the bridge, after setting up what pods share if this
// has not been done for this bridge. Concurrent calls may both do it: every
// step is idempotent.
func (c *call) ensureNetwork(ctx context.Context) (bridge.Bridge, error) {
	br, err := c.host.Find(c.net.bridge.Name)
	if err == nil && br.Stamp == c.stamp() && br.Up {
		return br, nil
	}
	if err != nil && !bridge.IsNotFound(err) {
		return bridge.Bridge{}, err
	}
	return c.setUpNetwork(ctx)
}

// setUpNetwork sets up or repairs what pods share: bridge, forwarding,
// masquerade.
func (c *call) setUpNetwork(ctx context.Context) (bridge.Bridge, error) {
	br, err := c.host.Ensure(c.net.bridge)
	if err != nil {
		return bridge.Bridge{}, err
	}
	if err := c.setUpMasquerade(ctx); err != nil {
		return bridge.Bridge{}, fmt.Errorf("ipMasq: %w", err)
	}
	failpoint.Hit("cni/masq-made")
	return br, c.host.SetStamp(br, c.stamp())
}

// setUpMasquerade installs the rules of the network, or removes those of an
// earlier configuration that wanted them.
func (c *call) setUpMasquerade(ctx context.Context) error {
	if !c.net.ipMasq {
		if _, err := choose(c.net.ipMasqBackend); err != nil {
			return nil // no packet filter, no rules
		}
		present, err := c.masqPresent(ctx)
		if err != nil || !present {
			return err
		}
	}
	backend, err := c.masqBackend()
	if err != nil {
		return err
	}
	if !c.net.ipMasq {
		return backend.Remove(ctx, c.masqNetwork())
	}
	return backend.Ensure(ctx, c.masqNetwork())
}

// masqPresent tells whether the network has masquerade rules. With nftables it
// runs no program.
func (c *call) masqPresent(ctx context.Context) (bool, error) {
	backend, err := choose(c.net.ipMasqBackend)
	if err != nil {
		return false, err
	}
	if backend == netfilter.IPTables {
		return masq.NewIPTables().Present(ctx, c.masqNetwork())
	}
	return masq.NewNFTables(nil).Present(ctx, c.masqNetwork())
}

func (c *call) masqNetwork() masq.Network {
	return masq.Network{Name: c.net.name, Subnets: c.net.subnets()}
}

func (c *call) masqBackend() (masq.Backend, error) {
	backend, err := choose(c.net.ipMasqBackend)
	if err != nil {
		return nil, err
	}
	if backend == netfilter.IPTables {
		return masq.NewIPTables(), nil
	}
	nft, err := c.plugin.openNFTables()
	if err != nil {
		return nil, err
	}
	return masq.NewNFTables(nft), nil
}

// portBackend returns the port mapping backend called name.
func (c *call) portBackend(name netfilter.Backend) (portmap.Backend, error) {
	switch name {
	case netfilter.IPTables:
		return portmap.NewIPTables(), nil
	case netfilter.NFTables:
		nft, err := c.plugin.openNFTables()
		if err != nil {
			return nil, err
		}
		return portmap.NewNFTables(nft), nil
	}
	return nil, fmt.Errorf("unknown port mapping backend %q", name)
}

// choose returns the configured backend, or what the host has.
func choose(configured netfilter.Backend) (netfilter.Backend, error) {
	if configured != "" {
		return configured, nil
	}
	return netfilter.Detect()
}

// detach removes all traces of an attachment, in the order opposite to add:
// rules, veth, and the leases only when nothing uses them any more.
func (c *call) detach(ctx context.Context, att ipam.Attachment) error {
	if att.PortBackend != "" {
		backend, err := c.portBackend(netfilter.Backend(att.PortBackend))
		if err != nil {
			return err
		}
		if err := backend.Remove(ctx, portmap.Tag(c.net.name, att.Sandbox, att.IfName)); err != nil {
			return err
		}
		failpoint.Hit("cni/ports-unmapped")
	}
	if err := c.host.Detach(c.vethName(att.Sandbox, att.IfName)); err != nil {
		return err
	}
	failpoint.Hit("cni/veth-removed")
	return c.leases.Release(ctx, att.Sandbox, att.IfName)
}

// undo detaches after a failed ADD and returns its error, with that of the
// clean-up if there was one.
func (c *call) undo(ctx context.Context, att ipam.Attachment, cause error) error {
	// The caller may have given up; what was made must go all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := c.detach(ctx, att); err != nil {
		return errors.Join(cause, fmt.Errorf("clean up after it: %w", err))
	}
	return cause
}
