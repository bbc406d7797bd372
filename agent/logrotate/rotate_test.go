package logrotate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/observed"
)

// writer is a container and its runtime: it writes numbered lines to the file
// that it has open, whatever that is called. It is all in a directory, so that
// it outlives the process of a test.
type writer struct {
	t   testing.TB
	dir string

	mu    sync.Mutex
	fault func() error // instead of reopening; nil: none
	deaf  bool         // reopens, and does not answer
	calls int
}

func newWriter(t testing.TB, dir string) *writer {
	w := &writer{t: t, dir: dir}
	if _, err := os.Stat(w.open()); err == nil {
		return w
	}
	must(t, os.MkdirAll(filepath.Join(dir, "pod", "app"), 0o755))
	must(t, w.reopen())
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *writer) log() string         { return filepath.Join(w.dir, "pod", "app", "0.log") }
func (w *writer) open() string        { return filepath.Join(w.dir, "open") } // a link to the open file
func (w *writer) count() string       { return filepath.Join(w.dir, "count") }
func (w *writer) at() container       { return container{id: "c", log: w.log(), running: true} }
func (w *writer) ended() container    { return container{id: "c", log: w.log()} }
func (w *writer) asked() int          { w.mu.Lock(); defer w.mu.Unlock(); return w.calls }
func (w *writer) fail(f func() error) { w.mu.Lock(); defer w.mu.Unlock(); w.fault = f }

