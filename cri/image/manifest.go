package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxDocument bounds manifests, indexes and configurations. It is what
	// registries accept for manifests (distribution-spec: at least 4 MiB).
	maxDocument = 4 << 20
	// maxLayers is how many lower directories overlayfs can stack
	// (OVL_MAX_STACK in fs/overlayfs).
	maxLayers = 500
	// maxIndexDepth bounds indexes that point to indexes.
	maxIndexDepth = 4
)

// contents is what an image consists of, read and checked.
type contents struct {
	target    ocispec.Descriptor   // what the reference names: a manifest or an index
	documents []ocispec.Descriptor // the way from target to the manifest, both included
	manifest  ocispec.Manifest
	artifact  bool // not an image: config is empty
	config    ocispec.Image
	unpacks   []unpacking     // per layer, lowest first
	chainIDs  []digest.Digest // per layer, lowest first
}

// unpacking says what a layer blob becomes.
type unpacking struct {
	diffID digest.Digest // of the tar archive in it; empty where nobody says
	file   string        // the name of the file it is; empty for an archive
	empty  bool          // it has no content
}

// id is what the CRI calls the image ID. The configuration's digest is an
// image's own; many artifacts share an empty one.
func (c *contents) id() string {
	if c.artifact {
		return c.documents[len(c.documents)-1].Digest.String()
	}
	return c.manifest.Config.Digest.String()
}

func (c *contents) chainID() string { return c.chainIDs[len(c.chainIDs)-1].String() }

// checkDescriptor refuses a descriptor that nothing could be fetched by.
func checkDescriptor(desc ocispec.Descriptor) error {
	if err := desc.Digest.Validate(); err != nil {
		return fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	if desc.Size <= 0 {
		return fmt.Errorf("descriptor of %s has size %d", desc.Digest, desc.Size)
	}
	return nil
}

// parseManifest reads the manifest of an image, Docker schema 2 or OCI, or of
// an OCI artifact.
func parseManifest(b []byte) (ocispec.Manifest, error) {
	var doc struct {
		ocispec.Manifest
		Manifests json.RawMessage `json:"manifests"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return ocispec.Manifest{}, fmt.Errorf("not a manifest: %w", err)
	}
	m := doc.Manifest
	switch {
	case len(doc.FSLayers) > 0:
		return m, fmt.Errorf("manifest schema 1 is not supported: rebuild the image with a current tool")
	case len(doc.Manifests) > 0:
		return m, fmt.Errorf("is an index where a manifest is expected")
	case m.Config.Digest == "":
		return m, fmt.Errorf("manifest has no configuration")
	case len(m.Layers) == 0:
		return m, fmt.Errorf("manifest has no layers")
	case len(m.Layers) > maxLayers:
		return m, fmt.Errorf("manifest has %d layers, overlayfs can stack %d", len(m.Layers), maxLayers)
	case m.Config.Size > maxDocument:
		return m, fmt.Errorf("config %s: %d bytes is more than the %d a configuration may have", m.Config.Digest, m.Config.Size, maxDocument)
	}
	if err := checkDescriptor(m.Config); err != nil {
		return m, fmt.Errorf("config: %w", err)
	}
	for i, layer := range m.Layers {
		if err := checkDescriptor(layer); err != nil {
			return m, fmt.Errorf("layer %d/%d: %w", i+1, len(m.Layers), err)
		}
		if !isArtifact(m) && !supportedLayer(layer.MediaType) {
			return m, fmt.Errorf("layer %d/%d %s: media type %q is not supported", i+1, len(m.Layers), layer.Digest, layer.MediaType)
		}
	}
	return m, nil
}

// isArtifact tells a manifest of something else than an image: its
// configuration has another media type (image-spec, "Guidelines for Artifact
// Usage").
func isArtifact(m ocispec.Manifest) bool { return !images.IsConfigType(m.Config.MediaType) }

func supportedLayer(mediaType string) bool {
	switch mediaType {
	case images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
		images.MediaTypeDockerSchema2LayerForeign, images.MediaTypeDockerSchema2LayerForeignGzip,
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		// Deprecated by the image-spec, but allowed.
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return true
	}
	return false
}

// chooseManifest picks from an index the entry that fits this node best. An
// entry that does not say its platform is taken when none says a fitting one;
// its configuration is checked later.
func chooseManifest(b []byte, want platforms.MatchComparer, platform string) (ocispec.Descriptor, error) {
	var idx struct {
		ocispec.Index
		Config json.RawMessage `json:"config"`
		Layers json.RawMessage `json:"layers"`
	}
	if err := json.Unmarshal(b, &idx); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("not an index: %w", err)
	}
	if len(idx.Config) > 0 || len(idx.Layers) > 0 {
		return ocispec.Descriptor{}, fmt.Errorf("is a manifest where an index is expected")
	}
	var fitting, silent []ocispec.Descriptor
	var offered []string
	for _, desc := range idx.Manifests {
		switch {
		case desc.Platform == nil || desc.Platform.OS == "" && desc.Platform.Architecture == "":
			silent = append(silent, desc)
		case want.Match(*desc.Platform):
			fitting = append(fitting, desc)
		case desc.Platform.OS != "unknown": // attestations are stored as unknown/unknown
			offered = append(offered, platforms.Format(platforms.Normalize(*desc.Platform)))
		}
	}
	slices.SortStableFunc(fitting, func(a, b ocispec.Descriptor) int {
		switch {
		case want.Less(*a.Platform, *b.Platform):
			return -1
		case want.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	for _, desc := range append(fitting, silent...) {
		return desc, checkDescriptor(desc)
	}
	if len(offered) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("no manifest for %s: the index is empty: %w", platform, errdefs.ErrNotFound)
	}
	return ocispec.Descriptor{}, fmt.Errorf("no manifest for %s, the image has %s: %w", platform, strings.Join(offered, ", "), errdefs.ErrNotFound)
}

// parseConfig reads a configuration and checks that it describes an image of
// n layers for this node.
func parseConfig(b []byte, n int, want platforms.Matcher, platform string) (ocispec.Image, []digest.Digest, error) {
	var config ocispec.Image
	if err := json.Unmarshal(b, &config); err != nil {
		return config, nil, fmt.Errorf("not an image configuration: %w", err)
	}
	if config.OS == "" || config.Architecture == "" {
		return config, nil, fmt.Errorf("configuration does not say its os and architecture")
	}
	if !want.Match(config.Platform) {
		return config, nil, fmt.Errorf("image is for %s, this node runs %s", platforms.Format(platforms.Normalize(config.Platform)), platform)
	}
	if config.RootFS.Type != "" && config.RootFS.Type != "layers" {
		return config, nil, fmt.Errorf("rootfs type %q is not supported", config.RootFS.Type)
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) != n {
		return config, nil, fmt.Errorf("configuration lists %d layers, the manifest %d", len(diffIDs), n)
	}
	for i, id := range diffIDs {
		if err := id.Validate(); err != nil {
			return config, nil, fmt.Errorf("rootfs.diff_ids[%d] %q: %w", i, id, err)
		}
	}
	// ChainIDs works in place.
	return config, identity.ChainIDs(slices.Clone(diffIDs)), nil
}
