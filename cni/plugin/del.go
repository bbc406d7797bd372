package plugin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-io/berth/cni/bridge"
	"github.com/berth-io/berth/cni/ipam"
	"github.com/berth-io/berth/cni/netfilter"
	"github.com/berth-io/berth/cni/portmap"
)

// backendOf returns the firewall that holds the port mappings of att.
func backendOf(att ipam.Attachment) netfilter.Backend { return netfilter.Backend(att.PortBackend) }

// del detaches the sandbox. It needs neither its network namespace nor the
// result of ADD, and succeeds when there is nothing to remove.
func (c *call) del(ctx context.Context) error {
	att, err := c.leases.Attachment(ctx, c.env.containerID, c.env.ifName)
	if err != nil {
		return err
	}
	att.Sandbox, att.IfName = c.env.containerID, c.env.ifName
	if att.PortBackend == "" && att.BootID == "" && len(c.net.ports) > 0 {
		// The record is lost (the data directory was emptied): the runtime says
		// that there were ports. Rules carry the container ID.
		if backend, err := choose(c.net.portmapBackend); err == nil {
			att.PortBackend = string(backend)
		}
	}
	if err := c.detach(ctx, att); err != nil {
		return err
	}
	return portmap.ForgetUDP(c.net.ports)
}

// gc removes everything of attachments that the runtime does not list, and
// repairs what pods share. The runtime must not run ADD at the same time.
func (c *call) gc(ctx context.Context) error {
	if c.net.valid == nil {
		return errors.New("cni.dev/valid-attachments: missing, so GC cannot tell what is in use")
	}
	type key struct{ sandbox, ifName string }
	valid := map[key]bool{}
	tags := map[string]bool{}
	veths := map[string]bool{}
	for _, a := range c.net.valid {
		valid[key{a.ContainerID, a.IfName}] = true
		tags[portmap.Tag(c.net.name, a.ContainerID, a.IfName)] = true
		veths[c.vethName(a.ContainerID, a.IfName)] = true
	}
	atts, err := c.leases.Attachments(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, att := range atts {
		if valid[key{att.Sandbox, att.IfName}] {
			continue
		}
		if err := c.detach(ctx, att); err != nil {
			errs = append(errs, fmt.Errorf("remove attachment %s of sandbox %s: %w", att.IfName, att.Sandbox, err))
		}
	}
	errs = append(errs,
		c.removeUnknownVeths(veths),
		c.pruneRules(ctx, tags),
		c.leases.Sweep(ctx, func(sandbox, ifName string) bool { return valid[key{sandbox, ifName}] }),
		c.repair(ctx))
	return errors.Join(errs...)
}

// removeUnknownVeths removes veths of this network that no record led to.
func (c *call) removeUnknownVeths(known map[string]bool) error {
	ports, err := c.host.Ports()
	if err != nil {
		return err
	}
	var errs []error
	for _, port := range ports {
		if strings.HasPrefix(port.Alias, c.aliasPrefix()) && !known[port.Name] {
			errs = append(errs, c.host.Detach(port.Name))
		}
	}
	return errors.Join(errs...)
}

// pruneRules removes port mappings of this network that no record led to.
func (c *call) pruneRules(ctx context.Context, keep map[string]bool) error {
	name, err := choose(c.net.portmapBackend)
	if err != nil {
		return nil // no packet filter, no rules
	}
	backend, err := c.portBackend(name)
	if err != nil {
		return err
	}
	return backend.Prune(ctx, c.net.name, keep)
}

// repair sets up again what pods share, if the bridge exists: before the first
// ADD there is nothing to repair.
func (c *call) repair(ctx context.Context) error {
	_, err := c.host.Find(c.net.bridge.Name)
	if bridge.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = c.setUpNetwork(ctx)
	return err
}