func (w *writer) ReopenContainerLog(ctx context.Context, _ *runtimeapi.ReopenContainerLogRequest, _ ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	w.mu.Lock()
	w.calls++
	fault, deaf := w.fault, w.deaf
	w.mu.Unlock()
	if fault != nil {
		return nil, fault()
	}
	if err := w.reopen(); err != nil {
		return nil, err
	}
	if deaf {
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

func (w *writer) reopen() error {
	f, err := os.OpenFile(w.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Link(w.log(), w.open()+".new"); err != nil {
		return err
	}
	return os.Rename(w.open()+".new", w.open())
}

// lines are about 1000 bytes.
const perWrite = 40

func (w *writer) write() {
	w.t.Helper()
	n := w.written()
	f, err := os.OpenFile(w.open(), os.O_WRONLY|os.O_APPEND, 0)
	must(w.t, err)
	for range perWrite {
		n++
		_, err := fmt.Fprintf(f, "this is line %010d\n", n)
		must(w.t, err)
	}
	must(w.t, f.Close())
	must(w.t, os.WriteFile(w.count(), fmt.Append(nil, n), 0o600))
}

func (w *writer) written() (n int) {
	data, err := os.ReadFile(w.count())
	if errors.Is(err, fs.ErrNotExist) {
		return 0
	}
	must(w.t, err)
	_, err = fmt.Sscan(string(data), &n)
	must(w.t, err)
	return n
}

// files are the names beside the log, with the stamps by their order.
func (w *writer) files() []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(w.log()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (w *writer) kinds() string {
	var kinds []string
	for _, name := range w.files() {
		kinds = append(kinds, strings.TrimPrefix(filepath.Ext(name), ".2000"))
	}
	return strings.Join(kinds, " ")
}

// check asserts that the container has its log open, that there are no more
// files than most, none unfinished, and that all lines are there once and in
// order; the oldest may be gone where there is no room for them.
func (w *writer) check(most int) {
	w.t.Helper()
	now, err := os.Stat(w.log())
	must(w.t, err)
	open, err := os.Stat(w.open())
	must(w.t, err)
	if !os.SameFile(now, open) {
		w.t.Error("the container does not write to its log")
	}
	list, err := list(w.log())
	must(w.t, err)
	var all strings.Builder
	for _, f := range list {
		switch name := w.log() + "." + f.stamp; {
		case f.unfinished || f.plain == f.archived:
			w.t.Errorf("left: %+v", f)
		case f.archived:
			in, err := os.Open(name + ".gz")
			must(w.t, err)
			z, err := gzip.NewReader(in)
			must(w.t, err)
			_, err = io.Copy(&all, z)
			must(w.t, err)
			must(w.t, in.Close())
		default:
			data, err := os.ReadFile(name)
			must(w.t, err)
			all.Write(data)
		}
	}
	data, err := os.ReadFile(w.log())
	must(w.t, err)
	all.Write(data)
	if len(list)+1 > most {
		w.t.Errorf("%d files, want at most %d", len(list)+1, most)
	}
	last, n := w.written(), strings.Count(all.String(), "\n")
	if n < last && len(list)+1 < most {
		w.t.Errorf("%d lines of %d in %d files", n, last, len(list)+1)
	}
	i := last - n
	for line := range strings.Lines(all.String()) {
		i++
		if want := fmt.Sprintf("this is line %010d\n", i); line != want {
			w.t.Fatalf("line %d is %q", i, line)
		}
	}
}

// containers are what the agent knows of the writer's.
type containers struct {
	log    string
	state  observed.State
	synced chan struct{}
}

func (c *containers) Synced() <-chan struct{} { return c.synced }
func (c *containers) UIDs() []string          { return []string{"uid"} }
func (c *containers) Pod(string) observed.Pod {
	return observed.Pod{Containers: []observed.Container{{ID: "c", LogPath: c.log, State: c.state}, {ID: "without a log", State: observed.Running}}}
}

func settings() Config {
	return Config{MaxBytes: 900, MaxFiles: 4, Workers: 1, Every: 10 * time.Second, Log: slog.New(slog.DiscardHandler)}
}

func rotator(t testing.TB, runtime Runtime) *Rotator {
	t.Helper()
	r, err := New(settings(), runtime)
	must(t, err)
	return r
}

// running runs a Rotator in a bubble of time, after prepare.
func running(t *testing.T, prepare func(*writer, *containers), test func(*writer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWriter(t, t.TempDir())
		c := &containers{log: w.log(), state: observed.Running, synced: make(chan struct{})}
		close(c.synced)
		if prepare != nil {
			prepare(w, c)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- rotator(t, w).Run(ctx, c) }()
		synctest.Wait()
		test(w)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func interval() {
	time.Sleep(10 * time.Second)
	synctest.Wait()
}

func TestALogIsRotatedWhenItIsLarge(t *testing.T) {
	running(t, nil, func(w *writer) {
		for i, want := range []string{
			"log",
			"log 0101-000020",
			"log gz 0101-000040",
			"log gz gz 0101-000100",
			"log gz gz 0101-000120", // the oldest is gone
		} {
			if i > 0 {
				w.write()
				interval()
			}
			interval()
			if got := strings.ReplaceAll(w.kinds(), ".", ""); got != want {
				t.Errorf("files are %q, want %q", got, want)
			}
			w.check(4)
		}
		if got := w.asked(); got != 4 {
			t.Errorf("reopened %d times", got)
		}
		for _, name := range w.files() {
			if info, err := os.Stat(filepath.Join(filepath.Dir(w.log()), name)); err != nil || info.Mode() != 0o640 {
				t.Errorf("%s: %v, %v", name, info.Mode(), err)
			}
		}
	})
}

func TestALogThatIsNotReopenedGetsItsNameBack(t *testing.T) {
	for name, err := range map[string]error{
		"the container has ended":  status.Error(codes.FailedPrecondition, "container c has ended"),
		"the runtime has a fault":  errors.New("no"),
		"the runtime is not there": status.Error(codes.Unavailable, "away"),
	} {
		t.Run(name, func(t *testing.T) {
			running(t, nil, func(w *writer) {
				w.fail(func() error { w.write(); return err })
				w.write()
				interval()
				if got := w.kinds(); got != ".log" {
					t.Errorf("files are %s", got)
				}
				w.check(4)
				w.fail(nil)
				interval()
				w.write()
				if got := w.kinds(); got != ".log 0101-000020" {
					t.Errorf("files are %s", got)
				}
				w.check(4)
			})
		})
	}
}

func TestAnAnswerThatNeverComesLosesNothing(t *testing.T) {
	running(t, func(w *writer, _ *containers) { w.deaf = true }, func(w *writer) {
		w.write()
		interval()
		w.write() // to the new file, which must not be replaced by the old
		interval()
		w.check(4)
		if got := w.files(); len(got) < 2 {
			t.Errorf("files are %v", got)
		}
	})
}

func TestALogThatSomebodyRemovedIsOpenedAnew(t *testing.T) {
	running(t, nil, func(w *writer) {
		must(t, os.Remove(w.log()))
		interval()
		w.check(4)
	})
}

func TestWhatWasInterruptedIsCompletedAtTheStart(t *testing.T) {
	interrupt := func(w *writer) {
		w.write()
		must(t, os.Rename(w.log(), w.log()+".19991231-000000"))
		must(t, os.WriteFile(w.log()+".19991230-000000.tmp", nil, 0o600))
		w.write()
	}
	t.Run("running", func(t *testing.T) {
		running(t, func(w *writer, _ *containers) { interrupt(w) }, func(w *writer) {
			if got := w.files(); len(got) != 2 {
				t.Errorf("files are %v", got)
			}
			w.check(4)
		})
	})
	t.Run("ended", func(t *testing.T) {
		running(t, func(w *writer, c *containers) { interrupt(w); c.state = observed.Exited }, func(w *writer) {
			if got := w.kinds(); got != ".log" {
				t.Errorf("files are %v", got)
			}
			w.check(4)
			interval()
			if got := w.asked(); got != 0 {
				t.Errorf("asked %d times for an ended container", got)
			}
		})
	})
	t.Run("not before the containers are known", func(t *testing.T) {
		running(t, func(w *writer, c *containers) { interrupt(w); c.synced = make(chan struct{}) }, func(w *writer) {
			interval()
			if got := w.files(); len(got) != 2 || w.asked() != 0 {
				t.Errorf("files are %v", got)
			}
		})
	})
}

func TestNothingIsDoneForSmallLogs(t *testing.T) {
	running(t, nil, func(w *writer) {
		before, err := os.Stat(filepath.Dir(w.log()))
		must(t, err)
		for range 100 {
			interval()
		}
		after, err := os.Stat(filepath.Dir(w.log()))
		must(t, err)
		if !before.ModTime().Equal(after.ModTime()) || w.asked() != 0 {
			t.Errorf("the runtime was asked %d times, files are %v", w.asked(), w.files())
		}
	})
}

func TestWhatIsNoFileIsNotRotated(t *testing.T) {
	running(t, func(w *writer, _ *containers) {
		w.write()
		must(t, os.Rename(w.log(), filepath.Join(w.dir, "elsewhere")))
		must(t, os.Symlink(filepath.Join(w.dir, "elsewhere"), w.log()))
		must(t, unix.Mkfifo(w.log()+".20000101-000000", 0o600))
		must(t, os.Symlink("/etc/passwd", w.log()+".19990101-000000"))
	}, func(w *writer) {
		interval()
		if got := w.files(); len(got) != 3 {
			t.Errorf("files are %v", got)
		}
	})
}

func TestALogThatHangsDoesNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newWriter(t, t.TempDir()), newWriter(t, t.TempDir())
		c := settings()
		c.Workers = 2
		r, err := New(c, route{a, b})
		must(t, err)
		a.deaf = true
		a.write()
		b.write()
		r.begin(t.Context(), container{"a", a.log(), true}, r.rotate)
		r.begin(t.Context(), container{"a", a.log(), true}, r.rotate) // under way
		r.begin(t.Context(), container{"b", b.log(), true}, r.rotate)
		synctest.Wait()
		if len(a.files()) != 2 || a.asked() != 1 || len(b.files()) != 2 {
			t.Errorf("files are %v and %v, asked %d", a.files(), b.files(), a.asked())
		}
		r.work.Wait()
	})
}

// route has one writer for the container a, and another.
type route struct{ a, b *writer }

func (r route) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest, opts ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	if req.GetContainerId() == "a" {
		return r.a.ReopenContainerLog(ctx, req, opts...)
	}
	return r.b.ReopenContainerLog(ctx, req, opts...)
}

func TestRemoveLeavesNothing(t *testing.T) {
	w := newWriter(t, t.TempDir())
	r := rotator(t, w)
	for range 4 {
		w.write()
		must(t, r.rotate(t.Context(), w.at()))
	}
	other := filepath.Join(filepath.Dir(w.log()), "10.log")
	must(t, os.WriteFile(other, nil, 0o600))
	must(t, os.WriteFile(w.log()+".made-by-a-shipper", nil, 0o600))
	for range 2 {
		must(t, r.Remove(t.Context(), w.log()))
		if diff := cmp.Diff([]string{"10.log"}, w.files()); diff != "" {
			t.Errorf("left (-want +got):\n%s", diff)
		}
	}
	must(t, r.rotate(t.Context(), w.at())) // by who has not heard of it
	must(t, os.RemoveAll(filepath.Dir(w.log())))
	must(t, r.Remove(t.Context(), w.log()))
	must(t, r.mend(t.Context(), w.ended()))
	if got := w.files(); got != nil {
		t.Errorf("files are %v", got)
	}
}

func TestRemoveGivesUpARotationUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWriter(t, t.TempDir())
		w.deaf = true
		r := rotator(t, w)
		w.write()
		r.begin(t.Context(), w.at(), r.rotate)
		synctest.Wait()
		began := time.Now()
		must(t, r.Remove(t.Context(), w.log()))
		if got := w.files(); got != nil || time.Since(began) != 0 {
			t.Errorf("files are %v after %v", got, time.Since(began))
		}

		// Nor does an archive come later.
		stuck := make(chan struct{})
		r.begin(t.Context(), w.at(), func(context.Context, container) error { <-stuck; return nil })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := r.Remove(ctx, w.log()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("removed while somebody is at work: %v", err)
		}
		close(stuck)
		r.work.Wait()
	})
}

