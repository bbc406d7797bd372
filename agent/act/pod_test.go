package act

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatSomebodyMountedBelowAPodIsNotRemoved(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: mounting needs root")
	}
	precious, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(precious, "data"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "pod", "containers", "c")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	unmount := func() error { return unix.Unmount(at, unix.MNT_DETACH) }
	defer unmount()
	err := removeUnmounted(filepath.Join(dir, "pod"))
	if err == nil || !strings.Contains(err.Error(), at+" is mounted") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(filepath.Join(precious, "data")); err != nil {
		t.Fatal(err)
	}
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if err := removeUnmounted(filepath.Join(dir, "pod")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(precious, "data")); err != nil {
		t.Error(err)
	}
}
