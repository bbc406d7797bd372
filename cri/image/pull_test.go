package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

func TestTwentyPullsOfOneReferenceFetchEachBlobOnce(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "app:1", small(t, "app"))
	var wg sync.WaitGroup
	ids := make([]string, 20)
	for i := range ids {
		wg.Go(func() {
			img, err := s.Pull(context.Background(), ref, Auth{}, func(Progress) {})
			if err != nil {
				t.Error(err)
			}
			ids[i] = img.ID
		})
	}
	wg.Wait()
	if len(slices.Compact(ids)) != 1 {
		t.Errorf("IDs: %v", ids)
	}
	reg.fetchedOnce(t, 3)
}

func TestPullsOfDifferentImagesShareTheirLayers(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	base := layer(t, file{name: "base", body: strings.Repeat("b", 100<<10)})
	refs := make([]string, 8)
	for i := range refs {
		refs[i] = reg.push(t, fmt.Sprintf("app%d:1", i), build(t, base, layer(t, file{name: "own", body: fmt.Sprint(i)})))
	}
	var wg sync.WaitGroup
	for _, ref := range refs {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), ref, Auth{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	reg.fetchedOnce(t, 1+2*len(refs))
	bottom := map[string]bool{}
	for _, img := range s.List() {
		bottom[img.Layers[1]] = true
	}
	if len(s.List()) != len(refs) || len(bottom) != 1 {
		t.Errorf("%d images on %d unpacked bases", len(s.List()), len(bottom))
	}
}

func (r *testRegistry) fetchedOnce(t *testing.T, blobs int) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for dgst, n := range r.gets {
		if n != 1 {
			t.Errorf("%s was fetched %d times", dgst, n)
		}
	}
	if len(r.gets) != blobs {
		t.Errorf("%d blobs were fetched, want %d", len(r.gets), blobs)
	}
}

func TestEveryKindOfLayerAndManifestIsUnderstood(t *testing.T) {
	plain := layerTar(t, file{name: "a/", kind: tar.TypeDir}, file{name: "a/f", body: "hello"})
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	zst := diffOf{static.NewLayer(packed.Bytes(), types.OCILayerZStd), plain}
	oci := func(l v1.Layer) v1.Image {
		return mutate.ConfigMediaType(mutate.MediaType(build(t, l), types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	cases := map[string]v1.Image{
		"docker gzip":     build(t, rawLayer(t, plain)),
		"docker plain":    build(t, static.NewLayer(plain, types.DockerUncompressedLayer)),
		"oci gzip":        oci(rawLayer(t, plain)),
		"oci plain":       oci(static.NewLayer(plain, types.OCIUncompressedLayer)),
		"oci zstd":        oci(zst),
		"zstd said gzip":  oci(diffOf{static.NewLayer(packed.Bytes(), types.OCILayer), plain}),
		"gzip said plain": oci(asType{rawLayer(t, plain), types.OCIUncompressedLayer}),
		"foreign, at home": withManifest(t, build(t, rawLayer(t, plain)), func(m map[string]any) {
			layerFields(m, 0)["mediaType"] = string(types.DockerForeignLayer)
		}),
	}
	for name, img := range cases {
		t.Run(name, func(t *testing.T) {
			reg := newTestRegistry(t)
			s := open(t, testConfig(t))
			got := mustPull(t, s, reg.push(t, "app:1", img))
			if b, err := os.ReadFile(filepath.Join(got.Layers[0], "a/f")); err != nil || string(b) != "hello" {
				t.Errorf("file: %q, %v", b, err)
			}
		})
	}
}

// diffOf gives a layer the diff ID of its plain content.
type diffOf struct {
	v1.Layer
	plain []byte
}

func (d diffOf) DiffID() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(d.plain))
	return h, err
}
func (d diffOf) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.plain)), nil
}

type asType struct {
	v1.Layer
	mediaType types.MediaType
}

func (a asType) MediaType() (types.MediaType, error) { return a.mediaType, nil }

func TestAnIndexGivesThisPlatformsImage(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	want := small(t, "amd64")
	add := func(img v1.Image, arch string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}}
	}
	inner := mutate.AppendManifests(empty.Index, add(small(t, "386"), "386"), add(buildFor(t, "arm64", layer(t, file{name: "x"})), "arm64"), add(want, "amd64"))
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: inner})
	img := mustPull(t, s, reg.push(t, "app:1", outer))
	if id, err := want.ConfigName(); err != nil || id.String() != img.ID {
		t.Errorf("pulled %s, want %s (%v)", img.ID, id, err)
	}
	dgst, err := outer.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if want := reg.host + "/app@" + dgst.String(); len(img.RepoDigests) != 1 || img.RepoDigests[0] != want {
		t.Errorf("digests %v, want %s", img.RepoDigests, want)
	}
}

