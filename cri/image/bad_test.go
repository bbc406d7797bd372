package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// rawManifest makes an image's manifest say something else.
type rawManifest struct {
	v1.Image
	raw []byte
}

func (r rawManifest) RawManifest() ([]byte, error) { return r.raw, nil }
func (r rawManifest) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(r.raw))
	return h, err
}
func (r rawManifest) Size() (int64, error) { return int64(len(r.raw)), nil }

// withManifest edits the manifest of an image as JSON.
func withManifest(t *testing.T, img v1.Image, edit func(m map[string]any)) v1.Image {
	t.Helper()
	b, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	edit(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return rawManifest{img, b}
}

// withConfig replaces the configuration blob of an image.
type withConfig struct {
	v1.Image
	raw []byte
}

func (c withConfig) RawConfigFile() ([]byte, error) { return c.raw, nil }
func (c withConfig) ConfigName() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(c.raw))
	return h, err
}

func configured(t *testing.T, img v1.Image, raw []byte) v1.Image {
	t.Helper()
	h, n, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	edited := withManifest(t, img, func(m map[string]any) {
		m["config"].(map[string]any)["digest"] = h.String()
		m["config"].(map[string]any)["size"] = n
	}).(rawManifest)
	edited.Image = withConfig{img, raw}
	return edited
}

// layerFields gives the descriptor of layer i to edit.
func layerFields(m map[string]any, i int) map[string]any {
	return m["layers"].([]any)[i].(map[string]any)
}

// hash replaces digests, ports and temporary paths, which differ from run to run.
var hash = regexp.MustCompile(`[0-9a-f]{64}`)

