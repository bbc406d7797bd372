package statefile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWhatAnInterruptedWriteLeftIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if content, err := Read(path); content != nil || err != nil {
		t.Fatalf("no file: %q, %v", content, err)
	}
	if err := Write(path, "kept"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".tmp-state123", ".tmp-other1"} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if content, err := Read(path); string(content) != `"kept"` || err != nil {
		t.Errorf("%q, %v", content, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".tmp-*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != ".tmp-other1" {
		t.Errorf("left %v, %v", left, err)
	}
}
