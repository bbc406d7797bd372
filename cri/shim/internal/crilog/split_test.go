package crilog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)

// split gives all of chunks to a Splitter, as the stream does.
func split(chunks ...[]byte) string {
	s := NewSplitter("stdout")
	var out, batch []byte
	for _, data := range chunks {
		for len(data) > 0 {
			batch, data = s.Append(batch[:0], data, now)
			out = append(out, batch...)
		}
	}
	return string(s.Finish(out, now))
}

func TestAStreamIsSplitIntoEntries(t *testing.T) {
	entry := func(tag, content string) string {
		return "2026-02-03T04:05:06.000000789Z stdout " + tag + " " + content + "\n"
	}
	full := strings.Repeat("x", MaxLine)
	for _, c := range []struct {
		name   string
		chunks []string
		want   string
	}{
		{"nothing", nil, ""},
		{"a line", []string{"a\n"}, entry("F", "a")},
		{"an empty line", []string{"\n"}, entry("F", "")},
		{"two lines at once", []string{"a\nb\n"}, entry("F", "a") + entry("F", "b")},
		{"a line in three reads", []string{"a", "b", "c\n"}, entry("F", "abc")},
		{"a carriage return is content", []string{"a\r\n"}, entry("F", "a\r")},
		{"a line without an end is a part", []string{"a\nb"}, entry("F", "a") + entry("P", "b")},
		{"the longest line is not cut", []string{full + "\n"}, entry("F", full)},
		{"nor if its end comes later", []string{full, "\n"}, entry("F", full)},
		{"one byte more is cut", []string{full + "y\n"}, entry("P", full) + entry("F", "y")},
		{"also across reads", []string{full, "y", "\n"}, entry("P", full) + entry("F", "y")},
		{"and at the end of the stream", []string{full + full}, entry("P", full) + entry("P", full)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var chunks [][]byte
			for _, s := range c.chunks {
				chunks = append(chunks, []byte(s))
			}
			if got := split(chunks...); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestABatchIsBoundedHoweverShortTheLinesAre(t *testing.T) {
	s := NewSplitter("stderr")
	out, rest := s.Append(nil, bytes.Repeat([]byte("\n"), 100_000), now)
	if len(out) > batchSize+MaxLine+100 || len(rest) == 0 {
		t.Errorf("a batch of %d bytes, %d left", len(out), len(rest))
	}
}

func TestAQuietStreamHoldsNoMemory(t *testing.T) {
	s := NewSplitter("stdout")
	s.Append(nil, bytes.Repeat([]byte("x"), 3*MaxLine), now)
	s.Append(nil, []byte("\n"), now)
	if s.pending != nil {
		t.Errorf("holds %d bytes", cap(s.pending))
	}
}

// join undoes split.
func join(t *testing.T, log string) (content string) {
	t.Helper()
	for line := range strings.Lines(log) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 || f[1] != "stdout" || (f[2] != "F" && f[2] != "P") || len(f[3]) > MaxLine {
			t.Fatalf("bad entry %.100q", line)
		}
		content += f[3]
		if f[2] == "F" {
			content += "\n"
		}
	}
	return content
}

func FuzzSplitLosesNothing(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte(strings.Repeat("x", MaxLine)+"\n\n"), MaxLine-1)
	f.Add(bytes.Repeat([]byte("\n"), 5000), 4096)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		size = max(1, min(size, 64<<10))
		if len(data)/size > 1000 {
			t.Skip("too many chunks to be quick")
		}
		var chunks [][]byte
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			chunks = append(chunks, rest[:n])
			rest = rest[n:]
		}
		if got := join(t, split(chunks...)); got != string(data) {
			t.Errorf("got %q, want %q", got, data)
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	var data []byte
	for i := 0; len(data) < 32<<10; i++ {
		data = fmt.Appendf(data, "line %d of a program that says a lot\n", i)
	}
	s := NewSplitter("stdout")
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	var out []byte
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			out, rest = s.Append(out[:0], rest, now)
		}
	}
}
