package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Media types of a well-formed image.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	indexType    = "application/vnd.oci.image.index.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// Bad is an image that lies. It starts as a good one of a single layer, and a
// case changes what it wants to be wrong.
type Bad struct {
	ManifestType string
	Manifest     []byte            // served for any tag or digest
	Blobs        map[string][]byte // by digest; may not match it
	Stall        string            // digest of a blob that stops half-way
	Truncate     string            // digest of a blob of which only half is sent, as if that were all
}

type descriptor struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      int64             `json:"size"`
	Platform  map[string]string `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

// parts are what a case may change before the manifest is put together.
type parts struct {
	layer      []byte // compressed
	diffID     string
	layerType  string
	configType string
	arch       string
	manifest   func(*manifest)
}

// BadImages returns the bad images by name. Each is described by its name.
func BadImages() map[string]*Bad {
	all := map[string]*Bad{
		"path-traversal":    bad(func(p *parts) { p.tar(file("ok"), file("../../../../../../tmp/berth-escaped")) }),
		"hardlink-escape":   bad(func(p *parts) { p.tar(hardlink("shadow", "../../../../../../../../etc/passwd")) }),
		"symlink-escape":    bad(func(p *parts) { p.tar(symlink("out", "../../../../../../../../../../tmp"), file("out/berth-escaped")) }),
		"zip-bomb":          bad(func(p *parts) { p.tar(huge("bomb", 1<<44)) }),
		"not-a-tar":         bad(func(p *parts) { p.raw([]byte(strings.Repeat("this is no tar archive. ", 100))) }),
		"not-compressed":    bad(func(p *parts) { p.layer = []byte("this is no gzip stream") }),
		"diff-id-mismatch":  bad(func(p *parts) { p.diffID = digest([]byte("something else")) }),
		"unknown-layer":     bad(func(p *parts) { p.layerType = "application/vnd.example.layer" }),
		"wrong-config-arch": bad(func(p *parts) { p.arch = "s390x" }),
		"too-many-layers":   bad(func(p *parts) { p.manifest = func(m *manifest) { m.Layers = append(m.Layers, m.Layers[0]) } }),
	}
	all["manifest-not-json"] = &Bad{ManifestType: manifestType, Manifest: []byte("<html>welcome to the hotel network</html>")}
	all["manifest-too-large"] = &Bad{ManifestType: manifestType, Manifest: bytes.Repeat([]byte(" "), 16<<20)}
	all["unknown-manifest"] = &Bad{ManifestType: "application/vnd.example.manifest", Manifest: []byte(`{"mediaType":"application/vnd.example.manifest"}`)}
	all["wrong-platform"] = otherPlatform()
	for name, change := range map[string]func(*Bad, manifest){
		"layer-truncated":    func(b *Bad, m manifest) { b.Truncate = m.Layers[0].Digest },
		"layer-stalls":       func(b *Bad, m manifest) { b.Stall = m.Layers[0].Digest },
		"layer-missing":      func(b *Bad, m manifest) { delete(b.Blobs, m.Layers[0].Digest) },
		"layer-wrong-digest": func(b *Bad, m manifest) { b.Blobs[m.Layers[0].Digest] = flip(b.Blobs[m.Layers[0].Digest]) },
		"config-missing":     func(b *Bad, m manifest) { delete(b.Blobs, m.Config.Digest) },
		"config-wrong-digest": func(b *Bad, m manifest) {
			b.Blobs[m.Config.Digest] = bytes.Replace(b.Blobs[m.Config.Digest], []byte("linux"), []byte("xunil"), 1)
		},
	} {
		// Its own content, or the node would have it from another image.
		b := bad(func(p *parts) { p.tar(file(name)) })
		var m manifest
		if err := json.Unmarshal(b.Manifest, &m); err != nil {
			panic(err) // we made it
		}
		change(b, m)
		all[name] = b
	}
	return all
}

func (b *Bad) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	ref := path.Base(req.URL.Path)
	if path.Base(path.Dir(req.URL.Path)) == "manifests" {
		w.Header().Set("Content-Type", b.ManifestType)
		w.Header().Set("Docker-Content-Digest", digest(b.Manifest))
		w.Header().Set("Content-Length", strconv.Itoa(len(b.Manifest)))
		if data, ok := b.Blobs[ref]; ok { // a manifest inside an index
			w.Header().Set("Docker-Content-Digest", ref)
			w.Header().Set("Content-Type", manifestType)
			w.Header().Set("Content-Length", strconv.Itoa(len(data)))
			send(w, req, data)
			return
		}
		send(w, req, b.Manifest)
		return
	}
	data, ok := b.Blobs[ref]
	if !ok {
		http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}`, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	switch ref {
	case b.Truncate:
		data = data[:len(data)/2]
	case b.Stall:
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		send(w, req, data[:len(data)/2])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		<-req.Context().Done() // until the client gives up
		return
	}
	// With ranges: an interrupted pull goes on where it ended.
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

