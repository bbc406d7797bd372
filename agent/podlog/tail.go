package podlog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
)

// block is how much is read at a time while looking for the tail, in bytes.
const block = 64 << 10

// tailStart finds where the last n lines of output of a stream, or of both,
// begin: lines, not entries, so a line in parts counts once. It reads from the
// end, as much as it needs, and never more than a block at a time.
func tailStart(f *os.File, n int64, stream string) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("find the end of the log: %w", err)
	}
	size := info.Size()
	if n <= 0 {
		return size, nil
	}
	// Entries are visited from the last to the first. The n-th line from the
	// end begins behind the end of the line before it.
	buf := make([]byte, block+maxHead)
	next := size // where the entry visited before begins
	for end := size; end > 0; {
		start := max(0, end-block)
		// The head of an entry may reach into the block after.
		read, err := f.ReadAt(buf[:end-start+maxHead], start)
		if err != nil && err != io.EOF {
			return 0, fmt.Errorf("read the log backwards: %w", err)
		}
		if int64(read) < end-start { // its writer has taken a torn entry back
			end = start + int64(read)
			size, next = end, end
		}
		for i := int(end-start) - 1; i >= -1; i-- {
			if i = bytes.LastIndexByte(buf[:i+1], '\n'); i < 0 && start > 0 {
				break // its beginning is in the block before
			}
			at := start + int64(i) + 1
			if at >= size {
				continue // behind the last newline is nothing
			}
			if endsLine(buf[i+1:min(read, i+1+maxHead)], stream) {
				if n == 0 {
					return next, nil
				}
				n--
			}
			next = at
			if i < 0 {
				return 0, nil
			}
		}
		end = start
	}
	return 0, nil
}

// endsLine tells whether a line of the stream's output ends with the entry
// that begins with head. One that cannot be read is seen as a line, too.
func endsLine(head []byte, stream string) bool {
	head, _, _ = bytes.Cut(head, []byte{'\n'})
	e, err := parse(head)
	if err != nil {
		return true
	}
	return !e.partial && (stream == "" || e.stream == stream)
}

// Tail returns the end of what a container has written: at most maxLines lines
// and maxBytes bytes of it.
func Tail(path string, maxLines, maxBytes int64) (string, error) {
	end := lastBytes{max: int(maxBytes)}
	if err := Read(context.Background(), path, Options{TailLines: maxLines}, nil, &end); err != nil {
		return "", err
	}
	return string(end.bytes()), nil
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	max int
	buf []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p[max(0, len(p)-l.max):]...)
	if len(l.buf) > 4*l.max {
		l.buf = append(l.buf[:0], l.bytes()...)
	}
	return len(p), nil
}

func (l *lastBytes) bytes() []byte { return l.buf[max(0, len(l.buf)-l.max):] }
