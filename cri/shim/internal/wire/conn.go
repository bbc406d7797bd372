// Package wire is the protocol between the daemon and a shim: JSON messages
// behind a four-byte length on a unix stream socket, with file descriptors
// beside them. It knows nothing of containers; the client and the server do.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage bounds a frame in bytes. The largest is an exec whose
	// environment is near the kernel's limit for execve.
	MaxMessage = 4 << 20
	// MaxFiles bounds the descriptors beside one message.
	MaxFiles = 3

	headerSize   = 4
	writeTimeout = 10 * time.Second
)

// Conn is one connection. Read is for one goroutine, Write for any number.
// It works on the bare descriptor: package net would cost every shim its
// resolver's memory.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	writing sync.Mutex
}

// NewConn takes over a connected unix stream socket, closing it on error.
func NewConn(fd int) (*Conn, error) {
	file, err := Pollable(fd, "shim socket")
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("shim socket: %w", err)
	}
	return &Conn{file: file, raw: raw}, nil
}

// Pollable turns a descriptor into a file whose reads and writes park a
// goroutine, not a thread. It closes fd on error.
func Pollable(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make %s non-blocking: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Close ends the connection; a Read in progress returns.
func (c *Conn) Close() error { return c.file.Close() }

// Write sends m and copies of the descriptors fds, which stay the caller's.
// A peer that does not read for ten seconds is an error: the connection is of
// no more use then.
func (c *Conn) Write(m Message, fds ...int) error {
	m.Files = len(fds)
	frame, err := encode(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err := c.file.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("shim socket: %w", err)
	}
	sent, err := c.sendmsg(frame, rights)
	if err == nil && sent < len(frame) {
		_, err = c.file.Write(frame[sent:])
	}
	if err != nil {
		return fmt.Errorf("send %d bytes: %w", len(frame), err)
	}
	return nil
}

func (c *Conn) sendmsg(p, rights []byte) (n int, err error) {
	waitErr := c.raw.Write(func(fd uintptr) bool {
		n, err = unix.SendmsgN(int(fd), p, rights, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	if waitErr != nil {
		return 0, waitErr
	}
	return n, err
}

// Read returns the next message and the files that came with it, which are
// the caller's to close. It returns io.EOF when the peer has gone.
func (c *Conn) Read() (Message, []*os.File, error) {
	var header [headerSize]byte
	fds, err := c.recvHeader(header[:])
	if err != nil {
		closeAll(fds)
		return Message{}, nil, err
	}
	m, err := decode(c.file, header)
	if err == nil && m.Files != len(fds) {
		err = fmt.Errorf("message names %d files, %d came", m.Files, len(fds))
	}
	if err != nil {
		closeAll(fds)
		return Message{}, nil, err
	}
	files := make([]*os.File, 0, len(fds))
	for i, fd := range fds {
		f, err := Pollable(fd, "shim stream")
		if err != nil {
			closeAll(fds[i+1:])
			for _, f := range files {
				_ = f.Close()
			}
			return Message{}, nil, err
		}
		files = append(files, f)
	}
	return m, files, nil
}

// recvHeader reads exactly the header. The kernel hands over descriptors with
// the first byte of the sendmsg they came in, so they are all here.
func (c *Conn) recvHeader(p []byte) (fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	for got := 0; got < len(p); {
		var n, oobn, flags int
		var rerr error
		if err := c.raw.Read(func(fd uintptr) bool {
			n, oobn, flags, _, rerr = unix.Recvmsg(int(fd), p[got:], oob, unix.MSG_CMSG_CLOEXEC)
			return rerr != unix.EAGAIN && rerr != unix.EINTR
		}); err != nil {
			return fds, err
		}
		if rerr == unix.ECONNRESET || (rerr == nil && n == 0) {
			if got > 0 {
				return fds, io.ErrUnexpectedEOF
			}
			return fds, io.EOF
		}
		if rerr != nil {
			return fds, fmt.Errorf("receive: %w", rerr)
		}
		more, err := parseRights(oob[:oobn])
		fds = append(fds, more...)
		if err != nil {
			return fds, err
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return fds, fmt.Errorf("more than %d files beside a message", MaxFiles)
		}
		got += n
	}
	return fds, nil
}

func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	for i := range cmsgs {
		more, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			return fds, fmt.Errorf("parse passed files: %w", err)
		}
		fds = append(fds, more...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func encode(m Message) ([]byte, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s message: %w", m.Method, err)
	}
	if len(text) > MaxMessage {
		return nil, fmt.Errorf("%s message of %d bytes: the limit is %d", m.Method, len(text), MaxMessage)
	}
	frame := make([]byte, headerSize, headerSize+len(text))
	binary.BigEndian.PutUint32(frame, uint32(len(text)))
	return append(frame, text...), nil
}

// decode reads what header announces. The buffer grows as bytes arrive: a
// wrong length costs no memory.
func decode(r io.Reader, header [headerSize]byte) (Message, error) {
	size := binary.BigEndian.Uint32(header[:])
	if size > MaxMessage {
		return Message{}, fmt.Errorf("message of %d bytes: the limit is %d", size, MaxMessage)
	}
	var text bytes.Buffer
	text.Grow(min(int(size), 16<<10))
	if _, err := io.CopyN(&text, r, int64(size)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, fmt.Errorf("receive message of %d bytes: %w", size, err)
	}
	var m Message
	if err := json.Unmarshal(text.Bytes(), &m); err != nil {
		return Message{}, fmt.Errorf("decode message: %w", err)
	}
	return m, nil
}