// Mended is the image without what is wrong with how it is served.
func (b *Bad) Mended() *Bad {
	return &Bad{ManifestType: b.ManifestType, Manifest: b.Manifest, Blobs: b.Blobs}
}

func send(w http.ResponseWriter, req *http.Request, data []byte) {
	if req.Method != http.MethodHead {
		_, _ = w.Write(data) // the client may have seen enough
	}
}

// bad makes an image of one layer with one change.
func bad(change func(*parts)) *Bad {
	p := &parts{layerType: layerType, configType: configType, arch: runtime.GOARCH}
	p.tar(file("hello"))
	change(p)
	config := encode(map[string]any{
		"os": "linux", "architecture": p.arch,
		"config": map[string]any{"Cmd": []string{"/hello"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{p.diffID}},
	})
	m := manifest{
		SchemaVersion: 2,
		MediaType:     manifestType,
		Config:        describe(p.configType, config),
		Layers:        []descriptor{describe(p.layerType, p.layer)},
	}
	if p.manifest != nil {
		p.manifest(&m)
	}
	return &Bad{
		ManifestType: manifestType,
		Manifest:     encode(m),
		Blobs:        map[string][]byte{digest(config): config, digest(p.layer): p.layer},
	}
}

// otherPlatform is an honest image index without this machine in it.
func otherPlatform() *Bad {
	b := bad(func(p *parts) { p.arch = "s390x" })
	inner := describe(manifestType, b.Manifest)
	inner.Platform = map[string]string{"os": "linux", "architecture": "s390x"}
	b.Blobs[inner.Digest] = b.Manifest
	b.ManifestType = indexType
	b.Manifest = encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{inner}})
	return b
}

// member is one entry of a layer; padding bytes of zeros stand in for content.
type member struct {
	header  tar.Header
	padding int64
}

func file(name string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: 4096}, 4096}
}

func symlink(name, to string) member {
	return member{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, 0}
}

func hardlink(name, to string) member {
	return member{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, 0}
}

// huge claims more than it holds: a reader must give up by a bound of its own
// long before it finds out.
func huge(name string, size int64) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}, 64 << 20}
}

func (p *parts) tar(members ...member) {
	var buf bytes.Buffer
	for _, m := range members {
		// A writer for each: one that knows of the entry before refuses to go
		// on when that is incomplete. The end of the archive is left out, which
		// readers take for an end.
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&m.header); err != nil {
			panic(err) // we made it
		}
		buf.Write(make([]byte, m.padding))
	}
	buf.Write(make([]byte, 1024))
	p.raw(buf.Bytes())
}

func (p *parts) raw(data []byte) {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		panic(err) // a buffer takes everything
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	p.layer, p.diffID = buf.Bytes(), digest(data)
}

func describe(mediaType string, data []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: digest(data), Size: int64(len(data))}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// flip keeps the size and changes the content.
func flip(data []byte) []byte {
	out := bytes.Clone(data)
	out[len(out)/2] ^= 0xff
	return out
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err)) // we made it
	}
	return data
}
