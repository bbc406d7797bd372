package source

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-io/berth/agent/manifest"
)

// BenchmarkNewFile is the time from a file's rename into a directory of 100 to
// its pod in a snapshot.
func BenchmarkNewFile(b *testing.B) {
	base := b.TempDir()
	dir := filepath.Join(base, "manifests")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	for i := range 100 {
		name := fmt.Sprintf("p%03d", i)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(pod(name, "busybox")), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	d := NewDir(Config{Dir: dir, CacheDir: filepath.Join(base, "cache"), Rescan: never,
		Options: manifest.Options{NodeName: "node-a"}, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	for len(d.Snapshot().Set.Pods) < 100 {
		<-d.Changed()
	}
	tmp := filepath.Join(base, "new")
	for i := 0; b.Loop(); i++ {
		if err := os.WriteFile(tmp, []byte(pod(fmt.Sprintf("n%d", i), "busybox")), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "new.yaml")); err != nil {
			b.Fatal(err)
		}
		<-d.Changed()
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
