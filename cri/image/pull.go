package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/berth-io/berth/internal/failpoint"
)

// Pull brings an image from its registry, unpacks it, and returns it when it
// is ready to run. Concurrent pulls of one reference with the same
// credentials share one. progress may be nil; it is called from several
// goroutines, one at a time, and must return quickly.
//
// Errors that a person can act on carry errdefs.ErrNotFound,
// ErrUnauthenticated, ErrUnavailable (the registry) or ErrInvalidArgument.
// A pull that broke off because of the network, the registry or ctx leaves
// what it received for the next pull of the same reference, for a day; any
// other failure leaves nothing.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth, progress func(Progress)) (Image, error) {
	named, err := parseReference(ref)
	if err != nil {
		return Image{}, errors.Join(err, errdefs.ErrInvalidArgument)
	}
	img, err := s.flights.do(ctx, flightKey{named.String(), auth}, progress, func(ctx context.Context, report func(Progress)) (Image, error) {
		return s.pull(s.context(ctx), named, auth, report)
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", named, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, named reference.Named, auth Auth, report func(Progress)) (Image, error) {
	ref := named.String()
	report(Progress{Ref: ref, Status: "waiting"})
	if err := s.pulls.Acquire(ctx, 1); err != nil {
		return Image{}, err
	}
	defer s.pulls.Release(1)
	report(Progress{Ref: ref, Status: "resolving"})
	creds, err := credentialsFor(named, auth, s.config.AuthFile)
	if err != nil {
		return Image{}, err
	}
	remote := newRegistry(ctx, s.config.CertsDirs, creds, s.config.ProgressTimeout)
	defer remote.close()

	var img Image
	err = s.leased(ctx, ref, func(ctx context.Context) error {
		target, err := s.resolve(ctx, remote, ref)
		if err != nil {
			return err
		}
		blobs, err := remote.Fetcher(ctx, ref)
		if err != nil {
			return err
		}
		in := &installation{store: s, ref: ref, report: report, fetch: &fetcher{
			store: s.content, remote: blobs, blobs: &s.blobs, timeout: s.config.ProgressTimeout,
		}}
		c, err := in.run(ctx, target)
		if err != nil {
			return err
		}
		names, err := recordNames(named, target)
		if err != nil {
			return err
		}
		img, err = s.record(ctx, map[string]*contents{names[0]: c, names[len(names)-1]: c})
		return err
	})
	if err != nil {
		return Image{}, err
	}
	report(Progress{Ref: ref, Status: "done"})
	return img, nil
}

// recordNames are the reference itself and the one by digest, which may be the same.
func recordNames(named reference.Named, target ocispec.Descriptor) ([]string, error) {
	byDigest, err := withDigest(named, target.Digest)
	if err != nil {
		return nil, err
	}
	return slices.Compact([]string{named.String(), byDigest}), nil
}

// leased runs fn under a lease. When fn fails for good, it leaves nothing of
// what fn brought.
func (s *Store) leased(ctx context.Context, ref string, fn func(context.Context) error) error {
	inner, lease, err := s.held.begin(ctx, ref)
	if err != nil {
		return err
	}
	failpoint.Hit("cri/image-lease")
	err = fn(inner)
	s.changed()
	end := context.WithoutCancel(ctx)
	if lerr := s.held.end(end, lease, ref, interrupted(err)); lerr != nil {
		return errors.Join(err, lerr)
	}
	failpoint.Hit("cri/image-unlease")
	if err != nil {
		// Now, not in Run: who sees the error may look at the disk next.
		return errors.Join(err, s.garbageCollect(end))
	}
	return nil
}

// resolve asks the registry what a reference is.
func (s *Store) resolve(ctx context.Context, remote *registry, ref string) (ocispec.Descriptor, error) {
	ctx, w := watch(ctx, s.config.ProgressTimeout)
	defer w.close()
	_, target, err := remote.Resolve(ctx, ref)
	if err != nil {
		return target, w.explain(ctx, err)
	}
	return target, nil
}

// documents is where manifests and configurations come from.
type documents interface {
	document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
}

// inspect reads what the image behind target consists of.
func (s *Store) inspect(ctx context.Context, from documents, target ocispec.Descriptor) (*contents, error) {
	c := &contents{target: target}
	for desc, depth := target, 0; ; depth++ {
		if depth > maxIndexDepth {
			return nil, fmt.Errorf("index %s: more than %d indexes one in another", target.Digest, maxIndexDepth)
		}
		index, manifest := images.IsIndexType(desc.MediaType), images.IsManifestType(desc.MediaType)
		if !index && !manifest {
			return nil, fmt.Errorf("manifest %s: media type %q is not supported", desc.Digest, desc.MediaType)
		}
		if err := checkDescriptor(desc); err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		b, err := from.document(ctx, desc)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		c.documents = append(c.documents, desc)
		if index {
			if desc, err = chooseManifest(b, s.match, s.platform); err != nil {
				return nil, err
			}
			continue
		}
		if c.manifest, err = parseManifest(b); err != nil {
			return nil, fmt.Errorf("manifest %s: %w", desc.Digest, err)
		}
		break
	}
	b, err := from.document(ctx, c.manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", c.manifest.Config.Digest, err)
	}
	if c.artifact = isArtifact(c.manifest); c.artifact {
		if c.unpacks, c.chainIDs, err = artifactLayers(c.manifest); err != nil {
			return nil, fmt.Errorf("artifact %s: %w", c.id(), err)
		}
		return c, nil
	}
	c.config, c.chainIDs, err = parseConfig(b, len(c.manifest.Layers), s.match, s.platform)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", c.manifest.Config.Digest, err)
	}
	for _, id := range c.config.RootFS.DiffIDs {
		c.unpacks = append(c.unpacks, unpacking{diffID: id})
	}
	return c, nil
}

