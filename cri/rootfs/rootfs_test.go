package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts file systems")
	}
}

// newLayer returns a layer on a tmpfs of its own: the temporary directory may
// itself be an overlay, which cannot hold an upper directory.
func newLayer(t *testing.T) (Layer, string) {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(dir); err != nil {
			t.Error(err)
		}
	})
	return Layer{Dir: filepath.Join(dir, "layer"), Mount: filepath.Join(dir, "run", "rootfs")}, dir
}

func lowers(t *testing.T, dir string, names ...string) []string {
	t.Helper()
	var paths []string
	for _, n := range names {
		p := filepath.Join(dir, n)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(p, "from"), []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, p)
	}
	return paths
}

func TestAContainerSeesTheTopmostLayerAndWritesToItsOwn(t *testing.T) {
	l, dir := newLayer(t)
	low := lowers(t, dir, "top", "bottom")
	if err := unix.Chmod(low[0], 0o1750); err != nil {
		t.Fatal(err)
	}
	if err := l.Create(low, ""); err != nil {
		t.Fatal(err)
	}
	if mounted, err := Mounted(l.Mount); err != nil || !mounted {
		t.Errorf("mounted: %v, %v", mounted, err)
	}
	if got, _ := os.ReadFile(filepath.Join(l.Mount, "from")); string(got) != "top" {
		t.Errorf("from is %q", got)
	}
	var st unix.Stat_t
	if err := unix.Stat(l.Mount, &st); err != nil || st.Mode&0o7777 != 0o1750 {
		t.Errorf("mode of the root is %o, %v", st.Mode&0o7777, err)
	}
	if err := os.WriteFile(filepath.Join(l.Mount, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(low[0], "new")); err == nil {
		t.Error("a write went to the image")
	}
	for range 2 {
		if err := l.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{l.Dir, l.Mount} {
		if _, err := os.Stat(p); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", p, err)
		}
	}
	if _, err := os.Stat(filepath.Join(low[0], "from")); err != nil {
		t.Error("the image was touched")
	}
}

func TestAChainTooLongForMountOptionsIsMountedLayerByLayer(t *testing.T) {
	l, dir := newLayer(t)
	var names []string
	for i := range 400 {
		names = append(names, strings.Repeat("d", 90)+string(rune('A'+i/26))+string(rune('a'+i%26)))
	}
	if err := l.Create(lowers(t, dir, names...), ""); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(l.Mount, "from")); string(got) != names[0] {
		t.Errorf("from is %q", got)
	}
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
}

func TestAMountPointThatSomebodyWroteBelowIsRemoved(t *testing.T) {
	l, dir := newLayer(t)
	if err := l.Create(lowers(t, dir, "low"), ""); err != nil {
		t.Fatal(err)
	}
	if err := l.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(l.Mount, "proc/sys"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{l.Mount, l.Dir} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func TestRemovalStopsAtAForgottenMount(t *testing.T) {
	l, dir := newLayer(t)
	kept := filepath.Join(dir, "kept")
	for _, p := range []string{kept, filepath.Join(l.Dir, "upper", "mnt")} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(kept, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// A bind mount of the same file system has the same device number: only
	// the mount tells.
	mnt := filepath.Join(l.Dir, "upper", "mnt")
	if err := unix.Mount(kept, mnt, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Unmount(mnt) })
	err := RemoveTree(l.Dir)
	if err == nil || !strings.Contains(err.Error(), mnt+" is still mounted") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(filepath.Join(kept, "data")); err != nil {
		t.Error("data behind the mount was removed")
	}
	if err := Unmount(mnt); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(l.Dir); err != nil {
		t.Error(err)
	}
}

func TestRemovalDoesNotFollowSymbolicLinks(t *testing.T) {
	dir := t.TempDir()
	outside := filepath.Join(dir, "outside")
	tree := filepath.Join(dir, "tree")
	for _, p := range []string{outside, filepath.Join(tree, "sub")} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "data"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(tree, "sub", "link")); err != nil {
		t.Fatal(err)
	}
	if err := RemoveTree(tree); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "data")); err != nil {
		t.Error("removal went through a symbolic link")
	}
}
