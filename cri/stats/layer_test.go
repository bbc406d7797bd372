package stats

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func write(t *testing.T, path string, size int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newLayers(t *testing.T) *Layers {
	var wait sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); wait.Wait() })
	return NewLayers(ctx, &wait)
}

func TestALayerIsWhatItTakesOnDisk(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/big", 1<<20)
	write(t, dir+"/a/b/small", 1)
	if err := os.Truncate(dir+"/a/b/small", 1<<30); err != nil { // a hole takes no room
		t.Fatal(err)
	}
	for i := range 3 { // nor does another name of a file
		if err := os.Link(dir+"/a/big", fmt.Sprintf("%s/link%d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/usr", dir+"/out"); err != nil {
		t.Fatal(err)
	}
	u, known, err := newLayers(t).Usage(new(Layer), dir)
	if err != nil || !known {
		t.Fatalf("%v, %v", known, err)
	}
	if u.Inodes != 5 || u.Bytes < 1<<20 || u.Bytes > 1<<20+64<<10 {
		t.Errorf("got %+v", u)
	}
}

func TestALayerIsNotMeasuredAgainAtOnce(t *testing.T) {
	dir, layers, layer := t.TempDir(), newLayers(t), new(Layer)
	first, _, err := layers.Usage(layer, dir)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/new", 1)
	if again, known, err := layers.Usage(layer, dir); again != first || !known || err != nil {
		t.Errorf("first %+v, again %+v, %v, %v", first, again, known, err)
	}
	layer.asked = layer.asked.Add(-layerAge)
	if later, _, err := layers.Usage(layer, dir); err != nil || later.Inodes != first.Inodes+1 || !later.At.After(first.At) {
		t.Errorf("first %+v, later %+v, %v", first, later, err)
	}
	layer.asked, layer.took = layer.asked.Add(-layerAge), time.Second
	write(t, dir+"/newer", 1)
	if slow, _, err := layers.Usage(layer, dir); err != nil || slow.Inodes != first.Inodes+1 {
		t.Errorf("one that took long: %+v, %v", slow, err)
	}
}

func TestALargeLayerIsMeasuredInTheBackground(t *testing.T) {
	dir, layers, layer := t.TempDir(), newLayers(t), new(Layer)
	const files = inlineEntries + 500
	for i := range files {
		write(t, fmt.Sprintf("%s/%d", dir, i), 0)
	}
	if u, known, err := layers.Usage(layer, dir); known || err != nil {
		t.Fatalf("known at once: %+v, %v", u, err)
	}
	layers.wait.Wait()
	first, known, err := layers.Usage(layer, dir)
	if !known || err != nil || first.Inodes != files {
		t.Fatalf("got %+v, %v, %v", first, known, err)
	}
	// Meanwhile the old one is given.
	write(t, dir+"/one more", 0)
	layer.asked = time.Time{}
	if u, known, err := layers.Usage(layer, dir); !known || err != nil || u != first {
		t.Errorf("got %+v, %v, %v", u, known, err)
	}
	layers.wait.Wait()
	if u, _, err := layers.Usage(layer, dir); err != nil || u.Inodes != files+1 {
		t.Errorf("got %+v, %v", u, err)
	}
}

func TestALayerThatIsNotThereIsGone(t *testing.T) {
	if _, known, err := newLayers(t).Usage(new(Layer), filepath.Join(t.TempDir(), "nothing")); known || !errors.Is(err, ErrGone) {
		t.Errorf("%v, %v", known, err)
	}
}

func TestALayerNestedWithoutEndIsCountedAsDeepAsDescriptorsAllow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir) // no path is long enough
	for range maxDepth + 50 {
		if err := os.Mkdir("d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chdir("d"); err != nil {
			t.Fatal(err)
		}
	}
	u, _, err := newLayers(t).Usage(new(Layer), dir)
	if err != nil || u.Inodes != maxDepth+1 {
		t.Errorf("got %+v, %v", u, err)
	}
}
