package streaming

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
)

// watch is a response whose connection tells when its client has gone. Every
// protocol here reads all the time, so that its reader finds out.
type watch struct {
	http.ResponseWriter
	gone context.CancelFunc
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
	return watched, bufio.NewReadWriter(bufio.NewReader(watched), bufio.NewWriter(watched)), nil
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
