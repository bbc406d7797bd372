package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/internal/failpoint"
)

// Run collects garbage whenever something was removed, until ctx ends. Call
// it after the containers of an earlier life have been retained again: it
// first lets go of the chains of removed images on which nobody stands.
func (s *Store) Run(ctx context.Context) error {
	if err := s.releaseUnused(s.context(ctx)); err != nil && ctx.Err() == nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.collect:
		}
		if err := s.garbageCollect(s.context(ctx)); err != nil {
			s.log.Error("image garbage collection", "err", err)
		}
	}
}

// wantCollect wakes Run.
func (s *Store) wantCollect() {
	select {
	case s.collect <- struct{}{}:
	default:
	}
}

// garbageCollect removes all content and snapshots to which no image record
// and no lease leads.
func (s *Store) garbageCollect(ctx context.Context) error {
	// Once begun, it goes on: half of it done is only more to do next time.
	ctx = context.WithoutCancel(ctx)
	failpoint.Hit("cri/image-collect")
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	s.changed()
	return nil
}

// recover brings the store into a state that a crash cannot have left, and
// fills the memory.
func (s *Store) recover(ctx context.Context) error {
	if err := s.dropUnrecorded(ctx); err != nil {
		return err
	}
	if err := s.endLeasesOfOtherBoots(ctx); err != nil {
		return err
	}
	if err := s.dropExtractions(ctx); err != nil {
		return err
	}
	if err := s.load(ctx); err != nil {
		return err
	}
	if err := s.sortLeases(ctx); err != nil {
		return err
	}
	err := s.sweep(ctx)
	if errors.Is(err, unix.ENOSPC) {
		// Its own writes failed. What it would have found takes room, no more,
		// and pods must run on a full disk too.
		s.log.Warn("the disk is full: what a crash may have left of images stays until the next start", "dir", s.config.Root, "err", err)
		return nil
	}
	return err
}

// dropUnrecorded removes what a kill left of a beginning: the directories of
// content and of snapshots that nothing tells of. Such a snapshot is in the way
// of the next one, which gets the same number.
func (s *Store) dropUnrecorded(ctx context.Context) error {
	// A writer of content begins with a directory, and says in it what it writes.
	ingests, err := filepath.Glob(filepath.Join(s.config.Root, "content", "ingest", "*"))
	if err != nil {
		return fmt.Errorf("list unfinished content: %w", err)
	}
	for _, dir := range ingests {
		_, err := os.Stat(filepath.Join(dir, "ref"))
		if errors.Is(err, os.ErrNotExist) {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			return fmt.Errorf("remove unfinished content: %w", err)
		}
	}
	err = s.overlay.(snapshots.Cleaner).Cleanup(ctx)
	if err == nil {
		return nil
	}
	if !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshots without a record: %w", err)
	}
	// No snapshot was ever recorded, as in a new store.
	dirs, err := filepath.Glob(filepath.Join(s.config.Root, "snapshots", "*"))
	if err != nil {
		return fmt.Errorf("list snapshots without a record: %w", err)
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove snapshot without a record: %w", err)
		}
	}
	return nil
}

// sortLeases learns which chains are in use, and deletes the leases of pulls
// that were complete and of imports, which cannot be continued.
func (s *Store) sortLeases(ctx context.Context) error {
	held, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, lease := range held {
		if chainID := lease.Labels[leaseChain]; chainID != "" {
			s.chains.add(chainID)
			s.chains.leased(chainID)
		}
		ref, pull := lease.Labels[leasePull]
		if !pull || ref != importLease && !s.index.has(ref) {
			continue
		}
		if err := s.leases.Delete(ctx, lease); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("delete lease %s: %w", lease.ID, err)
		}
	}
	return nil
}

// dropExtractions removes the snapshots that were being unpacked. Fetched
// blobs of interrupted pulls stay under their leases until these expire.
func (s *Store) dropExtractions(ctx context.Context) error {
	var stale []string
	sn := s.snapshotter()
	err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if extracting(info.Name) {
			stale = append(stale, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, key := range stale {
		if err := sn.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove snapshot %s: %w", key, err)
		}
	}
	return nil
}

// sweepRef names the ingest of sweep.
const sweepRef = "sweep"

// sweep collects garbage including what only the back ends know: files whose
// database record a crash prevented. The collector compares a back end with
// the database only if it removed something there, so give it something.
func (s *Store) sweep(ctx context.Context) error {
	// One that was killed half-way has left its own beginning under that name.
	if err := s.content.Abort(ctx, sweepRef); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("sweep content: %w", err)
	}
	b := []byte("sweep " + rand.Text())
	desc := ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := content.WriteBlob(ctx, s.content, sweepRef, bytes.NewReader(b), desc); err != nil {
		return fmt.Errorf("sweep content: %w", err)
	}
	key := extractPrefix + rand.Text()
	if _, err := s.snapshotter().Prepare(ctx, key, ""); err != nil {
		return fmt.Errorf("sweep snapshots: %w", err)
	}
	return s.garbageCollect(ctx)
}

// load reads the image records into memory.
func (s *Store) load(ctx context.Context) error {
	records, err := s.records.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, record := range records {
		img, err := s.loadImage(ctx, record.Target)
		if err == nil {
			s.index.put([]string{record.Name}, img)
			s.chains.add(img.ChainID)
			continue
		}
		s.log.Warn("image is damaged and dropped, pull it again", "image", record.Name, "err", err)
		if err := s.records.Delete(ctx, record.Name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("drop damaged image %s: %w", record.Name, err)
		}
	}
	return nil
}

func (s *Store) loadImage(ctx context.Context, target ocispec.Descriptor) (Image, error) {
	c, err := s.inspect(ctx, stored{s.content}, target)
	if err != nil {
		return Image{}, err
	}
	return s.image(ctx, c)
}

// image describes an image whose chain is unpacked.
func (s *Store) image(ctx context.Context, c *contents) (Image, error) {
	sn := s.snapshotter()
	dirs, err := layerDirs(ctx, sn, c.chainIDs)
	if err != nil {
		return Image{}, err
	}
	img := Image{
		ID:      c.id(),
		User:    c.config.Config.User,
		Config:  c.config.Config,
		Layers:  dirs,
		ChainID: c.chainID(),

		Artifact: c.artifact,
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			return Image{}, fmt.Errorf("layer directory: %w", err)
		}
	}
	for _, desc := range slices.Concat(c.documents, []ocispec.Descriptor{c.manifest.Config}, c.manifest.Layers) {
		img.Size += desc.Size
	}
	return img, nil
}

// stored is the content store as a source of documents.
type stored struct{ content.Provider }

func (s stored) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	b, err := readBlob(ctx, s.Provider, desc)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("is missing: %w", errdefs.ErrNotFound)
	}
	return b, err
}

// releaseUnused lets go of the chains of removed images that no container
// has retained.
func (s *Store) releaseUnused(ctx context.Context) error {
	for _, chainID := range s.chains.unused() {
		if err := s.letGo(ctx, chainID); err != nil {
			return err
		}
	}
	return nil
}
