package dirsize

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func write(t *testing.T, path string, bytes int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, bytes), 0o644); err != nil {
		t.Fatal(err)
	}
}

func of(t *testing.T, path string) Size {
	t.Helper()
	s, err := Of(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAFileWithTwoNamesCountsOnceAndLinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), 100_000)
	write(t, filepath.Join(dir, "sub", "b"), 4096)
	before := of(t, dir)
	if before.Inodes != 4 || before.Bytes < 104_096 || before.Bytes > 256<<10 { // dir, a, sub, b
		t.Errorf("%+v", before)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "sub", "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", filepath.Join(dir, "usr")); err != nil {
		t.Fatal(err)
	}
	if after := of(t, dir); after.Bytes != before.Bytes || after.Inodes != before.Inodes+1 {
		t.Errorf("%+v, then %+v", before, after)
	}
}

func TestOtherFileSystemsDoNotCount(t *testing.T) {
	proc := of(t, "/proc/self/task") // of the file system of /proc, which takes no blocks
	if proc.Bytes != 0 || proc.Inodes == 0 {
		t.Errorf("/proc/self/task: %+v", proc)
	}
	root, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Of(root, "/sys"); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("/sys, with other file systems below: %v", err)
	}
}

func TestAFileIsWhatItTakesAndNothingIsNotThere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a")
	write(t, file, 10_000)
	if s := of(t, file); s.Inodes != 1 || s.Bytes < 10_000 {
		t.Errorf("%+v", s)
	}
	if s, err := Of(t.Context(), file+".not"); !errors.Is(err, fs.ErrNotExist) || s != (Size{}) {
		t.Errorf("of nothing: %+v, %v", s, err)
	}
}

func TestWithoutTimeWhatWasCountedIsGiven(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if s, err := Of(ctx, t.TempDir()); !errors.Is(err, context.DeadlineExceeded) || s != (Size{}) {
		t.Errorf("%+v, %v", s, err)
	}
}
