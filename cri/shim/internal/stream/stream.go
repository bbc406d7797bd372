// Package stream moves a container's output from its pipe or pty to the log
// and to those attached to it. It never makes the container wait for the log,
// and for who is attached no longer than attachPatience.
package stream

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/berth-io/berth/cri/shim/internal/crilog"
	"golang.org/x/sys/unix"
)

const (
	readSize = 32 << 10
	// attachBuffer is how far an attached reader may fall behind, in bytes. It
	// is the kernel's pipe, so it takes memory only while it is filled.
	attachBuffer = 1 << 20
	// attachPatience is how long the container waits for a reader that is so
	// far behind and takes nothing. From then on, until there is room for a
	// whole read, what does not fit is lost to that reader, and to it alone.
	attachPatience = 5 * time.Second
	// pipeMax bounds what can be in a container's pipe at one time.
	pipeMax = 64 << 10
)

// Buffers are shared by all streams of a shim, and used only while there is
// something to read: a quiet container holds none. The zero value is ready.
type Buffers struct {
	read, log sync.Pool
}

func (b *Buffers) getRead() *[readSize]byte {
	if buf, ok := b.read.Get().(*[readSize]byte); ok {
		return buf
	}
	return new([readSize]byte)
}

func (b *Buffers) getLog() *[]byte {
	if buf, ok := b.log.Get().(*[]byte); ok {
		return buf
	}
	return new([]byte)
}

// Output is one stream of one container.
type Output struct {
	file  *os.File
	bufs  *Buffers
	raw   syscall.RawConn
	split *crilog.Splitter
	log   *crilog.File // nil: no log
	// patience is attachPatience, but for tests.
	patience time.Duration

	drained chan struct{} // closed once everything up to Drain was handled
	done    chan struct{} // closed at the end of the stream

	mu       sync.Mutex
	attached []reader // but for those that Run is writing to
	ended    bool
}

// reader is somebody attached.
type reader struct {
	fd   int  // write end of a pipe, non-blocking
	lost bool // did not read for attachPatience; not waited for
}

// New makes an Output that reads from file, which it takes over. The stream's
// name is stdout or stderr. log may be nil.
func New(name string, file *os.File, log *crilog.File, bufs *Buffers) (*Output, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("container's %s: %w", name, err)
	}
	return &Output{
		file: file, raw: raw, bufs: bufs, split: crilog.NewSplitter(name), log: log,
		patience: attachPatience, drained: make(chan struct{}), done: make(chan struct{}),
	}, nil
}

