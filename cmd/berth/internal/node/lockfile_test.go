package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestANodeWaitsForTheLockOfItsLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	_, release, err := lock(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, release, err := lock(t.Context(), path, false)
		if err == nil {
			release()
		}
		got <- err
	}()
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := lock(impatient, path, false); err == nil {
		t.Error("two hold the lock")
	}
	select {
	case err := <-got:
		t.Fatalf("the second did not wait: %v", err)
	default:
	}
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

func TestANodeEndsWhenAnotherWantsItsLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	until, release, err := lock(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if until.Err() != nil {
		t.Fatal("it ends by itself")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	<-until.Done()
}
