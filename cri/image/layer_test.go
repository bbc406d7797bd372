package image

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"golang.org/x/sys/unix"
)

func TestEntriesOfOrdinaryLayersPass(t *testing.T) {
	cases := map[string][]file{
		"names of all styles":                   {{name: "./"}, {name: "./a"}, {name: "/b"}, {name: "c/../d"}, {name: "/"}, {name: "..data"}, {name: "e/..f"}},
		"absolute symlink nobody goes through":  {{name: "var/run", kind: tar.TypeSymlink, link: "/run"}, {name: "run/x"}},
		"climbing symlink nobody goes through":  {{name: "a", kind: tar.TypeSymlink, link: "../../../etc"}, {name: "b"}},
		"symlink to a neighbour":                {{name: "bin", kind: tar.TypeSymlink, link: "usr/bin"}, {name: "bin/sh"}},
		"symlink up to a neighbour":             {{name: "usr/lib64", kind: tar.TypeSymlink, link: "../lib"}, {name: "usr/lib64/ld.so"}},
		"symlink replaced by a directory":       {{name: "a", kind: tar.TypeSymlink, link: "/etc"}, {name: "a", kind: tar.TypeDir}, {name: "a/b"}},
		"hard link by absolute and other names": {{name: "a"}, {name: "b", kind: tar.TypeLink, link: "/a"}, {name: "c", kind: tar.TypeLink, link: "x/../a"}},
		"whiteouts":                             {{name: "a/.wh.b"}, {name: "a/.wh..wh..opq"}},
		"devices":                               {{name: "dev/null", kind: tar.TypeChar}, {name: "dev/p", kind: tar.TypeFifo}},
	}
	for name, files := range cases {
		t.Run(name, func(t *testing.T) {
			c := newEntryCheck(testMeter(100))
			for _, f := range files {
				if ok, err := c.check(header(f)); !ok || err != nil {
					t.Errorf("%q: %v %v", f.name, ok, err)
				}
			}
		})
	}
}

func testMeter(bytes int64) *meter {
	return &meter{limits: limits{layerBytes: bytes, imageBytes: bytes, layerEntries: 100}, image: newAllowance(bytes)}
}

func header(f file) *tar.Header {
	h := &tar.Header{Name: path.Clean(f.name), Linkname: f.link, Typeflag: f.kind, Size: f.size}
	if h.Typeflag == 0 {
		h.Typeflag = tar.TypeReg
	}
	return h
}

func TestHostileEntriesAreRefused(t *testing.T) {
	cases := []struct {
		name  string
		files []file
		want  string
	}{
		{"climbing", []file{{name: "../x"}}, `entry "../x" leaves the image root`},
		{"chain of symlinks", []file{{name: "b", kind: tar.TypeSymlink, link: ".."}, {name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "a/x"}},
			`entry "a/x" goes through symlink "a" to "b", which leaves the image root`},
		{"symlink through a symlink", []file{{name: "d/a", kind: tar.TypeSymlink, link: ".."}, {name: "d/b", kind: tar.TypeSymlink, link: "a/../../x"}, {name: "d/b/x"}},
			`entry "d/b/x" goes through symlink "d/b" to "a/../../x", which leaves the image root`},
		{"symlink made through a symlink", []file{{name: "e", kind: tar.TypeDir}, {name: "d", kind: tar.TypeSymlink, link: "e"}, {name: "d/b", kind: tar.TypeSymlink, link: "../.."}, {name: "e/b/x"}},
			`entry "e/b/x" goes through symlink "e/b" to "../..", which leaves the image root`},
		{"symlink to nowhere", []file{{name: "a", kind: tar.TypeSymlink}}, `symlink "a" has no target`},
		{"loop", []file{{name: "a", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: "a"}, {name: "a/x"}},
			`entry "a/x" goes through too many symlinks at "a"`},
		{"hard link above an absolute root", []file{{name: "a", kind: tar.TypeLink, link: "/../etc/shadow"}}, `hard link "a" to "/../etc/shadow" leaves the image root`},
		{"hard link through a symlink", []file{{name: "l", kind: tar.TypeSymlink, link: "/etc"}, {name: "a", kind: tar.TypeLink, link: "l/shadow"}},
			`hard link "a" to "l/shadow" goes through symlink "l" to "/etc", which leaves the image root`},
		{"unknown type", []file{{name: "a", kind: 'Z'}}, `entry "a" has type 'Z', which is not supported`},
		{"sparse bomb", []file{{name: "a", size: 60}, {name: "b", size: 60}}, `layer unpacks to more than the 100 bytes one layer may have`},
		{"sizes that overflow", []file{{name: "a", size: 60}, {name: "b", size: math.MaxInt64}}, `layer unpacks to more than the 100 bytes one layer may have`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			check := newEntryCheck(testMeter(100))
			var err error
			for _, f := range c.files {
				if err != nil {
					t.Fatalf("before %q: %v", f.name, err)
				}
				_, err = check.check(header(f))
			}
			if err == nil || err.Error() != c.want {
				t.Errorf("error\n got: %v\nwant: %s", err, c.want)
			}
		})
	}
}

func TestOverlayAttributesOfALayerAreDropped(t *testing.T) {
	h := header(file{name: "d", kind: tar.TypeDir})
	h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/x", "SCHILY.xattr.security.capability": "c"}
	if ok, err := newEntryCheck(testMeter(1)).check(h); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if len(h.PAXRecords) != 1 || h.PAXRecords["SCHILY.xattr.security.capability"] != "c" {
		t.Errorf("records: %v", h.PAXRecords)
	}
}

