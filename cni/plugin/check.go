package plugin

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/berth-io/berth/cni/bridge"
)

// check compares what exists with what ADD has reported, and repairs what pods
// share.
func (c *call) check(ctx context.Context) error {
	if c.net.prevResult == nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult: missing, but CHECK needs it", "")
	}
	att, err := c.leases.Attachment(ctx, c.env.containerID, c.env.ifName)
	if err != nil {
		return err
	}
	if len(att.Addresses) != len(c.net.sets) {
		return fmt.Errorf("no leases for %s of sandbox %s", c.env.ifName, c.env.containerID)
	}
	for _, ip := range c.net.prevResult.IPs {
		if addr := prefixOf(ip.Address).Addr(); !slices.Contains(att.Addresses, addr) {
			return fmt.Errorf("prevResult: address %s is not leased to sandbox %s", addr, c.env.containerID)
		}
	}
	br, err := c.setUpNetwork(ctx)
	if err != nil {
		return err
	}
	veth, err := c.host.Port(c.vethName(att.Sandbox, att.IfName))
	if err != nil {
		return err
	}
	if veth.Master != br.Index || !veth.Up {
		return fmt.Errorf("veth %s is down or not in bridge %s", veth.Name, br.Name)
	}
	pod, err := bridge.OpenPod(c.env.netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	inside := c.inside(att)
	if err := pod.Check(inside); err != nil {
		return err
	}
	if len(c.net.ports) == 0 {
		return nil
	}
	backend, err := c.portBackend(backendOf(att))
	if err != nil {
		return err
	}
	return backend.Check(ctx, c.portAttachment(att, inside.Addresses))
}

// status tells whether ADD can succeed. It is asked every few seconds, so with
// nftables it runs no program unless something is to be repaired.
func (c *call) status(ctx context.Context) error {
	if err := os.MkdirAll(c.net.dataDir, 0o700); err != nil {
		return unavailable(fmt.Errorf("ipam.dataDir: %w", err))
	}
	if c.net.ipMasq {
		if _, err := choose(c.net.ipMasqBackend); err != nil {
			return unavailable(fmt.Errorf("ipMasq: %w", err))
		}
	}
	br, err := c.host.Find(c.net.bridge.Name)
	if bridge.IsNotFound(err) {
		return nil // the first ADD makes it
	}
	if err != nil {
		return unavailable(err)
	}
	intact := br.Up
	if c.net.ipMasq && intact {
		if intact, err = c.masqPresent(ctx); err != nil {
			return unavailable(err)
		}
	}
	if intact {
		return nil
	}
	if _, err := c.setUpNetwork(ctx); err != nil {
		return unavailable(err)
	}
	return nil
}

// unavailable is the error of STATUS by which the runtime holds pods back.
func unavailable(err error) error {
	return types.NewError(types.ErrPluginNotAvailable, "plugin not available: "+err.Error(), "")
}