func hostsFile(t *testing.T, config Config, namespace, text string) {
	t.Helper()
	dir := filepath.Join(config.CertsDirs[0], namespace)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestHostsTomlGivesPlainHTTPMirrorsAndFallback(t *testing.T) {
	first, second := newTestRegistry(t), newTestRegistry(t)
	config := testConfig(t)
	hostsFile(t, config, "registry.test", fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", second.host, first.host))
	s := open(t, config)
	first.push(t, "lib/here:1", small(t, "here"))
	second.push(t, "lib/there:1", small(t, "there"))
	if img := mustPull(t, s, "registry.test/lib/here:1"); img.RepoTags[0] != "registry.test/lib/here:1" {
		t.Errorf("tags: %v", img.RepoTags)
	}
	mustPull(t, s, "registry.test/lib/there:1")
	if len(first.gets) != 6 { // three it has, three it has not
		t.Errorf("the mirror was asked for %d blobs, want 6", len(first.gets))
	}
	if len(second.gets) != 3 {
		t.Errorf("the server served %d blobs, want 3", len(second.gets))
	}
}

func TestABrokenHostsTomlIsNamed(t *testing.T) {
	config := testConfig(t)
	hostsFile(t, config, "registry.test", "server = \"http://x\"\n[host.\n")
	s := open(t, config)
	_, err := s.Pull(context.Background(), "registry.test/a:1", Auth{}, nil)
	want := "pull registry.test/a:1: registry configuration " + config.CertsDirs[0] + "/registry.test/hosts.toml line 2: toml: "
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error\n got: %v\nwant: %s...", err, want)
	}
}

func TestCredentialsAreAskedForAndUsed(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "secret:1", small(t, "s"))
	reg.spoils(func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == "me" && p == "pw" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	for name, auth := range map[string]Auth{
		"none":            {},
		"wrong":           {Username: "me", Password: "no"},
		"another's":       {Username: "me", Password: "pw", ServerAddress: "other.test"},
		"auth that is no": {Auth: "!"},
		"token":           {RegistryToken: "x"},
	} {
		_, err := s.Pull(context.Background(), ref, auth, nil)
		want := map[string]string{
			"auth that is no": "credentials: auth is not base64: invalid argument",
		}[name]
		if want == "" {
			want = fmt.Sprintf("%s denies access: check the image name and the pull credentials: unauthorized", reg.host)
			if !errdefs.IsUnauthorized(err) {
				t.Errorf("%s: not marked as unauthenticated: %v", name, err)
			}
		}
		if err == nil || err.Error() != "pull "+ref+": "+want {
			t.Errorf("%s\n got: %v\nwant: pull %s: %s", name, err, ref, want)
		}
	}
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
	for name, auth := range map[string]Auth{
		"user":   {Username: "me", Password: "pw", ServerAddress: "https://" + reg.host + "/v1/"},
		"packed": {Auth: "bWU6cHc="},
	} {
		if _, err := s.Pull(context.Background(), ref, auth, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestACancelledCallerDoesNotEndThePullOfAnother(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "app:1", small(t, "app"))
	reached, resume := make(chan struct{}), make(chan struct{})
	var once sync.Once
	reg.spoils(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			once.Do(func() { close(reached) })
			<-resume
		}
		return false
	})
	ctx, cancel := context.WithCancel(context.Background())
	gone := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, Auth{}, nil)
		gone <- err
	}()
	<-reached
	joined, stays := make(chan struct{}), make(chan error, 1)
	go func() {
		var once sync.Once
		_, err := s.Pull(context.Background(), ref, Auth{}, func(Progress) { once.Do(func() { close(joined) }) })
		stays <- err
	}()
	for s.flights.passengers(flightKey{ref: ref}) < 2 {
		time.Sleep(time.Millisecond) // the second caller hears nothing until the registry goes on
	}
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled caller: %v", err)
	}
	close(resume)
	if err := <-stays; err != nil {
		t.Errorf("other caller: %v", err)
	}
	<-joined
	reg.fetchedOnce(t, 3)
}

func (f *flights) passengers(key flightKey) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.running[key]
	if fl == nil {
		return 0
	}
	fl.mu.Lock()
	defer fl.mu.Unlock()
	return len(fl.watchers)
}

func TestProgressTellsEachLayersWay(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "app:1", small(t, "app"))
	steps := map[string][]string{}
	_, err := s.Pull(context.Background(), ref, Auth{}, func(p Progress) {
		if list := steps[p.Digest]; len(list) == 0 || list[len(list)-1] != p.Status {
			steps[p.Digest] = append(list, p.Status)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for dgst, list := range steps {
		want := "waiting downloading unpacking done"
		if dgst == "" {
			want = "waiting resolving done"
		}
		if got := strings.Join(list, " "); got != want {
			t.Errorf("%q: %s, want %s", dgst, got, want)
		}
	}
	if len(steps) != 3 {
		t.Errorf("steps: %v", steps)
	}
}
