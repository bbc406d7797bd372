package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/google/go-containerregistry/pkg/name"
	ocireg "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// testRegistry is a registry on loopback that counts and, where a test says
// so, spoils its answers.
type testRegistry struct {
	host string

	mu    sync.Mutex
	gets  map[string]int // blob GETs by digest
	spoil func(w http.ResponseWriter, r *http.Request) bool
}

func newTestRegistry(t testing.TB) *testRegistry {
	t.Helper()
	reg := &testRegistry{gets: map[string]int{}}
	inner := ocireg.New(ocireg.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reg.mu.Lock()
		if _, dgst, ok := strings.Cut(r.URL.Path, "/blobs/"); ok && r.Method == http.MethodGet {
			reg.gets[dgst]++
		}
		spoil := reg.spoil
		reg.mu.Unlock()
		if spoil != nil && spoil(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	reg.host = strings.TrimPrefix(srv.URL, "http://")
	return reg
}

// spoils makes the registry answer some requests by spoil, which returns
// whether it did.
func (r *testRegistry) spoils(spoil func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spoil = spoil
}

// push stores an image or an index and returns its reference.
func (r *testRegistry) push(t testing.TB, repo string, what remote.Taggable) string {
	t.Helper()
	ref, err := name.ParseReference(r.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(ref, what); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

// file is one entry of a layer.
type file struct {
	name, body, link string
	kind             byte // default: a regular file
	size             int64
}

func layerTar(t testing.TB, files ...file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Typeflag: f.kind, Linkname: f.link, Mode: 0o755, Size: int64(len(f.body)), ModTime: time.Unix(1, 0)}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func layer(t testing.TB, files ...file) v1.Layer { return rawLayer(t, layerTar(t, files...)) }

func rawLayer(t testing.TB, b []byte, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// build makes an image for linux/amd64.
func build(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	return buildFor(t, "amd64", layers...)
}

func buildFor(t testing.TB, arch string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: arch, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Env: []string{"A=b"}, User: "7:8", Cmd: []string{"/bin/run"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	return img
}

func small(t testing.TB, what string) v1.Image {
	return build(t, layer(t, file{name: "etc/", kind: tar.TypeDir}, file{name: "etc/what", body: what}), layer(t, file{name: "bin/run", body: "#!" + what}))
}

func testConfig(t testing.TB) Config {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: unpacking sets owners and overlay attributes")
	}
	return Config{Root: filepath.Join(t.TempDir(), "i"), Platform: "linux/amd64", CertsDirs: []string{filepath.Join(t.TempDir(), "certs")}}
}

func open(t testing.TB, config Config) *Store {
	t.Helper()
	s, err := Open(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func mustPull(t testing.TB, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Pull(context.Background(), ref, Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// holdings lists all that a store keeps: records, leases, blobs and snapshots
// in the database, and the files of the back ends.
func holdings(t testing.TB, s *Store) string {
	t.Helper()
	ctx := s.context(context.Background())
	var b strings.Builder
	records, err := s.records.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		fmt.Fprintln(&b, "record", r.Name)
	}
	held, err := s.leases.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range held {
		fmt.Fprintln(&b, "lease", l.ID)
	}
	if err := s.content.Walk(ctx, func(i content.Info) error { fmt.Fprintln(&b, "blob", i.Digest); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.snapshotter().Walk(ctx, func(_ context.Context, i snapshots.Info) error { fmt.Fprintln(&b, "snapshot", i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"content/blobs/*/*", "content/ingest/*", "snapshots/*"} {
		names, err := filepath.Glob(filepath.Join(s.config.Root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			fmt.Fprintln(&b, "file", strings.TrimPrefix(n, s.config.Root))
		}
	}
	return b.String()
}

// headers makes a layer of entries without content.
func headers(t testing.TB, list ...*tar.Header) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return rawLayer(t, b.Bytes())
}

func unixTime(sec int64) time.Time { return time.Unix(sec, 0) }
