package crilog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestAReopenedLogGoesOnInANewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v, want 0640", st.Mode(), err)
	}
	l.Write([]byte("one\n"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Write([]byte("two\n"))
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Write([]byte("three\n"))
	if old, young := read(t, path+".1"), read(t, path); old != "one\ntwo\n" || young != "three\n" {
		t.Errorf("old %q, new %q", old, young)
	}
}

func TestALogThatCannotBeReopenedKeepsItsOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := Open(filepath.Join(dir, "0.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Rename(dir, dir+".moved"); err != nil {
		t.Fatal(err)
	}
	if l.Reopen() == nil {
		t.Error("reopened in a directory that is not there")
	}
	l.Write([]byte("kept\n"))
	if got := read(t, filepath.Join(dir+".moved", "0.log")); got != "kept\n" || l.Dropped() != 0 {
		t.Errorf("got %q, %d dropped", got, l.Dropped())
	}
}

func TestALogIsOpenedWhenItsPathIsMended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "0.log")
	l, err := Open(path)
	if err == nil {
		t.Fatal("opened in a directory that is not there")
	}
	defer l.Close()
	l.Write([]byte("one\ntwo\n"))
	if l.Dropped() != 2 {
		t.Errorf("%d dropped, want 2", l.Dropped())
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l.retryAt = time.Time{} // a second has passed
	l.Write([]byte("three\n"))
	if got := read(t, path); got != "three\n" || l.Dropped() != 2 {
		t.Errorf("got %q, %d dropped", got, l.Dropped())
	}
}

func TestAFullDiskTearsNoEntry(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: mounting a small disk needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "0.log")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const entry = "an entry of thirty-odd bytes, or so\n"
	batch := []byte(strings.Repeat(entry, 100))
	const batches = 50
	for range batches {
		l.Write(batch)
	}
	got := read(t, path)
	if strings.ReplaceAll(got, entry, "") != "" {
		t.Error("an entry was torn")
	}
	if kept := int64(strings.Count(got, "\n")); kept == 0 || l.Dropped() == 0 || kept+l.Dropped() != batches*100 {
		t.Errorf("%d kept, %d dropped of %d", kept, l.Dropped(), batches*100)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	dropped := l.Dropped()
	l.Write(batch)
	if got := read(t, path); got != string(batch) || l.Dropped() != dropped {
		t.Errorf("%d bytes written, %d dropped, after there was room again", len(got), l.Dropped()-dropped)
	}
}

func TestAPipeWithoutAReaderIsNoLogToWaitFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Open(path)
	if err == nil {
		t.Error("opened a pipe without a reader")
	}
	l.Write([]byte("one\n"))
	l.Close()
	l.Write([]byte("two\n"))
	if l.Dropped() != 2 {
		t.Errorf("%d dropped, want 2", l.Dropped())
	}
}
