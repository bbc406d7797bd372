package images

import (
	"fmt"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Layered is an image with n more layers, each of one small file /layers/I.
func Layered(img v1.Image, n int) (v1.Image, error) {
	var layers []v1.Layer
	for i := range n {
		t := newTree()
		t.file(fmt.Sprintf("layers/%d", i), 0o644, fmt.Appendf(nil, "%d", i))
		l, err := t.layer()
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return mutate.AppendLayers(img, layers...)
}

// Data is an image that is only good to be mounted: files by path, symbolic
// links by path to target.
func Data(files, links map[string]string) (v1.Image, error) {
	t := newTree()
	for path, body := range files {
		t.file(path, 0o644, []byte(body))
	}
	for path, target := range links {
		t.symlink(path, target)
	}
	l, err := t.layer()
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{}, l)
}

// Artifact is an OCI artifact of one layer for each file, with its name as the
// title, as ORAS pushes them.
func Artifact(files map[string]string) (v1.Image, error) {
	img, err := assemble(v1.Config{})
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer([]byte(files[name]), "application/vnd.example.file"),
			MediaType:   "application/vnd.example.file",
			Annotations: map[string]string{"org.opencontainers.image.title": name},
		})
		if err != nil {
			return nil, err
		}
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), "application/vnd.oci.empty.v1+json"), nil
}