// installation brings one image to where it can be recorded.
type installation struct {
	store  *Store
	ref    string
	report func(Progress)
	fetch  *fetcher // nil when the content is already in the store
}

// run fetches and unpacks.
func (in *installation) run(ctx context.Context, target ocispec.Descriptor) (*contents, error) {
	var from documents = stored{in.store.content}
	if in.fetch != nil {
		from = in.fetch
	}
	c, err := in.store.inspect(ctx, from, target)
	if err != nil {
		return nil, err
	}
	u := &unpacker{
		content: in.store.content, snapshots: in.store.snapshotter(), chains: &in.store.chainsMu,
		blobs:     filepath.Join(in.store.config.Root, "content", "blobs"),
		slots:     in.store.unpacks,
		limits:    in.store.config.limits(),
		allowance: newAllowance(in.store.config.MaxUnpackedBytes),
	}
	for i, layer := range c.manifest.Layers {
		if layer.Size > u.limits.layerBytes {
			return nil, fmt.Errorf("%s: %d bytes is more than the %d one layer may have", layerName(c, i), layer.Size, u.limits.layerBytes)
		}
	}
	first, err := in.firstMissing(ctx, u, c)
	if err != nil {
		return nil, err
	}
	if err := in.layers(ctx, u, c, first); err != nil {
		return nil, err
	}
	if !in.store.index.uses(c.chainID()) { // a recorded chain has been written out
		if err := syncFS(in.store.config.Root); err != nil {
			return nil, err
		}
	}
	failpoint.Hit("cri/image-durable")
	return c, in.store.link(ctx, c)
}

func layerName(c *contents, i int) string {
	return fmt.Sprintf("layer %d/%d %s", i+1, len(c.manifest.Layers), c.manifest.Layers[i].Digest)
}

// firstMissing is the lowest layer that has to be fetched: an unpacked chain
// holds all below it.
func (in *installation) firstMissing(ctx context.Context, u *unpacker, c *contents) (int, error) {
	for i := len(c.chainIDs) - 1; i >= 0; i-- {
		there, err := u.claim(ctx, c.chainIDs[i])
		if err != nil {
			return 0, err
		}
		if there {
			for _, layer := range c.manifest.Layers[:i+1] {
				in.say(layer, "exists", layer.Size)
			}
			return i + 1, nil
		}
	}
	return 0, nil
}

