package images

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Pause is the image of the container that other runtimes keep a pod's
// namespaces with.
func (b *Builder) Pause() (v1.Image, error) {
	t := newTree()
	if err := t.host("pause", filepath.Join(b.Bin, "pause")); err != nil {
		return nil, fmt.Errorf("%w (made by: make testbins)", err)
	}
	layer, err := t.layer()
	if err != nil {
		return nil, err
	}
	return assemble(v1.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}, layer)
}

const bulkFile = 16 << 10 // bytes: about the mean of what distributions install

// Bulk is an image to measure pulls with: layers of so many MiB of small files
// in many directories, which shrink to about a third, as programs do. Each seed
// has content of its own.
func (b *Builder) Bulk(layers, mib int, seed uint64) (v1.Image, error) {
	r := rand.New(rand.NewPCG(seed, 0))
	var all []v1.Layer
	for n := range layers {
		t := newTree()
		for i := range mib << 20 / bulkFile {
			data := make([]byte, bulkFile)
			for j := range data {
				// Random at first, then the same four letters.
				if data[j] = byte(r.Uint32()); j > bulkFile/4 {
					data[j] = "node"[data[j]%4]
				}
			}
			t.file(fmt.Sprintf("usr/lib/layer%d/%02x/file-%d", n, i%64, i), 0o644, data)
		}
		layer, err := t.layer()
		if err != nil {
			return nil, err
		}
		all = append(all, layer)
	}
	return assemble(v1.Config{Cmd: []string{"/bin/true"}}, all...)
}
