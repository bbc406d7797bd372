package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// tree is the content of one layer. Times are zero and entries sorted, so that
// the same content is always the same digest.
type tree struct {
	entries map[string]entry
}

type entry struct {
	header tar.Header
	data   []byte
}

func newTree() *tree { return &tree{entries: map[string]entry{}} }

// dir adds a directory and its missing parents; path has no leading slash.
func (t *tree) dir(path string, mode int64) {
	t.parents(path)
	t.entries[path] = entry{header: tar.Header{Typeflag: tar.TypeDir, Name: path + "/", Mode: mode}}
}

func (t *tree) file(path string, mode int64, data []byte) {
	t.parents(path)
	t.entries[path] = entry{header: tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: mode, Size: int64(len(data))}, data: data}
}

// host copies a file of this machine, whatever symlinks lead to it.
func (t *tree) host(path, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.file(path, 0o755, data)
	return nil
}

func (t *tree) hardlink(path, to string) {
	t.parents(path)
	t.entries[path] = entry{header: tar.Header{Typeflag: tar.TypeLink, Name: path, Linkname: to, Mode: 0o755}}
}

func (t *tree) symlink(path, to string) {
	t.parents(path)
	t.entries[path] = entry{header: tar.Header{Typeflag: tar.TypeSymlink, Name: path, Linkname: to, Mode: 0o777}}
}

func (t *tree) parents(path string) {
	for i, c := range path {
		if c != '/' {
			continue
		}
		if _, ok := t.entries[path[:i]]; !ok {
			t.entries[path[:i]] = entry{header: tar.Header{Typeflag: tar.TypeDir, Name: path[:i] + "/", Mode: 0o755}}
		}
	}
}

// layer packs the tree.
func (t *tree) layer() (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range t.sorted() {
		if err := w.WriteHeader(&e.header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", e.header.Name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("pack %s: %w", e.header.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	data := buf.Bytes()
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, tarball.WithCompressionLevel(gzip.BestSpeed))
}

// compressed is a layer as a registry serves it.
func compressed(l v1.Layer) ([]byte, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// sorted puts hard links last, behind what they link to.
func (t *tree) sorted() []entry {
	var out []entry
	for _, e := range t.entries {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b entry) int {
		if la, lb := a.header.Typeflag == tar.TypeLink, b.header.Typeflag == tar.TypeLink; la != lb {
			if la {
				return 1
			}
			return -1
		}
		return cmp.Compare(strings.TrimSuffix(a.header.Name, "/"), strings.TrimSuffix(b.header.Name, "/"))
	})
	return out
}