func TestBadImagesAreRefusedWithAnExactErrorAndLeaveNothing(t *testing.T) {
	good := layer(t, file{name: "etc/hosts", body: "x"})
	cases := []struct {
		name  string
		make  func(t *testing.T) v1.Image
		spoil func(http.ResponseWriter, *http.Request) bool
		want  string // with # for each digest and HOST for the registry
	}{
		{
			name: "traversal",
			make: func(t *testing.T) v1.Image {
				return build(t, layer(t, file{name: "../../etc/passwd", body: "x"}), good)
			},
			want: `unpack layer 1/2 sha256:#: entry "../../etc/passwd" leaves the image root`,
		},
		{
			name: "symlink escape",
			make: func(t *testing.T) v1.Image {
				return build(t, good, layer(t, file{name: "evil", kind: tar.TypeSymlink, link: "../../etc"}, file{name: "evil/passwd", body: "x"}))
			},
			want: `unpack layer 2/2 sha256:#: entry "evil/passwd" goes through symlink "evil" to "../../etc", which leaves the image root`,
		},
		{
			name: "absolute symlink escape",
			make: func(t *testing.T) v1.Image {
				return build(t, layer(t, file{name: "a/b", kind: tar.TypeSymlink, link: "/etc"}, file{name: "a/b/c/passwd", body: "x"}))
			},
			want: `unpack layer 1/1 sha256:#: entry "a/b/c/passwd" goes through symlink "a/b" to "/etc", which leaves the image root`,
		},
		{
			name: "hard link out of the root",
			make: func(t *testing.T) v1.Image {
				return build(t, layer(t, file{name: "shadow", kind: tar.TypeLink, link: "../../etc/shadow"}))
			},
			want: `unpack layer 1/1 sha256:#: hard link "shadow" to "../../etc/shadow" leaves the image root`,
		},
		{
			name: "layer bomb",
			make: func(t *testing.T) v1.Image {
				return build(t, rawLayer(t, layerTar(t, file{name: "a", body: string(make([]byte, 3<<20))})))
			},
			want: `unpack layer 1/1 sha256:#: layer unpacks to more than the 1048576 bytes one layer may have`,
		},
		{
			name: "bomb behind the end of the archive",
			make: func(t *testing.T) v1.Image {
				return build(t, rawLayer(t, append(layerTar(t, file{name: "a"}), make([]byte, 3<<20)...)))
			},
			want: `unpack layer 1/1 sha256:#: layer unpacks to more than the 1048576 bytes one layer may have`,
		},
		{
			name: "image bomb",
			make: func(t *testing.T) v1.Image {
				body := string(make([]byte, 900<<10))
				return build(t, layer(t, file{name: "a", body: body}), layer(t, file{name: "b", body: body}), layer(t, file{name: "c", body: body}))
			},
			want: `unpack layer 3/3 sha256:#: image unpacks to more than the 2097152 bytes one image may have`,
		},
		{
			name: "too many entries",
			make: func(t *testing.T) v1.Image {
				var files []file
				for i := range 51 {
					files = append(files, file{name: fmt.Sprint(i)})
				}
				return build(t, layer(t, files...))
			},
			want: `unpack layer 1/1 sha256:#: layer has more than the 50 entries one layer may have`,
		},
		{
			name: "packed layer too large",
			make: func(t *testing.T) v1.Image {
				return withManifest(t, build(t, good), func(m map[string]any) { layerFields(m, 0)["size"] = 5 << 30 })
			},
			want: `layer 1/1 sha256:#: 5368709120 bytes is more than the 1048576 one layer may have`,
		},
		{
			name: "not a tar",
			make: func(t *testing.T) v1.Image { return build(t, rawLayer(t, bytes.Repeat([]byte("text"), 300))) },
			want: `unpack layer 1/1 sha256:#: archive/tar: invalid tar header`,
		},
		{
			name: "tar that ends in the middle",
			make: func(t *testing.T) v1.Image {
				return build(t, rawLayer(t, layerTar(t, file{name: "a", body: strings.Repeat("x", 5000)})[:2000]))
			},
			want: `unpack layer 1/1 sha256:#: layer ends in the middle: unexpected EOF`,
		},
		{
			name:  "truncated layer",
			make:  func(t *testing.T) v1.Image { return build(t, good) },
			spoil: spoilBlob("application/octet-stream", func(b []byte) []byte { return b[:len(b)/2] }),
			want:  `layer 1/1 sha256:#: HOST has 50 of its 100 bytes`,
		},
		{
			name:  "layer that is too long",
			make:  func(t *testing.T) v1.Image { return build(t, good) },
			spoil: spoilBlob("application/octet-stream", func(b []byte) []byte { return append(b, b...) }),
			want:  `layer 1/1 sha256:#: HOST has more than its 100 bytes`,
		},
		{
			name:  "wrong layer",
			make:  func(t *testing.T) v1.Image { return build(t, good) },
			spoil: spoilBlob("application/octet-stream", func(b []byte) []byte { b[20] ^= 1; return b }),
			want:  `layer 1/1 sha256:#: content has digest sha256:#`,
		},
		{
			name:  "wrong config",
			make:  func(t *testing.T) v1.Image { return build(t, good) },
			spoil: spoilBlob("application/json", func(b []byte) []byte { b[0] ^= 1; return b }),
			want:  `config sha256:#: content has digest sha256:#`,
		},
		{
			name:  "missing layer",
			make:  func(t *testing.T) v1.Image { return build(t, good) },
			spoil: missing("application/octet-stream"),
			want:  `layer 1/1 sha256:#: not found at HOST: not found`,
		},
		{
			name:  "missing config",
			make:  func(t *testing.T) v1.Image { return build(t, good) },
			spoil: missing("application/json"),
			want:  `config sha256:#: not found at HOST: not found`,
		},
		{
			name: "manifest without config",
			make: func(t *testing.T) v1.Image {
				return withManifest(t, build(t, good), func(m map[string]any) { delete(m, "config") })
			},
			want: `manifest sha256:#: manifest has no configuration`,
		},
		{
			name: "manifest without layers",
			make: func(t *testing.T) v1.Image { return empty.Image },
			want: `manifest sha256:#: manifest has no layers`,
		},
		{
			name: "unknown layer type",
			make: func(t *testing.T) v1.Image {
				return build(t, good, static.NewLayer([]byte("x"), "application/x-squashfs"))
			},
			want: `manifest sha256:#: layer 2/2 sha256:#: media type "application/x-squashfs" is not supported`,
		},
		{
			name: "artifact with a title that leaves it",
			make: func(t *testing.T) v1.Image {
				return withManifest(t, mutate.ConfigMediaType(build(t, static.NewLayer([]byte("x"), "text/plain")), "application/vnd.test"), func(m map[string]any) {
					layerFields(m, 0)["annotations"] = map[string]any{"org.opencontainers.image.title": "../x"}
				})
			},
			want: `artifact sha256:#: layer 1/1 sha256:#: title "../x" is not the name of a file in the artifact`,
		},
		{
			name: "unknown manifest type",
			make: func(t *testing.T) v1.Image {
				return mutate.MediaType(build(t, good), "application/vnd.unheard.of+json")
			},
			want: `manifest sha256:#: media type "application/vnd.unheard.of+json" is not supported`,
		},
		{
			name: "wrong platform",
			make: func(t *testing.T) v1.Image { return buildFor(t, "arm64", good) },
			want: `config sha256:#: image is for linux/arm64, this node runs linux/amd64`,
		},
		{
			name: "diff ID mismatch",
			make: func(t *testing.T) v1.Image {
				img := build(t, good)
				c, err := img.ConfigFile()
				if err != nil {
					t.Fatal(err)
				}
				c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
				b, err := json.Marshal(c)
				if err != nil {
					t.Fatal(err)
				}
				return configured(t, img, b)
			},
			want: `unpack layer 1/1 sha256:#: unpacks to sha256:#, the configuration says sha256:#`,
		},
		{
			name: "layer count mismatch",
			make: func(t *testing.T) v1.Image {
				return withManifest(t, build(t, good, good), func(m map[string]any) { m["layers"] = m["layers"].([]any)[:1] })
			},
			want: `config sha256:#: configuration lists 2 layers, the manifest 1`,
		},
		{
			name: "config is not JSON",
			make: func(t *testing.T) v1.Image { return configured(t, build(t, good), []byte("hello")) },
			want: `config sha256:#: not an image configuration: invalid character 'h' looking for beginning of value`,
		},
		{
			name: "config too big",
			make: func(t *testing.T) v1.Image {
				return configured(t, build(t, good), bytes.Repeat([]byte(" "), maxDocument+1))
			},
			want: `manifest sha256:#: config sha256:#: 4194305 bytes is more than the 4194304 a configuration may have`,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			reg := newTestRegistry(t)
			config := testConfig(t)
			config.MaxLayerBytes, config.MaxUnpackedBytes, config.MaxLayerEntries = 1<<20, 2<<20, 50
			s := open(t, config)
			kept := mustPull(t, s, reg.push(t, "kept:1", small(t, "kept")))
			before := holdings(t, s)
			ref := reg.push(t, "bad:1", c.make(t))
			reg.spoils(c.spoil)
			_, err := s.Pull(context.Background(), ref, Auth{}, nil)
			if err == nil {
				t.Fatal("the pull went well")
			}
			got := strings.ReplaceAll(hash.ReplaceAllString(err.Error(), "#"), reg.host, "HOST")
			got = regexp.MustCompile(`HOST has (\d+) of its (\d+) bytes`).ReplaceAllStringFunc(got, func(string) string { return "HOST has 50 of its 100 bytes" })
			// Layers are unpacked at the same time; which one is too much is open.
			got = regexp.MustCompile(`layer \d/3 `).ReplaceAllString(got, "layer 3/3 ")
			got = regexp.MustCompile(`more than its (\d+) bytes`).ReplaceAllString(got, "more than its 100 bytes")
			if want := "pull HOST/bad:1: " + c.want; got != want {
				t.Errorf("error\n got: %s\nwant: %s", got, want)
			}
			if after := holdings(t, s); after != before {
				t.Errorf("holdings before:\n%safter:\n%s", before, after)
			}
			if list := s.List(); len(list) != 1 || list[0].ID != kept.ID {
				t.Errorf("images: %v", list)
			}
		})
	}
}

