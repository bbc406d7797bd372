package podlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Streams of a container.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Options say what of a log is wanted.
type Options struct {
	Follow     bool
	Stream     string    // Stdout or Stderr; empty: both, as they came
	Timestamps bool      // each line with its time, RFC 3339
	Since      time.Time // zero: from the beginning
	TailLines  int64     // lines of Stream; negative: all
	LimitBytes int64     // zero: no limit
}

// Running tells whether the container still runs: a followed log ends with it.
type Running func() bool

// Read writes a log to out until its end, or with opts.Follow until the
// container has ended and all it wrote is out, or ctx ends; ctx and running are
// used with Follow only. A container whose previous run is wanted has another
// path. The error of a log that is not there wraps fs.ErrNotExist.
//
// A follower reads the rotated file to its end before it goes on with its
// successor. Only one that is slower than two rotations misses what is between.
func Read(ctx context.Context, path string, opts Options, running Running, out io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	r := &reader{file: f, printer: newPrinter(out, opts)}
	defer func() { r.file.Close() }()
	if opts.TailLines >= 0 {
		if r.offset, err = tailStart(f, opts.TailLines, opts.Stream); err != nil {
			return err
		}
	}
	if opts.Follow {
		err = r.follow(ctx, path, running)
	} else {
		err = r.end()
	}
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// reader prints a log file from an offset on.
type reader struct {
	file    *os.File
	printer *printer
	offset  int64 // behind the last entry that was printed
	buf     []byte
	lost    bool // within an entry that is longer than maxEntry
}

// maxEntry bounds one entry, in bytes. The CRI writes at most 16 KiB of a line
// into one, unless a runtime is told otherwise; what is longer than this is no
// log but a damaged file.
const maxEntry = 16 << 20

// follow reads until the container has ended.
func (r *reader) follow(ctx context.Context, path string, running Running) error {
	w, err := watch(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		// Both are asked before reading: what is written later is read the
		// next time, and nothing is written to a file that has a successor.
		alive := running()
		next, err := r.successor(path)
		if err != nil {
			return err
		}
		if next == nil && alive {
			if err := r.read(); err != nil {
				return err
			}
			if err := w.wait(ctx); err != nil {
				return err
			}
			continue
		}
		if err := r.end(); err != nil || next == nil {
			return err
		}
		r.file.Close()
		r.file, r.offset, r.lost = next, 0, false
	}
}

// successor opens the file that has taken the place of the one being read; nil
// if none has. A file that became shorter than what has been read was emptied to
// save space, and is read from its beginning.
func (r *reader) successor(path string) (*os.File, error) {
	old, err := r.file.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at the log: %w", err)
	}
	if old.Size() < r.offset {
		r.offset, r.lost = 0, false
	}
	now, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // between rename and reopen, or removed with its container
	}
	if err != nil {
		return nil, fmt.Errorf("look for a new log: %w", err)
	}
	if os.SameFile(now, old) {
		return nil, nil
	}
	next, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the new log: %w", err)
	}
	return next, nil
}

// read prints the whole entries up to the end of the file. Of an entry without
// its newline nothing is kept: its writer may take it back.
func (r *reader) read() error {
	_, err := r.entries()
	return r.printer.flush(err)
}

// end prints everything up to the end of the file: nobody will complete the
// last entry.
func (r *reader) end() error {
	rest, err := r.entries()
	if err == nil && len(rest) > 0 && !r.lost {
		err = r.printer.print(rest)
	}
	return r.printer.flush(err)
}

// entries prints whole entries and returns what is left of the file.
func (r *reader) entries() (rest []byte, err error) {
	if r.buf == nil {
		r.buf = make([]byte, block)
	}
	for {
		n, readErr := r.file.ReadAt(r.buf, r.offset)
		if readErr != nil && readErr != io.EOF {
			return nil, fmt.Errorf("read the log: %w", readErr)
		}
		done := 0
		for {
			i := bytes.IndexByte(r.buf[done:n], '\n')
			if i < 0 {
				break
			}
			line := r.buf[done : done+i]
			done += i + 1
			if r.lost {
				r.lost = false
				continue
			}
			if err := r.printer.print(line); err != nil {
				return nil, err
			}
		}
		r.offset += int64(done)
		if readErr == io.EOF {
			return r.buf[done:n], nil
		}
		if done == 0 { // the entry is longer than the buffer
			r.grow()
		}
	}
}

// grow makes room for an entry that does not fit, or gives it up.
func (r *reader) grow() {
	if len(r.buf) < maxEntry && !r.lost {
		r.buf = make([]byte, 2*len(r.buf))
		return
	}
	if !r.lost {
		r.printer.unreadable++
	}
	r.lost = true
	r.offset += int64(len(r.buf))
}
