package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"
)

// FuzzUnpack unpacks whatever tar archive comes, compressed or not, as a layer
// that is not the lowest, and looks for what got out of its directory. The
// archive is written from the input in the language of FuzzEntries where it
// begins with a line, so that mutations are not lost on checksums.
func FuzzUnpack(f *testing.F) {
	if os.Getuid() != 0 {
		f.Skip("needs root: unpacking makes devices and sets owners")
	}
	f.Add([]byte("lines 5d\n0d/f\n1h d/f\n2l d\n0l/g\n0.wh.x\n0d/.wh..wh..opq\n3c\n6p"))
	f.Add([]byte("lines 2a ../..\n0a/f\n1b a/f"))
	f.Add([]byte("lines 5a\n2a/b ..\n0a/b/../../f"))
	f.Add([]byte("lines 2d /tmp\n5d\n0d/f\n2d/l ../../..\n0d/l/f"))
	f.Add([]byte("lines 0f\n1g f\n0.wh.f\n2.wh.h ../..\n0h/f"))
	f.Add(layerTar(f, file{name: "a/", kind: tar.TypeDir}, file{name: "a/f", body: "x"}, file{name: "../f", body: "x"}))
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		if text, ok := strings.CutPrefix(string(input), "lines "); ok {
			input = tarOfLines(text)
		}
		outer := t.TempDir()
		root := filepath.Join(outer, "a", "root")
		if err := os.MkdirAll(root, 0o755); err != nil {
			t.Fatal(err)
		}
		below := filepath.Join(t.TempDir(), "below")
		if err := os.MkdirAll(filepath.Join(below, "d"), 0o700); err != nil {
			t.Fatal(err)
		}
		implicit, err := unpackPlain(root, input)
		if err == nil {
			if err := adopt(root, []string{below}, implicit); err != nil {
				t.Errorf("adopt %q: %v", implicit, err)
			}
		}
		for _, dir := range []string{outer, filepath.Join(outer, "a")} {
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Fatalf("got out: %v %v", entries, err)
			}
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(outer, "a"), &st); err != nil || st.Uid != 0 || st.Mode&0o7777 != 0o755 {
			t.Fatalf("changed outside: %o %d %v", st.Mode, st.Uid, err)
		}
	})
}

func unpackPlain(root string, input []byte) ([]string, error) {
	plain, err := decompress(bytes.NewReader(input))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	meter := &meter{limits: limits{layerBytes: 1 << 20, imageBytes: 1 << 20, layerEntries: 200}, image: newAllowance(1 << 20)}
	entries := newEntryCheck(meter)
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, errors.New("it does not end"))
	defer cancel()
	_, err = archive.Apply(ctx, root, &meteredReader{plain, meter},
		archive.WithFilter(entries.check), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
	return entries.undescribed(), err
}

func tarOfLines(text string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for line := range strings.SplitSeq(text, "\n") {
		name, link, _ := strings.Cut(line, " ")
		if len(name) < 2 || len(line) > 300 {
			continue
		}
		h := &tar.Header{Typeflag: name[0], Name: name[1:], Linkname: link, Mode: 0o6755, Uid: 5, Gid: 6, ModTime: unixTime(1)}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(link))
		}
		if w.WriteHeader(h) == nil && h.Size > 0 {
			_, _ = io.WriteString(w, link) // the archive may as well be cut short
		}
	}
	_ = w.Close()
	return b.Bytes()
}
