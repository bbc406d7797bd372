package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory that one zstd stream can claim. It is the
// limit of the zstd tool without --long.
const maxZstdWindow = 128 << 20

// decompress detects how r is compressed by its first bytes, as every runtime
// does, since media types of old images are not to be trusted on this.
func decompress(r io.Reader) (io.ReadCloser, error) {
	buf := bufio.NewReaderSize(r, 64<<10)
	head, err := buf.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return gzip.NewReader(buf)
	case isZstd(head):
		z, err := zstd.NewReader(buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(buf), nil
}

// isZstd knows frames with data and skippable ones (RFC 8878, 3.1).
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18})
}

// boundedReader ends with an error when more than limit bytes come, so that a
// decompression bomb stops instead of filling the disk.
type boundedReader struct {
	r     io.Reader
	n     int64
	limit int64
	over  error
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.n += int64(n); b.n > b.limit {
		return 0, b.over
	}
	return n, err
}

// entryCheck looks at each tar entry of a layer before it is applied. The
// applier would keep a hostile entry inside the layer's directory by bending
// its path; a layer that needs this is refused instead.
//
// Absolute names mean the image's root: builders in wide use write them.
type entryCheck struct {
	meter   *meter
	links   map[string]string // symlinks of this layer: where they are, without leading slash, to target
	parents map[string]bool   // directories that entries are in; true: the layer has an entry for it
	lastDir string            // the directory that was last found to be inside
	lastAt  string            // where it is when symlinks are followed
	seen    bool              // lastDir is set
}

func newEntryCheck(m *meter) *entryCheck {
	return &entryCheck{meter: m, links: map[string]string{}, parents: map[string]bool{}}
}

// check is a filter of containerd's archive package: false skips the entry.
// h.Name has been cleaned by the caller, as archive.Apply does.
func (c *entryCheck) check(h *tar.Header) (bool, error) {
	if climbs(h.Name) {
		return false, fmt.Errorf("entry %q leaves the image root", h.Name)
	}
	name := strings.TrimPrefix(path.Clean(h.Name), "/")
	dir, err := c.inside(name)
	if err != nil {
		return false, fmt.Errorf("entry %q %w", h.Name, err)
	}
	if err := c.meter.entry(h.Name, h.Linkname); err != nil {
		return false, err
	}
	base := path.Base(name)
	if strings.HasPrefix(base, ".wh..wh.") && base != ".wh..wh..opq" {
		return false, nil // reserved for the storage driver that wrote the layer (image-spec, layer.md)
	}
	switch h.Typeflag {
	case tar.TypeReg, '\x00':
		// Sparse files declare more than they carry.
		if err := c.meter.declare(h.Size); err != nil {
			return false, err
		}
	case tar.TypeLink:
		if climbs(h.Linkname) {
			return false, fmt.Errorf("hard link %q to %q leaves the image root", h.Name, h.Linkname)
		}
		if _, err := c.inside(strings.TrimPrefix(path.Clean(h.Linkname), "/")); err != nil {
			return false, fmt.Errorf("hard link %q to %q %w", h.Name, h.Linkname, err)
		}
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return false, fmt.Errorf("symlink %q has no target", h.Name)
		}
	case tar.TypeDir, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeXGlobalHeader:
	default:
		return false, fmt.Errorf("entry %q has type %q, which is not supported", h.Name, h.Typeflag)
	}
	dropOverlayXattrs(h)
	c.remember(path.Join(dir, base), h)
	return true, nil
}

// remember takes an entry and where it is when symlinks are followed. It keeps
// the symlinks that later entries could go through, and which directories the
// layer describes.
func (c *entryCheck) remember(at string, h *tar.Header) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return
	}
	for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
		if _, known := c.parents[dir]; known {
			break // and all above it
		}
		c.parents[dir] = false
	}
	if h.Typeflag == tar.TypeDir {
		c.parents[at] = true
	}
	if h.Typeflag == tar.TypeSymlink {
		c.links[at] = h.Linkname
		c.seen = false
		return
	}
	delete(c.links, at)
}

// undescribed lists the directories that the layer uses without an entry for
// them, parents before what is in them.
func (c *entryCheck) undescribed() []string {
	var dirs []string
	for dir, described := range c.parents {
		if !described {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// inside follows the symlinks of this layer on the way to name and returns the
// directory where it ends, or reports a symlink that leaves the root, by its
// absolute target or by climbing above it.
func (c *entryCheck) inside(name string) (string, error) {
	dir := path.Dir(name)
	if len(c.links) == 0 {
		return dir, nil
	}
	if c.seen && dir == c.lastDir {
		return c.lastAt, nil
	}
	var at []string
	var link, to string // the first symlink on the way
	todo := strings.Split(dir, "/")
	for hops := 0; len(todo) > 0; {
		next := todo[0]
		todo = todo[1:]
		switch next {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				return "", fmt.Errorf("goes through symlink %q to %q, which leaves the image root", link, to)
			}
			at = at[:len(at)-1]
			continue
		}
		at = append(at, next)
		here := strings.Join(at, "/")
		target, ok := c.links[here]
		if !ok {
			continue
		}
		if hops++; hops == 1 {
			link, to = here, target
		}
		switch {
		case hops > 40: // as the kernel's limit, MAXSYMLINKS
			return "", fmt.Errorf("goes through too many symlinks at %q", link)
		case path.IsAbs(target):
			return "", fmt.Errorf("goes through symlink %q to %q, which leaves the image root", link, to)
		}
		at = at[:len(at)-1]
		todo = append(strings.Split(target, "/"), todo...)
	}
	c.lastDir, c.lastAt, c.seen = dir, path.Join(append([]string{"."}, at...)...), true
	return c.lastAt, nil
}

// climbs reports whether a path, read from the root, goes above it.
func climbs(p string) bool {
	depth := 0
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// dropOverlayXattrs removes what would be orders to overlayfs: in a lower
// directory these attributes redirect lookups and hide what is below.
func dropOverlayXattrs(h *tar.Header) {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "SCHILY.xattr.trusted.overlay.") {
			delete(h.PAXRecords, key)
		}
	}
}

// explainRead says what a decompressor's or tar reader's error means for the layer.
func explainRead(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("layer ends in the middle: %w", err)
	}
	return err
}
