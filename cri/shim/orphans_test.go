package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The runtime of this test is a wrapper, as some are: what the shim started
// dies with the shim, and what the wrapper had started goes on.
func TestWhatAKilledShimHadStartedIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	begun, done := filepath.Join(dir, "begun"), filepath.Join(dir, "done")
	script := filepath.Join(dir, "slow")
	text := "#!/bin/sh\nsh -c 'touch " + begun + "; sleep 0.5; touch " + done + "'\nexit 1\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBedWith(t, Runtime{Binary: script, Timeout: time.Minute})
	gone := make(chan error, 1)
	go func() {
		_, err := b.client.Run(context.Background(), b.bundle("exit 0", nil))
		gone <- err
	}()
	eventually(t, "the runtime runs", func() bool { _, err := os.Stat(begun); return err == nil })
	if err := syscall.Kill(b.client.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-gone; !errors.Is(err, ErrGone) {
		t.Errorf("start by a shim that was killed: %v", err)
	}
	if err := AwaitOrphans(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(done); err != nil {
		t.Errorf("a command of the runtime was still running: %v", err)
	}
}

func TestARuntimeCommandDiesWithItsShim(t *testing.T) {
	dir := t.TempDir()
	begun, script := filepath.Join(dir, "begun"), filepath.Join(dir, "hung")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ntouch "+begun+"\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBedWith(t, Runtime{Binary: script, Timeout: time.Minute})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = b.client.Run(context.Background(), b.bundle("exit 0", nil)) // it ends with the shim
	}()
	eventually(t, "the runtime runs", func() bool { _, err := os.Stat(begun); return err == nil })
	if err := syscall.Kill(b.client.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-gone
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := AwaitOrphans(ctx, b.dir); err != nil {
		t.Error(err)
	}
}

func TestAContainerInheritsNothingOfItsShim(t *testing.T) {
	b := newBed(t)
	st := b.run(b.bundle("exec sleep 1000", nil))
	open, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", st.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if len(open) != 3 {
		for _, fd := range open {
			to, _ := os.Readlink(fd)
			t.Logf("%s -> %s", fd, to)
		}
		t.Errorf("%d descriptors are open in the container, want the three of its streams", len(open))
	}
}

func TestAShimThatLivesIsNamedByWhatItHolds(t *testing.T) {
	b := newBed(t)
	if _, err := b.client.State(t.Context()); err != nil { // it serves, so it holds the lock
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := AwaitOrphans(ctx, b.dir)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), b.dir+"/shim.lock") {
		t.Errorf("error %v", err)
	}
	if err := AwaitOrphans(t.Context(), t.TempDir()); err != nil {
		t.Errorf("where there never was a shim: %v", err)
	}
}
