package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// protocols are what clients speak to the runtime's streaming server, as
// k8s.io/client-go does.
var protocols = []string{"SPDY", "WebSocket"}

// link is a client's way to the streaming server, which listens inside the
// node's network only. Cutting it is what a client's machine does that is gone.
type link struct {
	url      *url.URL
	listener net.Listener

	mu    sync.Mutex
	conns []net.Conn
}

// link makes one for the URL of an answer.
func (r *runtime) link(answer string) *link {
	r.t.Helper()
	u, err := url.Parse(answer)
	must(r.t, err)
	l := &link{url: u}
	l.listener, err = net.Listen("tcp", "127.0.0.1:0")
	must(r.t, err)
	r.t.Cleanup(l.cut)
	target := u.Host
	u.Host = l.listener.Addr().String()
	go func() {
		for {
			near, err := l.listener.Accept()
			if err != nil {
				return // cut
			}
			far, err := r.Dial(context.Background(), "tcp", target)
			if err != nil {
				near.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, near, far)
			l.mu.Unlock()
			go join(near, far)
			go join(far, near)
		}
	}()
	return l
}

func join(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		_ = to.Close()
		_ = from.Close()
		return
	}
	_ = to.(*net.TCPConn).CloseWrite() // the other direction may go on
}

// reset cuts it, whatever is still under way: the end of a connection that is
// full would have to wait behind it.
func (l *link) reset() {
	l.mu.Lock()
	for _, c := range l.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	l.mu.Unlock()
	l.cut()
}

func (l *link) cut() {
	_ = l.listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close()
	}
}

func (l *link) executor(t testing.TB, protocol string) remotecommand.Executor {
	t.Helper()
	var e remotecommand.Executor
	var err error
	if protocol == "SPDY" {
		e, err = remotecommand.NewSPDYExecutor(&rest.Config{}, http.MethodPost, l.url)
	} else {
		e, err = remotecommand.NewWebSocketExecutor(&rest.Config{}, http.MethodGet, l.url.String())
	}
	must(t, err)
	return e
}

// execLink asks for an exec.
func (r *runtime) execLink(req *runtimeapi.ExecRequest) *link {
	r.t.Helper()
	resp, err := r.Exec(r.ctx(), req)
	must(r.t, err)
	return r.link(resp.Url)
}

func (r *runtime) attachLink(req *runtimeapi.AttachRequest) *link {
	r.t.Helper()
	resp, err := r.Attach(r.ctx(), req)
	must(r.t, err)
	return r.link(resp.Url)
}

// forward connects to the ports of a sandbox.
func (r *runtime) forward(protocol, sandbox string, ports ...int32) httpstream.Connection {
	r.t.Helper()
	resp, err := r.PortForward(r.ctx(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox, Port: ports})
	must(r.t, err)
	l := r.link(resp.Url)
	var dialer httpstream.Dialer
	if protocol == "SPDY" {
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		must(r.t, err)
		dialer = spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, l.url)
	} else {
		dialer, err = portforward.NewSPDYOverWebsocketDialerForStreaming(l.url, &rest.Config{})
		must(r.t, err)
	}
	conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	must(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

// forwarded is one connection to a port.
type forwarded struct {
	data   httpstream.Stream
	failed chan error // one value, nil when the error stream had nothing
}

func openForward(t testing.TB, conn httpstream.Connection, port, request int) forwarded {
	t.Helper()
	headers := http.Header{}
	headers.Set("port", fmt.Sprint(port))
	headers.Set("requestID", fmt.Sprint(request))
	headers.Set("streamType", "error")
	errs, err := conn.CreateStream(headers)
	must(t, err)
	must(t, errs.Close()) // nothing is written to it
	headers.Set("streamType", "data")
	data, err := conn.CreateStream(headers)
	must(t, err)
	f := forwarded{data: data, failed: make(chan error, 1)}
	go func() {
		text, err := io.ReadAll(errs)
		if err == nil && len(text) > 0 {
			err = errors.New(string(text))
		}
		f.failed <- err
	}()
	return f
}

// within bounds what could hang.
func within[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(callTimeout):
		t.Fatalf("%s: not within %v", what, callTimeout)
		panic("unreachable")
	}
}
