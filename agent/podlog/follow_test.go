package podlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// follower follows a log in the background.
type follower struct {
	t       *testing.T
	path    string
	file    *os.File // being written
	running atomic.Bool
	out     chan string
	ended   chan error
	cancel  context.CancelFunc
	seen    strings.Builder
}

func follow(t *testing.T, text string, opts Options) *follower {
	f := &follower{t: t, path: logFile(t, text), out: make(chan string, 100), ended: make(chan error, 1)}
	f.running.Store(true)
	f.open()
	t.Cleanup(func() { f.file.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	f.cancel = cancel
	opts.Follow = true
	go func() {
		f.ended <- Read(ctx, f.path, opts, f.running.Load, writer(func(p []byte) (int, error) {
			f.out <- string(p)
			return len(p), nil
		}))
	}()
	return f
}

func (f *follower) open() {
	f.t.Helper()
	var err error
	if f.file, err = os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follower) write(text string) {
	f.t.Helper()
	if _, err := f.file.WriteString(text); err != nil {
		f.t.Fatal(err)
	}
}

// rotate does what the agent and the runtime do: rename, reopen.
func (f *follower) rotate(to string) {
	f.t.Helper()
	if err := os.Rename(f.path, filepath.Join(filepath.Dir(f.path), to)); err != nil {
		f.t.Fatal(err)
	}
	f.write(log("stdout F between rename and reopen"))
	f.file.Close()
	f.open()
}

// expect waits until the follower has seen exactly want, and fails on anything else.
func (f *follower) expect(want string) {
	f.t.Helper()
	for f.seen.String() != want {
		select {
		case s := <-f.out:
			f.seen.WriteString(s)
		case err := <-f.ended:
			f.t.Fatalf("reading ended with %v after %q, want %q", err, f.seen.String(), want)
		}
		if !strings.HasPrefix(want, f.seen.String()) {
			f.t.Fatalf("seen %q, want %q", f.seen.String(), want)
		}
	}
	f.seen.Reset()
}

func TestAFollowerSeesWhatIsWritten(t *testing.T) {
	f := follow(t, log("stdout F one", "stdout F two"), Options{TailLines: 1})
	f.expect("two\n")
	f.write(log("stdout F three"))
	f.expect("three\n")
	f.write(log("stdout P fo"))
	f.expect("fo")
	f.write(log("stdout F ur"))
	f.expect("ur\n")

	// The container ends; what it wrote last is still seen.
	f.write(log("stdout F last"))
	f.running.Store(false)
	f.expect("last\n")
	if err := <-f.ended; err != nil {
		t.Error(err)
	}
}

func TestAFollowerWaitsForTheRestOfATornEntry(t *testing.T) {
	f := follow(t, "", Options{TailLines: -1})
	f.write("2026-01-02T03:04:05Z stdout F he")
	f.write("llo\n")
	f.expect("hello\n")

	// On a full disk the runtime takes the half it wrote back.
	torn := "2026-01-02T03:04:05Z stdout F torn"
	f.write(torn)
	info, err := f.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.file.Truncate(info.Size() - int64(len(torn))); err != nil {
		t.Fatal(err)
	}
	f.write(log("stdout F whole"))
	f.expect("whole\n")
}

func TestAFollowerGoesOnInTheNextFile(t *testing.T) {
	f := follow(t, log("stdout F one"), Options{TailLines: -1})
	f.expect("one\n")
	for i := range 3 {
		f.rotate(fmt.Sprintf("0.log.%d", i))
		f.write(log("stdout F in the next file"))
		f.expect("between rename and reopen\nin the next file\n")
	}
}

func TestAFollowerGoesOnInAnEmptiedFile(t *testing.T) {
	f := follow(t, log("stdout F one", "stdout F two"), Options{TailLines: -1})
	f.expect("one\ntwo\n")
	if err := f.file.Truncate(0); err != nil {
		t.Fatal(err)
	}
	f.write(log("stdout F three"))
	f.expect("three\n")
}

func TestAFollowerEndsWithItsContextOrItsLimit(t *testing.T) {
	f := follow(t, log("stdout F one"), Options{TailLines: -1})
	f.expect("one\n")
	f.cancel()
	if err := <-f.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}

	f = follow(t, log("stdout F one"), Options{TailLines: -1, LimitBytes: 6})
	f.expect("one\n")
	f.write(log("stdout F two"))
	f.expect("tw")
	if err := <-f.ended; err != nil {
		t.Errorf("at its limit: %v", err)
	}
}

func TestAQuietLogIsFollowedUntilItsContainerEnds(t *testing.T) {
	f := follow(t, log("stdout F one"), Options{TailLines: -1})
	f.expect("one\n")
	f.running.Store(false) // and no write tells of it
	if err := <-f.ended; err != nil {
		t.Error(err)
	}
}

func TestAFollowedLogThatIsRemovedEndsWithItsContainer(t *testing.T) {
	f := follow(t, log("stdout F one"), Options{TailLines: -1})
	f.expect("one\n")
	if err := os.RemoveAll(filepath.Dir(f.path)); err != nil {
		t.Fatal(err)
	}
	f.running.Store(false)
	if err := <-f.ended; err != nil {
		t.Error(err)
	}
}