// spoilBlob changes the blobs of one kind: configurations are JSON, layers not.
func spoilBlob(kind string, change func([]byte) []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			return false
		}
		b, ok := fetchPlain(r)
		if !ok || (kind == "application/json") != (b[0] == '{') {
			return false
		}
		b = change(b)
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b)
		return true
	}
}

func missing(kind string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		b, ok := fetchPlain(r)
		if !ok || (kind == "application/json") != (b[0] == '{') {
			return false
		}
		http.NotFound(w, r)
		return true
	}
}

// fetchPlain gets the blob that a spoiled request asks for: the header keeps
// the second request from being spoiled again.
func fetchPlain(r *http.Request) ([]byte, bool) {
	if r.Header.Get("X-Plain") != "" {
		return nil, false
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+r.Host+r.URL.Path, nil)
	if err != nil {
		return nil, false
	}
	req.Header.Set("X-Plain", "1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, false
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		return nil, false
	}
	return b.Bytes(), true
}

func TestAnIndexWithoutThisPlatformNamesWhatItHas(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	idx := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: small(t, "a"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: small(t, "b"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "windows", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: small(t, "c"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
	)
	before := holdings(t, s)
	_, err := s.Pull(context.Background(), reg.push(t, "many:1", idx), Auth{}, nil)
	want := fmt.Sprintf("pull %s/many:1: no manifest for linux/amd64, the image has linux/arm64, windows/amd64: not found", reg.host)
	if err == nil || err.Error() != want || !errdefs.IsNotFound(err) {
		t.Errorf("error\n got: %v\nwant: %s", err, want)
	}
	if after := holdings(t, s); after != before {
		t.Errorf("holdings:\n%s", after)
	}
}

func TestAnUnknownReferenceIsNotFoundAtTheRegistry(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	_, err := s.Pull(context.Background(), reg.host+"/no/such:1", Auth{}, nil)
	want := fmt.Sprintf("pull %[1]s/no/such:1: not found at %[1]s: not found", reg.host)
	if err == nil || err.Error() != want || !errdefs.IsNotFound(err) {
		t.Errorf("error\n got: %v\nwant: %s", err, want)
	}
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
}

func TestAManifestThatIsNotWhatItsDigestSaysIsRefused(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "app:1", small(t, "a"))
	reg.spoils(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/sha256:") || r.Method != http.MethodGet {
			return false
		}
		resp, err := http.Get("http://" + r.Host + "/v2/app/manifests/1")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var b bytes.Buffer
		_, _ = b.ReadFrom(resp.Body)
		_, _ = w.Write(bytes.Replace(b.Bytes(), []byte("schemaVersion"), []byte("schemaversion"), 1))
		return true
	})
	_, err := s.Pull(context.Background(), ref, Auth{}, nil)
	want := "pull HOST/app:1: manifest sha256:#: content has digest sha256:#"
	if err == nil || strings.ReplaceAll(hash.ReplaceAllString(err.Error(), "#"), reg.host, "HOST") != want {
		t.Errorf("error\n got: %v\nwant: %s", err, want)
	}
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
}

