package stream

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/cri/shim/internal/crilog"
	"golang.org/x/sys/unix"
)

const patience = time.Minute // a test that needs it has failed

type fixture struct {
	out    *Output
	writer *os.File // the container's end
	path   string
}

func newFixture(t *testing.T) fixture {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	log, err := crilog.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		t.Fatal(err)
	}
	out, err := New("stdout", os.NewFile(uintptr(p[0]), "stdout"), log, new(Buffers))
	if err != nil {
		t.Fatal(err)
	}
	go out.Run()
	f := fixture{out, os.NewFile(uintptr(p[1]), "container"), path}
	t.Cleanup(func() {
		_ = f.writer.Close()
		out.Close()
		log.Close()
	})
	return f
}

func (f fixture) say(t *testing.T, text string) {
	t.Helper()
	if _, err := f.writer.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func (f fixture) lines(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

func attach(t *testing.T, o *Output) *os.File {
	t.Helper()
	fd, err := o.Attach()
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "attached")
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestDrainReturnsWithAllOutputThoughThePipeStaysOpen(t *testing.T) {
	for range 50 {
		f := newFixture(t)
		f.say(t, strings.Repeat("line\n", 5000))
		f.out.Drain(patience)
		if n := f.lines(t); n != 5000 {
			t.Fatalf("%d lines after draining, want 5000", n)
		}
		f.say(t, "later\n")
		_ = f.writer.Close()
		<-f.out.done
		if n := f.lines(t); n != 5001 {
			t.Fatalf("%d lines in the end, want 5001", n)
		}
	}
}

func TestDrainOfAStreamThatHasEndedReturns(t *testing.T) {
	f := newFixture(t)
	f.say(t, "a")
	_ = f.writer.Close()
	<-f.out.done
	f.out.Drain(patience)
	if n := f.lines(t); n != 1 {
		t.Errorf("%d entries, want the part at the end", n)
	}
}

func TestAWriterThatNeverStopsDoesNotHoldDrainUp(t *testing.T) {
	f := newFixture(t)
	stop := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = f.writer.WriteString("again\n") // the pipe has a reader until the end of the test
			}
		}
	}()
	f.out.Drain(patience)
	close(stop)
	<-stopped
}

func TestAnAttachedReaderGetsACopyUntilTheEnd(t *testing.T) {
	f := newFixture(t)
	reader := attach(t, f.out)
	f.say(t, "one\ntwo\n")
	f.out.Drain(patience)
	_ = f.writer.Close()
	if got, err := io.ReadAll(reader); string(got) != "one\ntwo\n" {
		t.Errorf("got %q, %v", got, err)
	}
	late := attach(t, f.out)
	<-f.out.done
	if got, err := io.ReadAll(late); len(got) != 0 || err != nil {
		t.Errorf("attached after the end: %q, %v", got, err)
	}
}

func TestReadersThatHaveGoneAreForgotten(t *testing.T) {
	f := newFixture(t)
	for range 10 {
		_ = attach(t, f.out).Close() // and the container says nothing
	}
	attach(t, f.out)
	f.out.mu.Lock()
	defer f.out.mu.Unlock()
	if n := len(f.out.attached); n != 1 {
		t.Errorf("%d readers are kept, want 1", n)
	}
}

func TestAReaderThatComesLateLosesNothing(t *testing.T) {
	f := newFixture(t)
	f.out.patience = patience
	reader := attach(t, f.out)
	text := strings.Repeat("line\n", 3*attachBuffer/5)
	said := make(chan error, 1)
	go func() {
		_, err := f.writer.WriteString(text) // more than fits anywhere
		said <- err
		_ = f.writer.Close()
	}()
	for f.lines(t) < attachBuffer/5 {
		time.Sleep(time.Millisecond)
	}
	got, err := io.ReadAll(reader)
	if string(got) != text {
		t.Errorf("got %d bytes of %d, %v", len(got), len(text), err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
}

func TestAReaderThatTakesNothingHoldsTheContainerUpOnce(t *testing.T) {
	f := newFixture(t)
	f.out.patience = 10 * time.Millisecond
	stuck, quick := attach(t, f.out), attach(t, f.out)
	text := strings.Repeat("line\n", 3*attachBuffer/5)
	go func() {
		_, _ = f.writer.WriteString(text)
		_ = f.writer.Close()
	}()
	got, err := io.ReadAll(quick)
	if string(got) != text {
		t.Errorf("the other reader got %d bytes of %d, %v", len(got), len(text), err)
	}
	<-f.out.done
	if n := f.lines(t); n != strings.Count(text, "\n") {
		t.Errorf("%d lines in the log of %d", n, strings.Count(text, "\n"))
	}
	if got, err := io.ReadAll(stuck); err != nil || !strings.HasPrefix(text, string(got)) {
		t.Errorf("the stuck reader got %d bytes, %v", len(got), err)
	}
}
