package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// saved is what docker save writes for tagged images.
func saved(t *testing.T, images map[string]v1.Image) []byte {
	t.Helper()
	tags := map[name.Tag]v1.Image{}
	for ref, img := range images {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		tags[tag] = img
	}
	var b bytes.Buffer
	if err := tarball.MultiWrite(tags, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ociLayout is a tar of an OCI layout with the images under annotations.
func ociLayout(t *testing.T, images map[string]v1.Image) []byte {
	t.Helper()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for ref, img := range images {
		if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestArchivesOfBothKindsAreImported(t *testing.T) {
	two := map[string]v1.Image{"example.com/one:1": small(t, "one"), "example.com/two:2": small(t, "two")}
	for kind, b := range map[string][]byte{
		"docker":       saved(t, two),
		"docker, gzip": gzipped(t, saved(t, two)),
		"oci":          ociLayout(t, two),
		"oci, gzip":    gzipped(t, ociLayout(t, two)),
	} {
		t.Run(kind, func(t *testing.T) {
			config := testConfig(t)
			s := open(t, config)
			list, err := s.Import(context.Background(), bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if len(list) != 2 || len(s.List()) != 2 {
				t.Fatalf("imported %d, listed %d", len(list), len(s.List()))
			}
			for ref := range two {
				img, ok := s.Get(ref)
				if !ok || len(img.RepoTags) != 1 || img.RepoTags[0] != ref {
					t.Errorf("%s: %v %v", ref, ok, img.RepoTags)
					continue
				}
				if _, err := os.Stat(filepath.Join(img.Layers[0], "bin/run")); err != nil {
					t.Error(err)
				}
			}
			before := holdings(t, s)
			if strings.Contains(before, "lease") || strings.Contains(before, "ingest") {
				t.Errorf("holdings:\n%s", before)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, config)
			if len(s.List()) != 2 {
				t.Errorf("after a restart: %v", s.List())
			}
			for _, img := range s.List() {
				mustRemove(t, s, img.ID)
			}
			collectNow(t, s)
			if left := holdings(t, s); left != "" {
				t.Errorf("holdings:\n%s", left)
			}
		})
	}
}

func TestAnImageWithoutANameIsKnownByItsID(t *testing.T) {
	s := open(t, testConfig(t))
	list, err := s.Import(context.Background(), bytes.NewReader(ociLayout(t, map[string]v1.Image{"latest": small(t, "x")})))
	if err != nil || len(list) != 1 || len(list[0].RepoTags) != 0 {
		t.Fatalf("%v %v", list, err)
	}
	if _, ok := s.Get(list[0].ID); !ok {
		t.Error("not found by its ID")
	}
}

func TestATagTakenByAnImportLeavesTheOldImageByItsID(t *testing.T) {
	s := open(t, testConfig(t))
	imp := func(what string) Image {
		list, err := s.Import(context.Background(), bytes.NewReader(saved(t, map[string]v1.Image{"example.com/app:1": small(t, what)})))
		if err != nil || len(list) != 1 {
			t.Fatalf("%v %v", list, err)
		}
		return list[0]
	}
	old := imp("old")
	if err := s.Retain(old.ChainID, "c"); err != nil {
		t.Fatal(err)
	}
	now := imp("new")
	if got, ok := s.Get("example.com/app:1"); !ok || got.ID != now.ID {
		t.Errorf("tag: %v %s", ok, got.ID)
	}
	if got, ok := s.Get(old.ID); !ok || len(got.RepoTags) != 0 {
		t.Errorf("old image: %v %v", ok, got.RepoTags)
	}
}

func TestBadArchivesAreRefusedAndLeaveNothing(t *testing.T) {
	good := small(t, "good")
	evil := build(t, layer(t, file{name: "../x", body: "x"}))
	cut := saved(t, map[string]v1.Image{"example.com/a:1": good})
	cases := []struct {
		name string
		b    []byte
		want string
	}{
		{"nothing", nil, "unrecognized image format"},
		{"text", []byte(strings.Repeat("hello ", 200)), "archive/tar: invalid tar header"},
		{"some tar", layerTar(t, file{name: "a", body: "x"}), "unrecognized image format"},
		{"cut", cut[:len(cut)/2], `layer ends in the middle`},
		{"bomb", gzipped(t, saved(t, map[string]v1.Image{"example.com/a:1": build(t, rawLayer(t, layerTar(t, file{name: "a", body: string(randomish(5 << 20))})))})), "archive holds more than the 4194304 bytes one image may have"},
		{"one good, one bad", saved(t, map[string]v1.Image{"example.com/a:1": good, "example.com/b:1": evil}), `example.com/b:1: unpack layer 1/1 sha256:#: entry "../x" leaves the image root`},
		{"wrong platform", saved(t, map[string]v1.Image{"example.com/b:1": mutateArch(t, good)}), `example.com/b:1: config sha256:#: image is for linux/arm64, this node runs linux/amd64`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			config := testConfig(t)
			config.MaxUnpackedBytes = 4 << 20
			s := open(t, config)
			_, err := s.Import(context.Background(), bytes.NewReader(c.b))
			if err == nil {
				t.Fatal("imported")
			}
			got := hash.ReplaceAllString(err.Error(), "#")
			if !strings.HasPrefix(got, "import image archive: ") || !strings.Contains(got, c.want) {
				t.Errorf("error\n got: %s\nwant: import image archive: ...%s", got, c.want)
			}
			if left := holdings(t, s); left != "" {
				t.Errorf("holdings:\n%s", left)
			}
		})
	}
}

// randomish is data that does not compress.
func randomish(n int) []byte {
	b := make([]byte, n)
	x := uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func mutateArch(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Architecture = "arm64"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

func archiveOf(t testing.TB, ref string, img v1.Image) io.Reader {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := tarball.Write(tag, img, &b); err != nil {
		t.Fatal(err)
	}
	return &b
}
