// Package podlog reads container logs in the CRI's format, as the kubelet's
// API serves them: the whole or a tail, since a time, following what is still
// written, across rotations. It owns nothing: files are the shim's to write
// and the agent's to rotate.
//
//	line.go    one line of a log file
//	tail.go    where to begin
//	follow.go  reading on
package podlog

import (
	"bytes"
	"errors"
	"time"
)

// entry is one line of a log file: a line of output, or a part of one.
type entry struct {
	time    time.Time
	stderr  bool
	partial bool // more of the same line follows
	content []byte
}

var errFormat = errors.New("not a line in the CRI's log format")

// parse reads "TIME stdout|stderr F|P[:...] CONTENT" without its newline.
// content is a part of line.
func parse(line []byte) (entry, error) {
	var e entry
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return e, errFormat
	}
	var err error
	if e.time, err = time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
		return e, errFormat
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return e, errFormat
	}
	switch string(stream) {
	case "stdout":
	case "stderr":
		e.stderr = true
	default:
		return e, errFormat
	}
	tags, content, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return e, errFormat
	}
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	switch string(tag) {
	case "F":
	case "P":
		e.partial = true
	default:
		return e, errFormat
	}
	e.content = content
	return e, nil
}