// Run copies until the last writer has closed the stream, or Close.
func (o *Output) Run() {
	for end := false; !end; {
		var got chunk
		err := o.raw.Read(func(fd uintptr) bool {
			got = o.readNow(fd)
			return got.err != unix.EAGAIN
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			end = o.drain()
		case err != nil:
			end = true
		default:
			end = o.handle(got)
		}
	}
	if o.log != nil {
		if entry := o.split.Finish(nil, time.Now()); len(entry) > 0 {
			o.log.Write(entry)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	for _, r := range o.attached {
		_ = unix.Close(r.fd)
	}
	o.attached = nil
	close(o.done)
}

// chunk is the outcome of one read. buf is nil when err is set.
type chunk struct {
	buf *[readSize]byte
	n   int
	err error
}

func (o *Output) readNow(fd uintptr) chunk {
	buf := o.bufs.getRead()
	for {
		n, err := unix.Read(int(fd), buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			o.bufs.read.Put(buf)
			return chunk{err: err}
		}
		return chunk{buf: buf, n: n}
	}
}

// handle delivers a chunk and reports the end of the stream. A pty has EIO
// for it, when its last user has gone.
func (o *Output) handle(c chunk) (end bool) {
	if c.err != nil {
		return true
	}
	defer o.bufs.read.Put(c.buf)
	if c.n == 0 {
		return true
	}
	data := c.buf[:c.n]
	if o.log != nil {
		o.writeLog(data)
	}
	o.copyToAttached(data)
	return false
}

func (o *Output) writeLog(data []byte) {
	batch := o.bufs.getLog()
	defer o.bufs.log.Put(batch)
	now := time.Now()
	for len(data) > 0 {
		*batch, data = o.split.Append((*batch)[:0], data, now)
		if len(*batch) > 0 {
			o.log.Write(*batch)
		}
	}
}

// copyToAttached forgets readers that have gone. Others may attach meanwhile.
func (o *Output) copyToAttached(data []byte) {
	o.mu.Lock()
	readers := o.attached
	o.attached = nil
	o.mu.Unlock()
	if len(readers) == 0 {
		return
	}
	kept := readers[:0]
	for _, r := range readers {
		if r.deliver(data, o.patience) {
			kept = append(kept, r)
		}
	}
	o.mu.Lock()
	o.attached = append(kept, o.attached...)
	o.mu.Unlock()
}

// deliver writes data, or what there is room for when the reader is not waited
// for. It closes the pipe of a reader that has gone, and reports false then.
func (r *reader) deliver(data []byte, patience time.Duration) (here bool) {
	for len(data) > 0 {
		n, err := unix.Write(r.fd, data)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && !r.lost && r.waitForRoom(patience):
		case err == unix.EAGAIN:
			r.lost = true
			return true
		case err != nil:
			_ = unix.Close(r.fd)
			return false
		default:
			data = data[n:]
		}
	}
	r.lost = false
	return true
}

// waitForRoom reports false when there is none for so long. A reader
// that has gone counts as room: the next write finds out.
func (r *reader) waitForRoom(patience time.Duration) bool {
	for until := time.Now().Add(patience); ; {
		poll := []unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll, int(max(0, time.Until(until))/time.Millisecond))
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

// Attach returns the read end of a pipe that gets a copy of all output from
// now on; it is the caller's. At the end of the stream it reads as empty.
func (o *Output) Attach() (fd int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, fmt.Errorf("make pipe to attach: %w", err)
	}
	// Refused when the user's pipes hold too much already: the default of
	// 64 KiB does too.
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, attachBuffer)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.forgetGone()
	if o.ended {
		_ = unix.Close(p[1])
	} else {
		o.attached = append(o.attached, reader{fd: p[1]})
	}
	return p[0], nil
}

// forgetGone closes the pipes whose reader has gone: a container that says
// nothing would keep them forever.
func (o *Output) forgetGone() {
	kept := o.attached[:0]
	for _, r := range o.attached {
		poll := []unix.PollFd{{Fd: int32(r.fd)}}
		if n, err := unix.Poll(poll, 0); err == nil && n == 1 && poll[0].Revents&unix.POLLERR != 0 {
			_ = unix.Close(r.fd)
			continue
		}
		kept = append(kept, r)
	}
	o.attached = kept
}

// Drain returns when everything that was in the pipe at the call has been
// handled, though some process may still hold it open; it is then read on.
// It gives up after patience: a log on a hung file system may never be done.
func (o *Output) Drain(patience time.Duration) {
	if err := o.file.SetReadDeadline(time.Unix(1, 0)); err != nil {
		return // closed
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-o.drained:
	case <-o.done:
	case <-timer.C:
	}
}

// drain handles what is in the pipe without waiting for more.
func (o *Output) drain() (end bool) {
	for left := pipeMax; left > 0 && !end; left -= readSize {
		var got chunk
		if err := o.raw.Control(func(fd uintptr) { got = o.readNow(fd) }); err != nil {
			end = true
		} else if got.err == unix.EAGAIN {
			break
		} else {
			end = o.handle(got)
		}
	}
	if !end {
		end = o.file.SetReadDeadline(time.Time{}) != nil
	}
	select {
	case <-o.drained:
	default:
		close(o.drained)
	}
	return end
}

// Close stops reading, whoever holds the other end.
func (o *Output) Close() {
	_ = o.file.Close()
	<-o.done
}
