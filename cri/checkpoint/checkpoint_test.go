package checkpoint

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// content makes the least that is a checkpoint.
func content(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, ImagesDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{SpecFile: "{}", ImagesDir + "/inventory.img": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := Config{ID: "c1", Name: "main", RootfsImageRef: "example.test/a@sha256:1", CheckpointedAt: time.Unix(1, 0).UTC()}
	if err := WriteJSON(dir, ConfigFile, config); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestAnArchiveIsReadAsItWasWritten(t *testing.T) {
	dir, path, out := content(t), filepath.Join(t.TempDir(), "a.tar"), t.TempDir()
	if err := Pack(t.Context(), dir, path); err != nil {
		t.Fatal(err)
	}
	peeked, err := Peek(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), path, out); err != nil {
		t.Fatal(err)
	}
	read, err := Read(out)
	if err != nil || read != peeked || read.ID != "c1" {
		t.Errorf("peeked %+v, read %+v, %v", peeked, read, err)
	}
}

func TestAnArchiveThatCannotBeWrittenLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := Pack(t.Context(), filepath.Join(t.TempDir(), "none"), path); err == nil {
		t.Error("there was nothing to write")
	}
	left, err := filepath.Glob(path + "*")
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestWhatIsNoCheckpointIsNamed(t *testing.T) {
	for want, spoil := range map[string]func(dir string) error{
		"it is no checkpoint": func(dir string) error { return os.Remove(filepath.Join(dir, SpecFile)) },
		"parse config.dump":   func(dir string) error { return os.WriteFile(filepath.Join(dir, ConfigFile), []byte("{"), 0o600) },
		"names no image":      func(dir string) error { return os.WriteFile(filepath.Join(dir, ConfigFile), []byte("{}"), 0o600) },
		"is not a plain file": func(dir string) error { return os.Symlink("/etc/shadow", filepath.Join(dir, ImagesDir, "pages-1.img")) },
		"it is larger than":   func(dir string) error { return os.Truncate(filepath.Join(dir, ConfigFile), maxMetadata+1) },
		"it is no checkpoint:": func(dir string) error {
			return os.Rename(filepath.Join(dir, ConfigFile), filepath.Join(dir, "x"))
		},
	} {
		dir := content(t)
		if err := spoil(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestChangesStayInsideTheRootFileSystem(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	root, dir := t.TempDir(), t.TempDir()
	for _, step := range []error{
		os.WriteFile(filepath.Join(root, "old"), nil, 0o600),
		os.WriteFile(filepath.Join(root, "listed"), nil, 0o600),
		os.Symlink(filepath.Dir(outside), filepath.Join(root, "link")),
		os.WriteFile(filepath.Join(dir, DeletedFile), []byte(`["listed", "/../../etc/nothing", "link/precious"]`), 0o600),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, h := range []*tar.Header{
		{Name: ".wh.old", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "new", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "link/planted", Typeflag: tar.TypeReg, Mode: 0o600},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, RootfsFile), layer.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	err := ApplyRootfs(t.Context(), dir, root)
	if err == nil || !strings.Contains(err.Error(), "link/precious") {
		t.Errorf("a path that leads outside is removed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, DeletedFile), []byte(`["listed", "gone"]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ApplyRootfs(t.Context(), dir, root); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"old": false, "listed": false, "new": true} {
		if _, err := os.Lstat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what is outside: %v", err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(outside), "planted")); !os.IsNotExist(err) {
		t.Errorf("a file was planted outside: %v", err)
	}
}

func FuzzPeek(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := []byte(`{"rootfsImage":"a"}`)
	_ = w.WriteHeader(&tar.Header{Name: ConfigFile, Size: int64(len(body)), Typeflag: tar.TypeReg})
	_, _ = w.Write(body)
	_ = w.Close()
	f.Add(b.Bytes())
	f.Add([]byte{0x1f, 0x8b, 8, 0})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "a.tar")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Peek(path)
		if err == nil && c.RootfsImage == "" && c.RootfsImageName == "" && c.RootfsImageRef == "" {
			t.Error("it names no image, and is taken")
		}
	})
}
