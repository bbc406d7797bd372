package streaming

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"
)

// checkInterval is how soon the end of a client is noticed whose input nobody
// reads.
const checkInterval = 5 * time.Second

// watch is a response whose connection tells when its client has gone: net/http
// no longer looks once it was taken over.
type watch struct {
	http.ResponseWriter
	ctx      context.Context // of the request
	gone     context.CancelFunc
	interval time.Duration
}

// Hijack implements http.Hijacker.
func (w watch) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hijacker, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("the connection cannot be taken over")
	}
	conn, buffered, err := hijacker.Hijack()
	if err != nil {
		return nil, nil, err
	}
	watched := &watchedConn{Conn: conn, gone: w.gone}
	// What net/http has read already stays in front.
	if n := buffered.Reader.Buffered(); n > 0 {
		head, err := buffered.Reader.Peek(n)
		if err != nil {
			return nil, nil, errors.Join(err, conn.Close())
		}
		watched.head = append(watched.head, head...)
	}
	go w.check(conn)
	return watched, bufio.NewReadWriter(bufio.NewReader(watched), bufio.NewWriter(watched)), nil
}

// check asks the kernel from time to time whether the client has ended the
// connection. A reader finds out at once, but all protocols here stop reading
// while a command does not take its input.
func (w watch) check(conn net.Conn) {
	ticker := time.NewTicker(w.interval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if ended(conn) {
				w.gone()
				return
			}
		case <-w.ctx.Done():
			return
		}
	}
}

// TCP states of a connection whose other side has sent its end, as in the
// kernel's include/net/tcp_states.h.
const (
	tcpClose     = 7
	tcpCloseWait = 8
	tcpLastAck   = 9
)

func ended(conn net.Conn) bool {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return false // by its reader, then
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true // closed on this side
	}
	var info *unix.TCPInfo
	if raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) != nil {
		return true
	}
	return err == nil && (info.State == tcpClose || info.State == tcpCloseWait || info.State == tcpLastAck)
}

type watchedConn struct {
	net.Conn
	head []byte
	gone context.CancelFunc
}

func (c *watchedConn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.Conn.Read(p)
	if err != nil {
		c.gone()
	}
	return n, err
}
