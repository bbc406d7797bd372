package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importLease stands where the lease of a pull has its reference; it is not one.
const importLease = "import archive"

// Import reads images from an archive: what docker save writes, or an OCI
// layout as a tar file, both plain or compressed with gzip or zstd. All images
// of the archive become known, or none. An image without a name is known by
// its ID.
func (s *Store) Import(ctx context.Context, r io.Reader) ([]Image, error) {
	plain, err := decompress(r)
	if err != nil {
		return nil, fmt.Errorf("import image archive: %w", err)
	}
	defer plain.Close()
	bounded := &boundedReader{
		r: plain, limit: s.config.MaxUnpackedBytes,
		over: fmt.Errorf("archive holds more than the %d bytes one image may have", s.config.MaxUnpackedBytes),
	}
	var list []Image
	err = s.leased(s.context(ctx), importLease, func(ctx context.Context) error {
		named, err := s.importArchive(ctx, bounded)
		if err != nil {
			return definite(err)
		}
		if _, err := s.record(ctx, named); err != nil {
			return err
		}
		ids := map[string]bool{}
		for _, c := range named {
			if img, ok := s.index.get(c.id()); ok && !ids[img.ID] {
				ids[img.ID] = true
				list = append(list, img)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("import image archive: %w", err)
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// definite hides that an import was interrupted: a stream cannot be continued,
// so nothing of it is kept.
func definite(err error) error {
	if interrupted(err) {
		return errors.New(err.Error())
	}
	return err
}

// importArchive ingests an archive and unpacks its images.
func (s *Store) importArchive(ctx context.Context, r io.Reader) (map[string]*contents, error) {
	index, err := archive.ImportIndex(ctx, importStore{s.content}, r)
	if err != nil {
		return nil, explainRead(err)
	}
	b, err := readBlob(ctx, s.content, index)
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	var list ocispec.Index
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if len(list.Manifests) == 0 {
		return nil, errors.New("archive holds no image")
	}
	named := map[string]*contents{}
	for _, desc := range list.Manifests {
		name, err := archiveName(desc.Annotations)
		if err != nil {
			return nil, err
		}
		in := &installation{store: s, ref: name, report: func(Progress) {}}
		c, err := in.run(ctx, desc)
		if err != nil {
			if name == "" {
				name = desc.Digest.String()
			}
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if name == "" {
			name = c.id()
		}
		named[name] = c
	}
	return named, nil
}

// archiveName is the full name under which an archive's entry asks to be
// known, or nothing. An OCI layout often gives only a tag, which names nothing.
func archiveName(annotations map[string]string) (string, error) {
	name := annotations[images.AnnotationImageName]
	if name == "" {
		name = annotations[ocispec.AnnotationRefName]
		if !strings.ContainsAny(name, ":/") {
			return "", nil
		}
	}
	named, err := parseReference(name)
	if err != nil {
		return "", err
	}
	if _, ok := named.(reference.Canonical); ok {
		return "", fmt.Errorf("image reference %q: an archive can give tags only", name)
	}
	return named.String(), nil
}

// importStore gives every writer a name of its own: those of the importer are
// the names in the archive, which other archives have too.
type importStore struct{ content.Store }

func (s importStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return s.Store.Writer(ctx, append(opts, func(o *content.WriterOpts) error {
		o.Ref = importRef(ctx, o.Ref)
		return nil
	})...)
}

func (s importStore) Abort(ctx context.Context, ref string) error {
	return s.Store.Abort(ctx, importRef(ctx, ref))
}

// importRef sets an import's writers apart by its lease.
func importRef(ctx context.Context, ref string) string {
	lease, _ := leases.FromContext(ctx)
	return lease + "-" + ref
}
