// Package crilog writes container output in the CRI's log format:
//
//	2006-01-02T15:04:05.999999999Z07:00 stdout F content
//
// F ends a line, P is a part of one. It owns the log file of one container,
// and keeps lines whole through rotation, a full disk and a bad path.
package crilog

import (
	"bytes"
	"time"
)

const (
	// MaxLine is the content of one entry in bytes, as containerd's CRI
	// plugin has it by default; a longer line becomes several parts.
	MaxLine = 16 << 10
	// batchSize is where Append stops: the bound on what is held in memory.
	batchSize = 64 << 10
)

// Splitter cuts one stream into log entries.
type Splitter struct {
	stream  string // stdout or stderr
	pending []byte // a line without its end; at most MaxLine
}

// NewSplitter returns a Splitter for the stream of that name.
func NewSplitter(stream string) *Splitter { return &Splitter{stream: stream} }

// Append adds to dst the entries that data completes, all stamped with now.
// It stops when dst is large enough for one write; rest is what is still to be
// split then.
func (s *Splitter) Append(dst, data []byte, now time.Time) (out, rest []byte) {
	var stamp [64]byte
	prefix := now.AppendFormat(stamp[:0], time.RFC3339Nano)
	for len(data) > 0 && len(dst) < batchSize {
		room := MaxLine - len(s.pending)
		// One byte more than fits may be the newline of a line that does.
		end := bytes.IndexByte(data[:min(len(data), room+1)], '\n')
		switch {
		case end >= 0:
			dst = s.entry(dst, prefix, 'F', data[:end])
			data = data[end+1:]
		case len(data) > room:
			dst = s.entry(dst, prefix, 'P', data[:room])
			data = data[room:]
		default:
			s.pending = append(s.pending, data...)
			return dst, nil
		}
	}
	return dst, data
}

// Finish adds what is left at the end of the stream: a line that was never
// ended is a part.
func (s *Splitter) Finish(dst []byte, now time.Time) []byte {
	if len(s.pending) == 0 {
		return dst
	}
	return s.entry(dst, now.AppendFormat(nil, time.RFC3339Nano), 'P', nil)
}

// entry writes pending and content as one, and lets go of pending's memory: a
// quiet stream holds none.
func (s *Splitter) entry(dst, prefix []byte, tag byte, content []byte) []byte {
	dst = append(dst, prefix...)
	dst = append(dst, ' ')
	dst = append(dst, s.stream...)
	dst = append(dst, ' ', tag, ' ')
	dst = append(dst, s.pending...)
	dst = append(dst, content...)
	s.pending = nil
	return append(dst, '\n')
}
