package image

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// artifact makes one with an empty configuration, as ORAS does. Titles are per
// layer; an empty one is none.
func artifact(t *testing.T, titles []string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := configured(t, mutate.MediaType(build(t, layers...), types.OCIManifestSchema1), []byte("{}"))
	edited := withManifest(t, img, func(m map[string]any) {
		m["artifactType"] = "application/vnd.example.model"
		m["config"].(map[string]any)["mediaType"] = "application/vnd.oci.empty.v1+json"
		for i, title := range titles {
			if title != "" {
				layerFields(m, i)["annotations"] = map[string]any{"org.opencontainers.image.title": title}
			}
		}
	})
	return edited
}

func TestAnArtifactBecomesADirectoryOfItsLayers(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	s := open(t, config)
	first := artifact(t, []string{"weights/model.bin", "", "", "readme.txt"},
		static.NewLayer([]byte("numbers"), "application/vnd.example.weights"),
		asType{layer(t, file{name: "dir/", kind: tar.TypeDir}, file{name: "dir/f", body: "packed"}), types.OCILayer},
		static.NewLayer([]byte("{}"), "application/vnd.oci.empty.v1+json"),
		static.NewLayer([]byte("read me"), "text/plain"),
	)
	ref := reg.push(t, "model:1", first)
	img := mustPull(t, s, ref)
	if dgst, err := first.Digest(); err != nil || img.ID != dgst.String() || !img.Artifact {
		t.Errorf("image %+v, digest %v, %v", img, dgst, err)
	}
	other := mustPull(t, s, reg.push(t, "other:1", artifact(t, []string{"other"}, static.NewLayer([]byte("x"), "text/plain"))))
	if other.ID == img.ID || len(s.List()) != 2 {
		t.Errorf("artifacts with one configuration are one image: %v", s.List())
	}
	mustRemove(t, s, other.ID)

	merged := mountImage(t, img)
	for name, want := range map[string]string{"weights/model.bin": "numbers", "dir/f": "packed", "readme.txt": "read me"} {
		if b, err := os.ReadFile(filepath.Join(merged, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if entries, err := os.ReadDir(merged); err != nil || len(entries) != 3 {
		t.Errorf("entries: %v, %v", entries, err)
	}
	// After a restart it is the same, and its removal leaves nothing.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, config)
	again, ok := s.Get(ref)
	if !ok || again.ID != img.ID || strings.Join(again.Layers, ":") != strings.Join(img.Layers, ":") {
		t.Errorf("after a restart: %+v, before: %+v", again, img)
	}
	mustRemove(t, s, img.ID)
	collectNow(t, s)
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
}