// layers fetches and unpacks, each layer as soon as it can be: downloads are
// started lowest first, several at a time, and each is unpacked while others
// still come.
func (in *installation) layers(ctx context.Context, u *unpacker, c *contents, first int) error {
	g, inner := errgroup.WithContext(ctx)
	slots := semaphore.NewWeighted(int64(in.store.config.MaxParallelLayers))
	done := make([]chan struct{}, len(c.manifest.Layers))
	for i := range done {
		done[i] = make(chan struct{})
		if i < first {
			close(done[i])
		} else {
			in.say(c.manifest.Layers[i], "waiting", 0)
		}
	}
	for i := first; i < len(done); i++ {
		if err := slots.Acquire(inner, 1); err != nil {
			break // a layer failed, or the pull was given up: Wait knows
		}
		g.Go(func() error {
			layer := c.manifest.Layers[i]
			err := in.fetchLayer(inner, layer)
			slots.Release(1)
			if err != nil {
				return fmt.Errorf("%s: %w", layerName(c, i), err)
			}
			var below chan struct{}
			if i > 0 {
				below = done[i-1]
			}
			if err := u.unpack(inner, c, i, below, func() { in.say(layer, "unpacking", 0) }); err != nil {
				return fmt.Errorf("unpack %s: %w", layerName(c, i), err)
			}
			in.say(layer, "done", layer.Size)
			close(done[i])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func (in *installation) fetchLayer(ctx context.Context, layer ocispec.Descriptor) error {
	if in.fetch == nil {
		return nil
	}
	pace := &pacer{}
	return in.fetch.blob(ctx, layer, func(status string, offset int64) {
		if status != "downloading" || offset == layer.Size || pace.due() {
			in.say(layer, status, offset)
		}
	})
}

func (in *installation) say(layer ocispec.Descriptor, status string, offset int64) {
	in.report(Progress{Ref: in.ref, Digest: layer.Digest.String(), Status: status, Offset: offset, Total: layer.Size})
}

// pacer thins out progress reports to what an eye can follow.
type pacer struct {
	mu   sync.Mutex
	next time.Time
}

func (p *pacer) due() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(p.next) {
		return false
	}
	p.next = now.Add(100 * time.Millisecond)
	return true
}

// link writes the labels by which the garbage collector finds everything of
// an image from the document that its records name.
func (s *Store) link(ctx context.Context, c *contents) error {
	for i, desc := range c.documents {
		refs := map[string]string{}
		if i+1 < len(c.documents) {
			refs["containerd.io/gc.ref.content.m.0"] = c.documents[i+1].Digest.String()
		} else {
			refs["containerd.io/gc.ref.content.config"] = c.manifest.Config.Digest.String()
			for n, layer := range c.manifest.Layers {
				refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", n)] = layer.Digest.String()
			}
		}
		if err := s.label(ctx, desc, refs); err != nil {
			return err
		}
	}
	from := c.manifest.Config
	if c.artifact { // many share an empty configuration
		from = c.documents[len(c.documents)-1]
	}
	return s.label(ctx, from, map[string]string{
		"containerd.io/gc.ref.snapshot." + snapshotterName: c.chainID(),
	})
}

func (s *Store) label(ctx context.Context, desc ocispec.Descriptor, labels map[string]string) error {
	info := content.Info{Digest: desc.Digest, Labels: labels}
	var fields []string
	for key := range labels {
		fields = append(fields, "labels."+key)
	}
	if _, err := s.content.Update(ctx, info, fields...); err != nil {
		return fmt.Errorf("label %s: %w", desc.Digest, err)
	}
	return nil
}

// record makes images known under the given names, all or none, and returns
// one of them. What was known under such a name and has no other stays known
// by its ID, so that the kubelet can still see and remove it.
func (s *Store) record(ctx context.Context, named map[string]*contents) (Image, error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	byID, loaded := map[string][]string{}, map[string]Image{}
	var last Image
	for name, c := range named {
		img, err := s.image(ctx, c)
		if err != nil {
			return Image{}, err
		}
		byID[img.ID] = append(byID[img.ID], name)
		loaded[img.ID], last = img, img
	}
	failpoint.Hit("cri/image-linked")
	orphans, err := s.orphans(ctx, named)
	if err != nil {
		return Image{}, err
	}
	err = s.update(ctx, func(ctx context.Context) error {
		for name, c := range named {
			if err := s.putRecord(ctx, images.Image{Name: name, Target: c.target}); err != nil {
				return err
			}
		}
		for id, target := range orphans {
			if err := s.putRecord(ctx, images.Image{Name: id, Target: target}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("record image: %w", err)
	}
	failpoint.Hit("cri/image-recorded")
	for id := range orphans {
		if old, ok := s.index.get(id); ok {
			s.index.put([]string{id}, old)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		s.chains.add(loaded[id].ChainID)
		s.index.put(byID[id], loaded[id])
	}
	img, _ := s.index.get(last.ID)
	return img, nil
}

// orphans finds the images that lose their last name to the given ones, with
// what their records pointed to.
func (s *Store) orphans(ctx context.Context, named map[string]*contents) (map[string]ocispec.Descriptor, error) {
	found := map[string]ocispec.Descriptor{}
	for name, c := range named {
		old, ok := s.index.get(name)
		if !ok || old.ID == c.id() {
			continue
		}
		taken := func(other string) bool { _, ok := named[other]; return ok }
		names := s.index.names(old.ID)
		if slices.ContainsFunc(names, func(n string) bool { return !taken(n) }) {
			continue
		}
		record, err := s.records.Get(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", name, err)
		}
		found[old.ID] = record.Target
	}
	return found, nil
}

func (s *Store) putRecord(ctx context.Context, img images.Image) error {
	_, err := s.records.Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		_, err = s.records.Update(ctx, img, "target")
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", img.Name, err)
	}
	return nil
}
