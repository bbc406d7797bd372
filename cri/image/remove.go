package image

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/berth-io/berth/internal/failpoint"
)

// chains knows which containers stand on which chain. It is memory only: the
// CRI server retains the chains of its containers again after a restart.
type chains struct {
	mu sync.Mutex
	m  map[string]*chain // by chain ID; an absent chain may be collected any time
}

type chain struct {
	containers map[string]bool
	leased     bool // the image is gone and a lease holds the chain
}

func newChains() *chains { return &chains{m: map[string]*chain{}} }

// add makes a chain known, so that containers can be retained on it.
func (c *chains) add(chainID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m[chainID] == nil {
		c.m[chainID] = &chain{containers: map[string]bool{}}
	}
}

func (c *chains) leased(chainID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.m[chainID].leased = true
}

func (c *chains) retain(chainID, containerID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, ok := c.m[chainID]
	if ok {
		ch.containers[containerID] = true
	}
	return ok
}

// release returns the chains that nobody but a lease holds now.
func (c *chains) release(containerID string) (free []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, ch := range c.m {
		if !ch.containers[containerID] {
			continue
		}
		delete(ch.containers, containerID)
		if len(ch.containers) == 0 && ch.leased {
			free = append(free, id)
		}
	}
	return free
}

// retire is called when the last image of a chain goes. A chain without
// containers is forgotten, and cannot be retained any more; one with
// containers needs a lease.
func (c *chains) retire(chainID string) (needsLease bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, ok := c.m[chainID]
	if !ok || ch.leased {
		return false
	}
	if len(ch.containers) == 0 {
		delete(c.m, chainID)
		return false
	}
	return true
}

// unlease reports whether the chain's lease is to be deleted, and forgets a
// chain that no image keeps.
func (c *chains) unlease(chainID string, imaged bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch, ok := c.m[chainID]
	if !ok || !ch.leased || len(ch.containers) > 0 {
		return false
	}
	ch.leased = false
	if !imaged {
		delete(c.m, chainID)
	}
	return true
}

// unused lists the leased chains without containers.
func (c *chains) unused() (free []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, ch := range c.m {
		if ch.leased && len(ch.containers) == 0 {
			free = append(free, id)
		}
	}
	return free
}

// Retain says that a container stands on a chain: its layers stay until
// Release, even when the image is removed. It fails if the chain is not there
// (any more); the caller then pulls the image again. Memory only, no I/O.
func (s *Store) Retain(chainID, containerID string) error {
	if !s.chains.retain(chainID, containerID) {
		return fmt.Errorf("image layers %s: %w", chainID, errdefs.ErrNotFound)
	}
	return nil
}

// Release says that a container is gone. Releasing one that holds nothing is
// not an error.
func (s *Store) Release(ctx context.Context, containerID string) error {
	for _, chainID := range s.chains.release(containerID) {
		if err := s.letGo(s.context(ctx), chainID); err != nil {
			return err
		}
	}
	return nil
}

// letGo deletes the lease of a chain whose image was removed.
func (s *Store) letGo(ctx context.Context, chainID string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if !s.chains.unlease(chainID, s.index.uses(chainID)) {
		return nil
	}
	err := s.leases.Delete(ctx, leases.Lease{ID: chainLease(chainID)})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("release image layers %s: %w", chainID, err)
	}
	s.wantCollect()
	return nil
}

func chainLease(chainID string) string { return "in-use-" + strings.TrimPrefix(chainID, "sha256:") }

// Remove removes an image with all its references, whichever of them or its
// ID is given: this is what RemoveImage means in the CRI and what the
// kubelet's image collection counts on. It removes a pinned image too;
// pinning keeps the kubelet from asking. Removing what is not there is not an
// error. Run frees the space, except for layers that containers stand on,
// which stay until their Release.
func (s *Store) Remove(ctx context.Context, refOrID string) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	img, ok := s.index.get(refOrID)
	if !ok {
		return nil
	}
	ctx = s.context(ctx)
	names := s.index.names(img.ID)
	// From here the image cannot be found, so that no new container gets it
	// while its chain is being given up.
	s.index.drop(names)
	err := s.remove(ctx, img, names)
	if err != nil {
		s.chains.add(img.ChainID)
		s.index.put(names, img)
		return fmt.Errorf("remove image %s: %w", refOrID, err)
	}
	s.changed()
	s.wantCollect()
	return nil
}

func (s *Store) remove(ctx context.Context, img Image, names []string) error {
	if !s.index.uses(img.ChainID) && s.chains.retire(img.ChainID) {
		lease := chainLease(img.ChainID)
		err := s.update(ctx, func(ctx context.Context) error {
			l, err := s.leases.Create(ctx, leases.WithID(lease), leases.WithLabel(leaseChain, img.ChainID))
			if err != nil {
				return err
			}
			return s.leases.AddResource(ctx, l, leases.Resource{ID: img.ChainID, Type: "snapshots/" + snapshotterName})
		})
		if err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("lease the layers in use: %w", err)
		}
		s.chains.leased(img.ChainID)
		failpoint.Hit("cri/image-leased")
	}
	return s.update(ctx, func(ctx context.Context) error {
		for _, name := range names {
			if err := s.records.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("record %s: %w", name, err)
			}
		}
		return nil
	})
}

// update runs fn in one transaction: all of its changes to image records and
// leases happen, or none. fn must not use the content store or the
// snapshotter, whose locks are taken before the database's.
func (s *Store) update(ctx context.Context, fn func(context.Context) error) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		return fn(boltutil.WithTransaction(ctx, tx))
	})
}
