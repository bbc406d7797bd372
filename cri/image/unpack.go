package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

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

// unpacker turns the layer blobs of one image into committed snapshots. Layers
// are unpacked independently of each other, several at a time, and committed in
// order, each on the one below: an overlay layer is a directory of its own, and
// what it takes from the layers below is added last (see adopt).
type unpacker struct {
	content   content.Provider
	snapshots snapshots.Snapshotter
	blobs     string              // directory of the content store's blobs
	chains    *keylock            // by chain ID, over all pulls
	slots     *semaphore.Weighted // layers being unpacked, over all pulls
	limits    limits
	allowance *allowance // of the whole image
}

// claim reports whether the chain is unpacked, and leases it if so.
func (u *unpacker) claim(ctx context.Context, chainID digest.Digest) (bool, error) {
	if _, err := u.snapshots.Stat(ctx, chainID.String()); errdefs.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for snapshot %s: %w", chainID, err)
	}
	key, err := u.prepare(ctx, chainID)
	if err != nil || key == "" {
		return err == nil, err
	}
	return false, u.abandon(ctx, key) // collected between the two calls
}

// prepare makes the snapshot to unpack into, or returns no key if the chain
// exists, which is leased then.
func (u *unpacker) prepare(ctx context.Context, chainID digest.Digest) (key string, err error) {
	key = extractPrefix + rand.Text() + " " + chainID.String()
	_, err = u.snapshots.Prepare(ctx, key, "", snapshots.WithLabels(map[string]string{
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

// unpack makes the chain that ends in layer i of c. It calls started when the
// work begins, and commits once below is closed: when the chain under it is
// there. Who holds the lock of a chain waits only for shorter ones, so that
// images that share layers never wait for each other in a circle.
func (u *unpacker) unpack(ctx context.Context, c *contents, i int, below <-chan struct{}, started func()) (err error) {
	chainID := c.chainIDs[i]
	unlock, err := u.chains.lock(ctx, chainID.String())
	if err != nil {
		return err
	}
	defer unlock()
	key, err := u.prepare(ctx, chainID)
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
	implicit, err := u.extract(ctx, dir, c, i, started)
	if err != nil {
		return err
	}
	failpoint.Hit("cri/image-applied")
	opts := []snapshots.Opt{snapshots.WithLabels(map[string]string{snapshotRefLabel: chainID.String()})}
	if i > 0 {
		select {
		case <-below:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		lowers, err := layerDirs(ctx, u.snapshots, c.chainIDs[:i])
		if err != nil {
			return err
		}
		if err := adopt(dir, lowers, implicit); err != nil {
			return err
		}
		opts = append(opts, snapshots.WithParent(c.chainIDs[i-1].String()))
	}
	if err := u.snapshots.Commit(ctx, chainID.String(), key, opts...); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit snapshot: %w", err)
	}
	failpoint.Hit("cri/image-committed")
	return nil
}

// extract unpacks layer i into dir, checking each entry before it is made and
// the whole against its diff ID. It returns the directories that entries need
// and the layer does not describe.
func (u *unpacker) extract(ctx context.Context, dir string, c *contents, i int, started func()) (implicit []string, err error) {
	if err := u.slots.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	defer u.slots.Release(1)
	started()
	layer, to := c.manifest.Layers[i], c.unpacks[i]
	switch {
	case to.empty:
		return nil, nil
	case to.file != "":
		blob := filepath.Join(u.blobs, layer.Digest.Algorithm().String(), layer.Digest.Encoded())
		return nil, placeFile(blob, dir, to.file)
	}
	ra, err := u.content.ReaderAt(ctx, layer)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("is missing: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open layer: %w", err)
	}
	defer ra.Close()
	plain, err := decompress(content.NewReader(ra))
	if err != nil {
		return nil, explainRead(err)
	}
	defer plain.Close()
	ahead := readAhead(plain)
	defer ahead.Close() // before plain: it reads from it

	algorithm := digest.Canonical
	if to.diffID != "" {
		algorithm = to.diffID.Algorithm()
	}
	sum := algorithm.Digester()
	meter := &meter{limits: u.limits, image: u.allowance}
	in := io.TeeReader(&meteredReader{ahead, meter}, sum.Hash())
	entries := newEntryCheck(meter)
	opts := []archive.ApplyOpt{archive.WithFilter(entries.check)}
	if i > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	}
	if _, err := archive.Apply(ctx, dir, in, opts...); err != nil {
		return nil, explainRead(err)
	}
	// The diff ID covers what follows the archive's end, too.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, explainRead(err)
	}
	if got := sum.Digest(); to.diffID != "" && got != to.diffID {
		return nil, fmt.Errorf("unpacks to %s, the configuration says %s", got, to.diffID)
	}
	return entries.undescribed(), nil
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