// FuzzEntries makes whatever passes the check with an extractor that trusts
// the names, and looks for what got out of the root. A line of the input is an
// entry: its type, its name, a space, its target. Tar files themselves would
// be refused for their checksums after nearly every mutation.
func FuzzEntries(f *testing.F) {
	f.Add("2a ../../x\n0a/f")
	f.Add("0../f\n1l /../f")
	f.Add("5d\n2d/a ..\n2d/b a/../../x\n0d/b/f\n1h d/b/f")
	f.Fuzz(func(t *testing.T, input string) {
		outer := t.TempDir()
		root := filepath.Join(outer, "a", "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		check := newEntryCheck(testMeter(1 << 20))
		for line := range strings.SplitSeq(input, "\n") {
			name, link, _ := strings.Cut(line, " ")
			if len(name) < 2 || len(line) > 200 {
				return
			}
			h := &tar.Header{Typeflag: name[0], Name: filepath.Clean(name[1:]), Linkname: link}
			if ok, err := check.check(h); !ok || err != nil {
				return
			}
			extract(root, h)
			for _, dir := range []string{outer, filepath.Join(outer, "a")} {
				if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
					t.Fatalf("%q got out: %v %v", h.Name, entries, err)
				}
			}
		}
	})
}

func extract(root string, h *tar.Header) {
	name := filepath.Join(root, h.Name)
	if name == root {
		return
	}
	_ = os.MkdirAll(filepath.Dir(name), 0o755)
	if h.Typeflag != tar.TypeDir {
		_ = os.Remove(name)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if fi, err := os.Lstat(name); err == nil && !fi.IsDir() {
			_ = os.Remove(name)
		}
		_ = os.Mkdir(name, 0o755)
	case tar.TypeReg:
		_ = os.WriteFile(name, nil, 0o644)
	case tar.TypeLink:
		_ = os.Link(filepath.Join(root, h.Linkname), name)
	case tar.TypeSymlink:
		_ = os.Symlink(h.Linkname, name)
	}
}

// FuzzDecompress reads what no layer should be.
func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x24, 0x01, 0, 0, 0})
	f.Add([]byte("plain"))
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := decompress(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer plain.Close()
		n, _ := io.Copy(io.Discard, &boundedReader{r: plain, limit: 1 << 20, over: io.ErrShortBuffer})
		if n > 1<<20 {
			t.Errorf("%d bytes came through", n)
		}
	})
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "a/b:c", "docker.io/x@sha256:" + strings.Repeat("0", 64), "localhost:5000/a:b@c", "[::1]:5000/a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		named, err := parseReference(s)
		if err != nil {
			return
		}
		again, err := parseReference(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q became %q, and that %v (%v)", s, named, again, err)
		}
		if kindOf(named.String()) == recordID {
			t.Errorf("reference %q looks like an ID", named)
		}
	})
}

func FuzzManifest(f *testing.F) {
	m, err := small(f, "x").RawManifest()
	if err != nil {
		f.Fatal(err)
	}
	c, err := small(f, "x").RawConfigFile()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m, c)
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"text/plain","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"annotations":{"org.opencontainers.image.title":"a/b"}}]}`), []byte(`{}`))
	f.Add([]byte(`{"manifests":[{"platform":{"os":"linux","architecture":"amd64"},"digest":"sha256:x"}]}`), []byte(`{}`))
	want := platforms.Only(platforms.MustParse("linux/amd64"))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		if desc, err := chooseManifest(manifest, want, "linux/amd64"); err == nil && checkDescriptor(desc) != nil {
			t.Errorf("chose %v", desc)
		}
		m, err := parseManifest(manifest)
		if err != nil {
			return
		}
		if len(m.Layers) == 0 || len(m.Layers) > maxLayers || checkDescriptor(m.Config) != nil {
			t.Errorf("accepted %+v", m)
		}
		if isArtifact(m) {
			unpacks, chain, err := artifactLayers(m)
			if err != nil {
				return
			}
			if len(unpacks) != len(m.Layers) || len(chain) != len(m.Layers) {
				t.Errorf("%d of %d layers in a chain of %d", len(unpacks), len(m.Layers), len(chain))
			}
			for _, u := range unpacks {
				if u.file != "" && !filepath.IsLocal(u.file) {
					t.Errorf("file %q", u.file)
				}
			}
		}
		if _, chain, err := parseConfig(config, len(m.Layers), want, "linux/amd64"); err == nil && len(chain) != len(m.Layers) {
			t.Errorf("chain of %d for %d layers", len(chain), len(m.Layers))
		}
	})
}

func TestLayersAreUnpackedTheWayOverlayfsReadsThem(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	img := mustPull(t, s, reg.push(t, "app:1", build(t,
		layer(t, file{name: "/ko-app/app", body: "absolute"}, file{name: "gone", body: "x"}, file{name: "d/", kind: tar.TypeDir}, file{name: "d/old", body: "x"}),
		layer(t, file{name: ".wh.gone"}, file{name: "d/.wh..wh..opq"}, file{name: "d/new", body: "x"}, file{name: "hard", kind: tar.TypeLink, link: "/d/new"}),
	)))
	merged := t.TempDir()
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(img.Layers, ":")); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	}()
	var names []string
	err := filepath.WalkDir(merged, func(name string, _ fs.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(name, merged))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Join(names, " "), " /d /d/new /hard /ko-app /ko-app/app"; got != want {
		t.Errorf("files:%s\nwant: %s", got, want)
	}
}
