package image

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An artifact is something in a registry that is no image: a model, a WASM
// module, a chart. It cannot be run, but mounted. Its layers become a directory
// in the way other runtimes and ORAS do it: a layer with the media type of an
// image layer is unpacked, any other is a file with the name that its
// title annotation gives it.

// artifactLayers says what the layers of an artifact become, and under which
// chain IDs. Nobody tells the digests of archives in an artifact, so the chain
// is made from those of the blobs; it never is the chain of an image.
func artifactLayers(m ocispec.Manifest) ([]unpacking, []digest.Digest, error) {
	unpacks := make([]unpacking, len(m.Layers))
	ids := make([]digest.Digest, len(m.Layers))
	names := map[string]bool{}
	for i, layer := range m.Layers {
		switch {
		case supportedLayer(layer.MediaType):
		case layer.MediaType == ocispec.MediaTypeEmptyJSON:
			unpacks[i].empty = true
		default:
			name, err := artifactFile(layer)
			if err == nil && names[name] {
				err = fmt.Errorf("title %q is also another layer's", name)
			}
			if err != nil {
				return nil, nil, fmt.Errorf("layer %d/%d %s: %w", i+1, len(m.Layers), layer.Digest, err)
			}
			names[name] = true
			unpacks[i].file = name
		}
		ids[i] = digest.FromString(fmt.Sprintf("artifact layer %s %t %q", layer.Digest, unpacks[i].empty, unpacks[i].file))
	}
	return unpacks, identity.ChainIDs(ids), nil
}

// artifactFile is the name of a layer's file, below the artifact's directory.
func artifactFile(layer ocispec.Descriptor) (string, error) {
	title := layer.Annotations[ocispec.AnnotationTitle]
	if title == "" {
		return layer.Digest.Algorithm().String() + "-" + layer.Digest.Encoded(), nil
	}
	name := path.Clean(title)
	if path.IsAbs(title) || name == "." || climbs(title) || strings.ContainsRune(title, 0) {
		return "", fmt.Errorf("title %q is not the name of a file in the artifact", title)
	}
	for part := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(part, ".wh.") {
			return "", fmt.Errorf("title %q is not the name of a file in the artifact", title)
		}
	}
	return name, nil
}

// placeFile makes a blob a file of an artifact: a further name of the same
// bytes on the disk, since models are large.
func placeFile(blob, dir, name string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if parent := path.Dir(name); parent != "." {
		if err := root.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	// The directory was empty: nothing in it leads elsewhere.
	return os.Link(blob, filepath.Join(dir, name))
}
