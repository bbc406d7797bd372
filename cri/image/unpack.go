package image

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berth-io/berth/internal/failpoint"
)

const (
	// snapshotterName names the overlay snapshotter in the metadata database.
	snapshotterName = "overlayfs"
	// extractPrefix starts the key of a snapshot that is being unpacked.
	extractPrefix = "extract-"
	// upperdirLabel is where the overlay snapshotter reports a snapshot's directory.
	upperdirLabel = "containerd.io/snapshot/overlay.upperdir"
	// snapshotRefLabel names the chain that an unpacked snapshot will be; the
	// metadata store answers that it exists, and leases it, in one transaction.
	snapshotRefLabel = "containerd.io/snapshot.ref"
)

// unpacker turns layer blobs into committed snapshots.
type unpacker struct {
	content     content.Provider
	snapshots   snapshots.Snapshotter
	chains      *keylock // by chain ID, over all pulls
	layerLimit  int64    // bytes
	imageBudget int64    // bytes left for the layers to come
	imageLimit  int64
}

// claim reports whether the chain is unpacked, and leases it if so.
func (u *unpacker) claim(ctx context.Context, chainID digest.Digest) (bool, error) {
	if _, err := u.snapshots.Stat(ctx, chainID.String()); errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for snapshot %s: %w", chainID, err)
	}
	key, err := u.prepare(ctx, chainID, "")
	if err != nil || key == "" {
		return err == nil, err
	}
	return false, u.abandon(ctx, key) // collected between the two calls
}

// prepare makes the snapshot to unpack into, or returns no key if the chain
// exists, which is leased then.
func (u *unpacker) prepare(ctx context.Context, chainID, parent digest.Digest) (key string, err error) {
	key = extractPrefix + rand.Text() + " " + chainID.String()
	_, err = u.snapshots.Prepare(ctx, key, parent.String(), snapshots.WithLabels(map[string]string{
		snapshotRefLabel: chainID.String(),
	}))
	if errdefs.IsAlreadyExists(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("prepare snapshot: %w", err)
	}
	return key, nil
}

func (u *unpacker) abandon(ctx context.Context, key string) error {
	if err := u.snapshots.Remove(context.WithoutCancel(ctx), key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}

// unpack makes the chain that ends in layer i of c. The layers below must be there.
func (u *unpacker) unpack(ctx context.Context, c *contents, i int) (err error) {
	chainID := c.chainIDs[i]
	unlock, err := u.chains.lock(ctx, chainID.String())
	if err != nil {
		return err
	}
	defer unlock()
	var parent digest.Digest
	if i > 0 {
		parent = c.chainIDs[i-1]
	}
	key, err := u.prepare(ctx, chainID, parent)
	if err != nil || key == "" {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.abandon(ctx, key))
		}
	}()
	failpoint.Hit("cri/image-prepared")

	dir, err := layerDir(ctx, u.snapshots, key)
	if err != nil {
		return err
	}
	var below []string
	if i > 0 {
		if below, err = layerDirs(ctx, u.snapshots, c.chainIDs[:i]); err != nil {
			return err
		}
	}
	if err := u.apply(ctx, dir, below, c.manifest.Layers[i], c.config.RootFS.DiffIDs[i]); err != nil {
		return err
	}
	failpoint.Hit("cri/image-applied")
	if err := u.snapshots.Commit(ctx, chainID.String(), key, snapshots.WithLabels(map[string]string{
		snapshotRefLabel: chainID.String(),
	})); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit snapshot: %w", err)
	}
	failpoint.Hit("cri/image-committed")
	return nil
}

// apply unpacks one layer into dir, checking each entry before it is made and
// the whole against its diff ID.
func (u *unpacker) apply(ctx context.Context, dir string, below []string, layer ocispec.Descriptor, diffID digest.Digest) error {
	ra, err := u.content.ReaderAt(ctx, layer)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("is missing: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	defer ra.Close()
	plain, err := decompress(content.NewReader(ra))
	if err != nil {
		return explainRead(err)
	}
	defer plain.Close()

	limit, over := u.layerLimit, fmt.Errorf("layer unpacks to more than the %d bytes one layer may have", u.layerLimit)
	if u.imageBudget < limit {
		limit, over = u.imageBudget, fmt.Errorf("image unpacks to more than the %d bytes one image may have", u.imageLimit)
	}
	sum := diffID.Algorithm().Digester()
	bounded := &boundedReader{r: plain, limit: limit, over: over}
	in := io.TeeReader(bounded, sum.Hash())
	entries := &entryCheck{limit: limit, over: over}

	opts := []archive.ApplyOpt{archive.WithFilter(func(h *tar.Header) (bool, error) { return entries.check(h) })}
	if len(below) > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(below))
	}
	if _, err := archive.Apply(ctx, dir, in, opts...); err != nil {
		return explainRead(err)
	}
	// The diff ID covers what follows the archive's end, too.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return explainRead(err)
	}
	if got := sum.Digest(); got != diffID {
		return fmt.Errorf("unpacks to %s, the configuration says %s", got, diffID)
	}
	u.imageBudget -= max(bounded.n, entries.declared)
	return nil
}

// layerDir is the directory of one snapshot.
func layerDir(ctx context.Context, sn snapshots.Snapshotter, key string) (string, error) {
	info, err := sn.Stat(ctx, key)
	if err != nil {
		return "", fmt.Errorf("look for snapshot %s: %w", key, err)
	}
	dir := info.Labels[upperdirLabel]
	if dir == "" {
		return "", fmt.Errorf("snapshot %s has no directory", key)
	}
	return dir, nil
}

// layerDirs are the directories of a chain, topmost first.
func layerDirs(ctx context.Context, sn snapshots.Snapshotter, chainIDs []digest.Digest) ([]string, error) {
	dirs := make([]string, len(chainIDs))
	for i, id := range chainIDs {
		dir, err := layerDir(ctx, sn, id.String())
		if err != nil {
			return nil, err
		}
		dirs[len(dirs)-1-i] = dir
	}
	return dirs, nil
}

// extracting reports whether a snapshot key is one of prepare's.
func extracting(key string) bool { return strings.HasPrefix(key, extractPrefix) }
