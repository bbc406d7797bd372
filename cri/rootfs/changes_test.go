package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestChangesAreWhatALayerOfAnImageWouldHave(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts an overlay")
	}
	dir := t.TempDir()
	// An overlay cannot stand on an overlay, which the temporary directory may be.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	lower := filepath.Join(dir, "lower")
	for _, path := range []string{"gone", "stays", "replaced/old", "changed"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(lower, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(lower, path), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := Layer{Dir: filepath.Join(dir, "layer"), Mount: filepath.Join(dir, "mount")}
	if err := l.Create([]string{lower}, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	})
	at := func(path string) string { return filepath.Join(l.Mount, path) }
	for _, err := range []error{
		os.Remove(at("gone")), os.RemoveAll(at("replaced")), os.Mkdir(at("replaced"), 0o755),
		os.WriteFile(at("replaced/new"), nil, 0o644), os.WriteFile(at("changed"), []byte("x"), 0o644),
		os.Symlink("changed", at("link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if err := l.WriteChanges(&b); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	want := []string{".wh.gone", "changed", "link", "replaced/", "replaced/.wh..wh..opq", "replaced/new"}
	slices.Sort(names)
	if !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
}
