package dra

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/berth-io/berth/internal/failpoint"
)

// Unprepare lets go of all claims of the pod and has the drivers unprepare those
// that no other pod uses. It is called when no container of the pod runs any more
// and before that is told: others may get the devices then. What it did before is
// not done again. Errors are the kubelet's (cm/dra/manager.go,
// UnprepareResources).
func (c *Claims) Unprepare(ctx context.Context, podUID string) error {
	began := time.Now()
	err := c.unprepare(ctx, podUID)
	c.metrics.operation("UnprepareResources", began, err)
	if err != nil {
		return fmt.Errorf("unprepare dynamic resources: %w", err)
	}
	return nil
}

func (c *Claims) unprepare(ctx context.Context, podUID string) error {
	keys := c.of(podUID)
	if len(keys) == 0 {
		return nil
	}
	release, err := c.hold(ctx, keys)
	if err != nil {
		return err
	}
	defer release()
	known, batches := c.current(), map[string]batch{}
	for _, key := range keys {
		if info := known[key]; info != nil && info.PodUIDs.Len() == 1 && info.PodUIDs.Has(podUID) {
			addTo(batches, info)
		}
	}
	for _, driver := range slices.Sorted(maps.Keys(batches)) {
		if err := c.unprepareBatch(ctx, driver, batches[driver]); err != nil {
			return err
		}
	}
	failpoint.Hit("agent/claims-unprepared")
	err = c.change(func(claims map[string]*claim) {
		for _, key := range keys {
			if info := claims[key]; info != nil {
				others := info.PodUIDs.Clone().Delete(podUID)
				claims[key] = info.with(others)
				if others.Len() == 0 {
					delete(claims, key)
				}
			}
		}
	})
	if err != nil {
		return fmt.Errorf("checkpoint ResourceClaim state: %w", err)
	}
	failpoint.Hit("agent/unprepared-recorded")
	return nil
}

func (c *Claims) unprepareBatch(ctx context.Context, driver string, b batch) error {
	to, err := c.drivers.get(driver)
	if err != nil {
		return err
	}
	answer, err := to.unprepare(ctx, &drapb.NodeUnprepareResourcesRequest{Claims: b.claims})
	if err != nil {
		return fmt.Errorf("NodeUnprepareResources: %w", err)
	}
	return check(b, "NodeUnprepareResources", answer.GetClaims())
}
