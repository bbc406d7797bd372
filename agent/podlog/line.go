// Package podlog reads container logs in the CRI's format, as the kubelet's
// API serves them: the whole or a tail, since a time, following what is still
// written, across rotations. It owns nothing: files are the runtime's to write
// and the agent's to rotate.
//
//	line.go   one entry of a log file
//	tail.go   where to begin
//	read.go   reading on, and across rotations
//	print.go  from entries to what a reader sees
//	watch.go  waiting for more
package podlog

import (
	"bytes"
	"errors"
	"time"
)

// entry is one line of a log file: a line of output, or a part of one.
type entry struct {
	time    time.Time
	stream  string
	partial bool   // more of the same line follows
	content []byte // a part of the line it was parsed from
}

var errFormat = errors.New("not an entry in the CRI's log format")

// maxHead bounds what stands before an entry's content: a time with nine
// digits and an offset, a stream, and tags, of which one is defined.
const maxHead = 128

// parse reads "TIME stdout|stderr P|F[:TAG...] CONTENT" without its newline.
func parse(line []byte) (entry, error) {
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return entry{}, errFormat
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return entry{}, errFormat
	}
	// The space after the tags may be missing where there is no content.
	tags, content, _ := bytes.Cut(rest, []byte{' '})
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	e := entry{content: content}
	switch string(stream) {
	case Stdout:
		e.stream = Stdout
	case Stderr:
		e.stream = Stderr
	default:
		return entry{}, errFormat
	}
	switch string(tag) {
	case "F":
	case "P":
		e.partial = true
	default:
		return entry{}, errFormat
	}
	var err error
	if e.time, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return entry{}, errFormat
	}
	return e, nil
}
