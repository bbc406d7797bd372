package podlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// log is a log file's text: each argument is "STREAM TAG CONTENT", a second
// after the one before, or with a leading ! what stands there as it is.
func log(entries ...string) string {
	var b strings.Builder
	at := time.Date(2026, 1, 2, 3, 4, 5, 600000000, time.UTC)
	for _, e := range entries {
		if raw, ok := strings.CutPrefix(e, "!"); ok {
			b.WriteString(raw)
		} else {
			b.WriteString(at.Format(time.RFC3339Nano) + " " + e + "\n")
		}
		at = at.Add(time.Second)
	}
	return b.String()
}

func logFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	three := log("stdout F one", "stderr F two", "stdout F three")
	parts := log("stdout F a", "stdout P b1-", "stdout P b2-", "stdout F b3", "stdout P c1-", "stdout F c2")
	second := func(n int) time.Time { return time.Date(2026, 1, 2, 3, 4, 5+n, 600000000, time.UTC) }
	for _, tt := range []struct {
		name, text string
		opts       Options
		want       string
	}{
		{"an empty log is empty", "", Options{TailLines: -1}, ""},
		{"lines of both streams come as they were written", three, Options{TailLines: -1}, "one\ntwo\nthree\n"},
		{"one stream", three, Options{TailLines: -1, Stream: Stderr}, "two\n"},
		{"timestamps have nine digits", three, Options{TailLines: 1, Timestamps: true}, "2026-01-02T03:04:07.600000000Z three\n"},
		{"since a time, which is included", three, Options{TailLines: -1, Since: second(1)}, "two\nthree\n"},
		{"a limit cuts a line", three, Options{TailLines: -1, LimitBytes: 6}, "one\ntw"},
		{"a limit beyond the end cuts nothing", three, Options{TailLines: -1, LimitBytes: 1000}, "one\ntwo\nthree\n"},
		{"the last two lines", three, Options{TailLines: 2}, "two\nthree\n"},
		{"the last line of a stream", three, Options{TailLines: 1, Stream: Stderr}, "two\n"},
		{"more lines than there are", three, Options{TailLines: 9}, "one\ntwo\nthree\n"},
		{"no lines", three, Options{TailLines: 0}, ""},
		{"parts are joined", parts, Options{TailLines: -1}, "a\nb1-b2-b3\nc1-c2\n"},
		{"a joined line has one timestamp", parts, Options{TailLines: 1, Timestamps: true}, "2026-01-02T03:04:09.600000000Z c1-c2\n"},
		{"a line in parts counts once in a tail", parts, Options{TailLines: 2}, "b1-b2-b3\nc1-c2\n"},
		{"an empty line, with and without the last space", log("stdout F ", "!2026-01-02T03:04:06Z stdout F\n", "stdout F x"), Options{TailLines: -1}, "\n\nx\n"},
		{"spaces of a line are its own", log("stdout F   a b  "), Options{TailLines: -1}, "  a b  \n"},
		{"further tags are skipped", log("stdout F:x:y a"), Options{TailLines: -1}, "a\n"},
		{"a last entry without its newline is shown", log("stdout F a", "!2026-01-02T03:04:06Z stdout F tor"), Options{TailLines: -1}, "a\ntor\n"},
		{"and counts in a tail", log("stdout F a", "!2026-01-02T03:04:06Z stdout F tor"), Options{TailLines: 1}, "tor\n"},
		{"damaged entries are counted in their place", log("stdout F a", "!garbage\n", "!\x00\x00\x00\n", "!2026-01-02T03:04:06Z stdout X y\n", "stdout F b", "!2026"), Options{TailLines: -1},
			"a\n<unreadable log entries left out: 3>\nb\n<unreadable log entries left out: 1>\n"},
		{"damage within a line ends it", log("stdout P a", "!garbage\n", "stdout F b"), Options{TailLines: -1}, "a\n<unreadable log entries left out: 1>\nb\n"},
		{"damage from before the wanted time is not told", log("!garbage\n", "stdout F a", "stdout F b"), Options{TailLines: -1, Since: second(2)}, "b\n"},
		{"an entry longer than the buffer", log("stdout F a", "stdout F "+strings.Repeat("x", 3*block), "stdout F b"), Options{TailLines: 2}, strings.Repeat("x", 3*block) + "\nb\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Read(t.Context(), logFile(t, tt.text), tt.opts, nil, &out); err != nil {
				t.Fatal(err)
			}
			if got := out.String(); got != tt.want {
				t.Errorf("got  %.200q\nwant %.200q", got, tt.want)
			}
		})
	}
}

