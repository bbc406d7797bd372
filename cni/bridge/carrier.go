package bridge

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	carrierTimeout = 5 * time.Second
	// carrierRetry is the pause between two looks. Mostly the first look
	// suffices: the kernel handles the event while addresses are being set.
	carrierRetry = 200 * time.Microsecond
)

// WaitCarrier returns when both ends of veth can send. The kernel brings them
// to that in the background after both are up, and drops what is sent before:
// a pod would lose its first packet, and a second with it.
func WaitCarrier(ctx context.Context, h *Host, veth Veth, p *Pod, ifName string) error {
	ctx, cancel := context.WithTimeout(ctx, carrierTimeout)
	defer cancel()
	for _, end := range []struct {
		nl   *netlink.Handle
		name string
	}{{p.nl, ifName}, {h.nl, veth.Name}} {
		for {
			link, err := end.nl.LinkByName(end.name)
			if err != nil {
				return fmt.Errorf("find %s: %w", end.name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait until %s has a carrier (is the bridge up?): %w", end.name, context.Cause(ctx))
			case <-time.After(carrierRetry):
			}
		}
	}
	return nil
}