func TestARegistryThatStallsIsGivenUpOnAndThePullContinuesLater(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	config.ProgressTimeout = 200 * time.Millisecond
	s := open(t, config)
	body := strings.Repeat("0123456789abcdef", 40<<10)
	ref := reg.push(t, "big:1", build(t, static.NewLayer(layerTar(t, file{name: "a", body: body}), types.OCIUncompressedLayer)))
	var from []string
	reg.spoils(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			return false
		}
		b, ok := fetchPlain(r)
		if !ok || b[0] == '{' {
			return false
		}
		from = append(from, r.Header.Get("Range"))
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b[:100<<10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	})
	_, err := s.Pull(context.Background(), ref, Auth{}, nil)
	want := "pull HOST/big:1: layer 1/1 sha256:#: HOST sent nothing for 200ms, giving up: unavailable"
	if err == nil || strings.ReplaceAll(hash.ReplaceAllString(err.Error(), "#"), reg.host, "HOST") != want {
		t.Fatalf("error\n got: %v\nwant: %s", err, want)
	}
	if left := holdings(t, s); !strings.Contains(left, "file /content/ingest/") || strings.Contains(left, "record") || strings.Contains(left, "snapshot") {
		t.Errorf("holdings after the interruption:\n%s", left)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, config)
	reg.spoils(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
			return false
		}
		b, ok := fetchPlain(r)
		if ok && b[0] != '{' {
			from = append(from, r.Header.Get("Range"))
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		}
		return ok && b[0] != '{'
	})
	img := mustPull(t, s, ref)
	if want := []string{"", "bytes=102400-"}; !slices.Equal(from, want) {
		t.Errorf("ranges asked for: %q, want %q", from, want)
	}
	if left := holdings(t, s); strings.Contains(left, "ingest") || strings.Contains(left, "lease") {
		t.Errorf("holdings after the pull of %s:\n%s", img.ID, left)
	}
}

func TestARegistryThatCannotContinueABlobIsAskedForTheWhole(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	img := build(t, static.NewLayer(layerTar(t, file{name: "a", body: strings.Repeat("x", 300<<10)}), types.OCIUncompressedLayer))
	ref := reg.push(t, "big:1", img)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := s.Pull(ctx, ref, Auth{}, func(p Progress) {
		if p.Status == "downloading" && p.Offset > 0 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted pull: %v", err)
	}
	// This registry answers 416 to bytes=N-.
	mustPull(t, s, ref)
}

func TestAfterARebootAnInterruptedPullStartsAnew(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	s := open(t, config)
	ref := reg.push(t, "app:1", small(t, "app"))
	ctx, cancel := context.WithCancel(context.Background())
	_, err := s.Pull(ctx, ref, Auth{}, func(p Progress) {
		if p.Status == "unpacking" {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted pull: %v", err)
	}
	if left := holdings(t, s); !strings.Contains(left, "blob") {
		t.Fatalf("nothing was kept:\n%s", left)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(config.Root, "boot"), []byte("another boot"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, config)
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
	mustPull(t, s, ref)
}