func TestALogThatIsNotThere(t *testing.T) {
	for _, follow := range []bool{false, true} {
		err := Read(t.Context(), "/nonexistent/0.log", Options{Follow: follow, TailLines: -1}, func() bool { return true }, &bytes.Buffer{})
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("follow %t: %v", follow, err)
		}
	}
}

func TestADamagedFileWithoutALineBreakIsLeftOut(t *testing.T) {
	path := logFile(t, log("stdout F a"))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// A hole, as a power failure leaves it, of more than an entry can have.
	if _, err := f.WriteAt([]byte("\n"+log("stdout F b")), info.Size()+2*maxEntry+3); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Read(t.Context(), path, Options{TailLines: -1}, nil, &out); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "a\n<unreadable log entries left out: 1>\nb\n"; got != want {
		t.Errorf("got %.200q, want %q", got, want)
	}
	if got, err := Tail(path, 1, 100); got != "b\n" || err != nil {
		t.Errorf("tail %q, %v", got, err)
	}
}

func TestTailReadsOnlyTheEnd(t *testing.T) {
	line := strings.Repeat("y", 1000)
	var text strings.Builder
	const n = 2000
	for i := range n {
		fmt.Fprintf(&text, "2026-01-02T03:04:05Z stdout F %d %s\n", i, line)
	}
	path := logFile(t, text.String())
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Every number of lines, so that their beginnings lie anywhere in a block.
	for want := 0; want < n; want += 13 {
		start, err := tailStart(f, int64(want), "")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(text.String()[start:], "\n"); got != want {
			t.Fatalf("the tail of %d lines has %d", want, got)
		}
	}
}

func TestTailKeepsTheLastBytes(t *testing.T) {
	var entries []string
	for i := range 3000 {
		entries = append(entries, fmt.Sprintf("stdout F line %d", i))
	}
	path := logFile(t, log(entries...))
	for _, tt := range []struct {
		lines, bytes int64
		want         string
	}{
		{2, 100, "line 2998\nline 2999\n"},
		{80, 15, "2998\nline 2999\n"},
		{3000, 10, "line 2999\n"},
	} {
		if got, err := Tail(path, tt.lines, tt.bytes); got != tt.want || err != nil {
			t.Errorf("the last %d lines, %d bytes: %q, %v", tt.lines, tt.bytes, got, err)
		}
	}
}

func TestAReaderThatGoesAwayEndsReading(t *testing.T) {
	gone := errors.New("gone")
	err := Read(t.Context(), logFile(t, log("stdout F a")), Options{TailLines: -1}, nil, writer(func([]byte) (int, error) { return 0, gone }))
	if !errors.Is(err, gone) {
		t.Errorf("error %v", err)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func FuzzRead(f *testing.F) {
	f.Add([]byte(log("stdout F one", "stderr P two-", "stderr F three", "!junk\n")), int64(1), uint8(3))
	f.Add([]byte(log("stdout P "+strings.Repeat("a", maxHead), "stdout F b")), int64(2), uint8(0))
	f.Add([]byte("\n\n\x00"), int64(1), uint8(1))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, tail int64, bits uint8) {
		path := filepath.Join(dir, "0.log")
		if err := os.WriteFile(path, text, 0o640); err != nil {
			t.Fatal(err)
		}
		all, err := read(path, Options{TailLines: -1})
		if err != nil {
			t.Fatal(err)
		}
		part, err := read(path, Options{TailLines: tail})
		if err != nil {
			t.Fatal(err)
		}
		// Damage is told in one line for several: such logs have other tails.
		if tail >= 0 && !strings.Contains(all, "<unreadable") {
			if !strings.HasSuffix(all, part) {
				t.Errorf("the tail %q is not the end of %q", part, all)
			}
			if lines := int64(strings.Count(part, "\n")); lines > tail {
				t.Errorf("the tail of %d lines has %d", tail, lines)
			}
		}
		limit := int64(bits) + 1
		cut, err := read(path, Options{TailLines: -1, LimitBytes: limit})
		if err != nil || cut != all[:min(int64(len(all)), limit)] {
			t.Errorf("%d bytes are %q, %v; the log is %q", limit, cut, err, all)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("2026-01-02T03:04:05.6Z stdout F hello"))
	f.Add([]byte("2026-01-02T03:04:05+01:00 stderr P:x "))
	f.Add([]byte("  stdout F"))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := parse(line)
		if err == nil && (e.time.IsZero() && !bytes.HasPrefix(line, []byte("0001-")) || !bytes.HasSuffix(line, e.content)) {
			t.Errorf("parse(%q) = %+v", line, e)
		}
	})
}

func read(path string, opts Options) (string, error) {
	var out bytes.Buffer
	err := Read(context.Background(), path, opts, nil, &out)
	return out.String(), err
}
