package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTheProbeOfIDMappingLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	dir := t.TempDir()
	images, state := filepath.Join(dir, "images"), filepath.Join(dir, "state")
	// What a daemon that was killed over it left.
	stale := filepath.Join(state, "idmap-probe-root")
	if err := os.MkdirAll(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", stale, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := ProbeIDMap(images, state); err != nil {
			t.Fatalf("this kernel cannot: %v", err)
		}
	}
	for _, parent := range []string{images, state} {
		left, err := os.ReadDir(parent)
		if err != nil || len(left) > 0 {
			t.Errorf("%v is left in %s (%v)", left, parent, err)
		}
	}
}

func BenchmarkProbeIDMap(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root, for mounts")
	}
	dir := b.TempDir()
	for b.Loop() {
		if err := ProbeIDMap(filepath.Join(dir, "images"), filepath.Join(dir, "state")); err != nil {
			b.Fatal(err)
		}
	}
}
