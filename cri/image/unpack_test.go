package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// mountImage mounts an image read-only, as a container would see it.
func mountImage(t *testing.T, img Image) string {
	t.Helper()
	merged := t.TempDir()
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(img.Layers, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
	})
	return merged
}

func describe(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	attr := make([]byte, 64)
	n, err := unix.Lgetxattr(path, "user.note", attr)
	if err != nil {
		n = 0
	}
	return fmt.Sprintf("%o %d:%d %d %s", st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec, attr[:n])
}

func TestADirectoryThatALayerDoesNotDescribeIsAsInTheLayersBelow(t *testing.T) {
	described := func(name string) *tar.Header {
		return &tar.Header{
			Name: name, Typeflag: tar.TypeDir, Mode: 0o1750, Uid: 7, Gid: 8, ModTime: unixTime(99),
			PAXRecords: map[string]string{"SCHILY.xattr.user.note": "kept"},
		}
	}
	plain := func(name string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: unixTime(1)}
	}
	link := func(name, to string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777, ModTime: unixTime(1)}
	}
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	img := mustPull(t, s, reg.push(t, "app:1", build(t,
		headers(t, described("a"), described("a/b"), described("twice"), described("gone"), described("gone/in"), described("real/d")),
		headers(t, plain("other"), &tar.Header{Name: "twice", Typeflag: tar.TypeDir, Mode: 0o700, ModTime: unixTime(5)}, plain("gone/.wh..wh..opq"), plain(".wh.a")),
		headers(t, plain("twice/f"), plain("gone/f"), plain("new/f"), link("l", "real"), plain("l/d/f")),
		headers(t, described("a"), plain("a/b/c/f"), plain("gone/in/f")),
	)))
	merged := mountImage(t, img)
	for path, want := range map[string]string{
		"twice":  "700 0:0 5 ",
		"gone":   "1750 7:8 99 kept",
		"real/d": "1750 7:8 99 kept",
		"a":      "1750 7:8 99 kept",
		// The layer between took a/b away, and with it what it was.
		"new":     "755 0:0",
		"a/b":     "755 0:0",
		"gone/in": "755 0:0",
	} {
		if got := describe(t, filepath.Join(merged, path)); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestLayersThatImagesShareAreUnpackedOnceWhicheverComesFirst(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	config.MaxParallelUnpack, config.MaxParallelPulls = 4, 16
	s := open(t, config)
	var shared []v1.Layer
	for i := range 6 {
		shared = append(shared, layer(t, file{name: fmt.Sprintf("shared/%d", i), body: strings.Repeat(fmt.Sprint(i), 50<<10)}))
	}
	var wg sync.WaitGroup
	for i := range 12 {
		// Chains part at every depth.
		parts := append(append([]v1.Layer{}, shared[:i%6+1]...), layer(t, file{name: "own", body: fmt.Sprint(i)}))
		ref := reg.push(t, fmt.Sprintf("app%d:1", i), build(t, parts...))
		wg.Go(func() {
			img, err := s.Pull(context.Background(), ref, Auth{}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if len(img.Layers) != len(parts) {
				t.Errorf("%d layers, want %d", len(img.Layers), len(parts))
			}
			for depth, dir := range img.Layers[1:] {
				if _, err := os.Stat(filepath.Join(dir, fmt.Sprintf("shared/%d", len(parts)-2-depth))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	reg.fetchedOnce(t, 6+2*12)
	if n := strings.Count(holdings(t, s), "snapshot "); n != 6+12 {
		t.Errorf("%d snapshots, want 18", n)
	}
}

func TestALayerThatCannotBeUnpackedDoesNotHoldUpAnotherImage(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	config.MaxLayerEntries = 50
	s := open(t, config)
	good := layer(t, file{name: "good", body: "x"})
	var many []file
	for i := range 51 {
		many = append(many, file{name: fmt.Sprint(i)})
	}
	bad := reg.push(t, "bad:1", build(t, good, layer(t, many...), layer(t, file{name: "never"})))
	fine := reg.push(t, "fine:1", build(t, good, layer(t, file{name: "own"})))
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), bad, Auth{}, nil); err == nil {
				t.Error("the bad image was pulled")
			}
		})
		wg.Go(func() {
			if _, err := s.Pull(context.Background(), fine, Auth{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestReadAheadGivesWhatIsBelowItAndItsError(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 100<<10/4) // some blocks and a piece
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		below io.Reader
		want  []byte
		err   error
	}{
		"all":                    {bytes.NewReader(body), body, nil},
		"byte by byte":           {iotest.OneByteReader(bytes.NewReader(body[:5000])), body[:5000], nil},
		"nothing":                {bytes.NewReader(nil), nil, nil},
		"an error in the middle": {io.MultiReader(bytes.NewReader(body), iotest.ErrReader(broken)), body, broken},
		"an early end":           {io.MultiReader(bytes.NewReader(body[:10]), iotest.ErrReader(io.ErrUnexpectedEOF)), body[:10], io.ErrUnexpectedEOF},
		"an end with the data":   {iotest.DataErrReader(bytes.NewReader(body)), body, nil},
	} {
		a := readAhead(c.below)
		got, err := io.ReadAll(a)
		if !bytes.Equal(got, c.want) || !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
			t.Errorf("%s: %d bytes, want %d; %v, want %v", name, len(got), len(c.want), err, c.err)
		}
		a.Close()
	}
	a := readAhead(zeros{})
	if _, err := io.ReadFull(a, make([]byte, 10)); err != nil {
		t.Error(err)
	}
	a.Close() // must not wait for the end of an endless reader
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