func TestCompressionThatIsGivenUpLeavesTheLog(t *testing.T) {
	w := newWriter(t, t.TempDir())
	w.write()
	old := w.log() + ".20000101-000000"
	must(t, os.Rename(w.log(), old))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pack(ctx, old); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{filepath.Base(old)}, w.files()); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestANegativeSizeSwitchesRotationOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWriter(t, t.TempDir())
		w.write()
		c := settings()
		c.MaxBytes = -1
		r, err := New(c, w)
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := r.Run(ctx, &containers{log: w.log(), state: observed.Running}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if got := w.kinds(); got != ".log" {
			t.Errorf("files are %s", got)
		}
		must(t, r.Remove(t.Context(), w.log()))
	})
}

func TestSettingsThatCannotBe(t *testing.T) {
	for part, change := range map[string]func(*Config){
		"size":    func(c *Config) { c.MaxBytes = 0 },
		"files":   func(c *Config) { c.MaxFiles = 1 },
		"at once": func(c *Config) { c.Workers = 0 },
		"every":   func(c *Config) { c.Every = 0 },
	} {
		c := settings()
		change(&c)
		if _, err := New(c, nil); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: %v", part, err)
		}
	}
}

// BenchmarkALookAt250Pods is what rotation costs while no log is large.
func BenchmarkALookAt250Pods(b *testing.B) {
	w := newWriter(b, b.TempDir())
	r := rotator(b, w)
	b.ReportAllocs()
	for b.Loop() {
		for range 250 {
			r.look(b.Context(), w.at())
		}
	}
}
