package podlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Options say what of a log is wanted.
type Options struct {
	Follow     bool
	Timestamps bool      // each line with its time, RFC 3339
	Since      time.Time // zero: from the beginning
	TailLines  int64     // negative: all
	LimitBytes int64     // zero: no limit
}

// Running tells whether the container still runs: a followed log ends with it.
type Running func() bool

// errLimit ends reading when Options.LimitBytes are written.
var errLimit = errors.New("limit reached")

// checkRunning is how often a quiet log's container is looked at. Its last
// lines do not wait for that: the kernel tells of every write.
const checkRunning = 500 * time.Millisecond

// Read writes a log to out until its end, or with Follow until the container
// has ended and all it wrote is out, or until ctx ends.
func Read(ctx context.Context, path string, opts Options, running Running, out io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer func() { f.Close() }()
	if opts.TailLines >= 0 {
		start, err := tailStart(f, opts.TailLines)
		if err != nil {
			return err
		}
		if _, err := f.Seek(start, io.SeekStart); err != nil {
			return fmt.Errorf("go to the log's last lines: %w", err)
		}
	}
	p := &printer{out: bufio.NewWriterSize(out, 32<<10), opts: opts}
	if opts.LimitBytes > 0 {
		p.left, p.limited = opts.LimitBytes, true
	}
	if !opts.Follow {
		return ended(copyAll(f, p))
	}
	w, err := watch(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		// Asked before reading: what is written later is read the next time.
		alive := running()
		if err := copyAll(f, p); err != nil {
			return ended(err)
		}
		next, err := rotated(f, path)
		if err != nil {
			return err
		}
		if next != nil { // the old file has been read to its end, above and once more here
			if err := copyAll(f, p); err != nil {
				return ended(err)
			}
			f.Close()
			f = next
			continue
		}
		if !alive {
			return nil
		}
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
}

func ended(err error) error {
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

// copyAll prints whole lines up to the end of the file; half a line stays for
// the next time.
func copyAll(f *os.File, p *printer) error {
	err := copyLines(f, p)
	if flushErr := p.out.Flush(); flushErr != nil && (err == nil || errors.Is(err, errLimit)) {
		err = flushErr
	}
	return err
}

func copyLines(f *os.File, p *printer) error {
	r := bufio.NewReaderSize(f, 32<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				if _, err := f.Seek(-int64(len(line)), io.SeekCurrent); err != nil {
					return fmt.Errorf("go back to the last whole line: %w", err)
				}
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the log: %w", err)
		}
		if err := p.print(line[:len(line)-1]); err != nil {
			return err
		}
	}
}

// rotated returns the file that has taken the place of f, if one has.
func rotated(f *os.File, path string) (*os.File, error) {
	now, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // between rename and reopen
	}
	if err != nil {
		return nil, fmt.Errorf("look for a new log: %w", err)
	}
	old, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at the log: %w", err)
	}
	if os.SameFile(now, old) {
		return nil, nil
	}
	next, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the new log: %w", err)
	}
	return next, nil
}

// printer writes the content of entries.
type printer struct {
	out     *bufio.Writer
	opts    Options
	left    int64
	limited bool
	middle  bool // the last entry was a part of a line
}

func (p *printer) print(line []byte) error {
	e, err := parse(line)
	if err != nil {
		// Shown as it is: it may be what the reader looks for.
		e = entry{content: line}
	} else if e.time.Before(p.opts.Since) {
		return nil
	}
	var out bytes.Buffer
	if p.opts.Timestamps && !p.middle && err == nil {
		out.WriteString(e.time.Format(time.RFC3339Nano))
		out.WriteByte(' ')
	}
	out.Write(e.content)
	if !e.partial {
		out.WriteByte('\n')
	}
	p.middle = e.partial
	text := out.Bytes()
	if p.limited && int64(len(text)) > p.left {
		text = text[:p.left]
	}
	if _, err := p.out.Write(text); err != nil {
		return err
	}
	if p.left -= int64(len(text)); p.limited && p.left <= 0 {
		return errLimit
	}
	return nil
}

// watcher wakes a follower when something happens in the log's directory.
type watcher struct {
	file *os.File
	raw  syscallConn
}

type syscallConn interface {
	Read(func(fd uintptr) bool) error
}

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the log: %w", err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE_SELF); err != nil {
		file.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	return &watcher{file: file, raw: raw}, nil
}

func (w *watcher) Close() error { return w.file.Close() }

// wait returns when something has happened, or it is time to see whether the
// container still runs.
func (w *watcher) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := w.file.SetReadDeadline(time.Now().Add(checkRunning)); err != nil {
		return fmt.Errorf("wait for the log: %w", err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var buf [4096]byte
	var readErr error
	err := w.raw.Read(func(fd uintptr) bool {
		_, readErr = unix.Read(int(fd), buf[:])
		return readErr != unix.EAGAIN && readErr != unix.EINTR
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("wait for the log: %w", err)
	}
	return readErr
}
