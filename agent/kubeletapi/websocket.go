package kubeletapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	wire "k8s.io/apimachinery/pkg/util/portforward"
	channels "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// Runtimes speak SPDY, and WebSocket only up to version 4 of its protocol. A
// version 5 client (an API server of 1.36 that passes WebSocket on) is
// translated, as k8s.io/apiserver/pkg/util/proxy does for the kubelet; that
// package itself would bring the API server's audit and OpenAPI with it.

// spdyPing keeps connections alive that are silent for long.
const spdyPing = 5 * time.Second

// translate connects a WebSocket client of version 5 with the runtime's SPDY.
func (s *Server) translate(w http.ResponseWriter, r *http.Request, target *url.URL, o streamOptions) {
	kind := func(wanted bool, k wsstream.ChannelType) wsstream.ChannelType {
		if wanted {
			return k
		}
		return wsstream.IgnoreChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		channels.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{
			channels.StreamStdIn:  kind(o.stdin, wsstream.ReadChannel),
			channels.StreamStdOut: kind(o.stdout, wsstream.WriteChannel),
			channels.StreamStdErr: kind(o.stderr, wsstream.WriteChannel),
			channels.StreamErr:    wsstream.WriteChannel,
			channels.StreamResize: wsstream.ReadChannel,
		}},
	})
	conn.SetIdleTimeout(maxConnection)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return // the client has been told
	}
	defer conn.Close()
	// An empty message tells the client that the connection stands.
	hello := streams[channels.StreamErr]
	switch {
	case o.stdout:
		hello = streams[channels.StreamStdOut]
	case o.stderr:
		hello = streams[channels.StreamStdErr]
	}
	if _, err := hello.Write(nil); err != nil {
		return
	}
	opts := remotecommand.StreamOptions{Tty: o.tty}
	if o.stdin {
		opts.Stdin = streams[channels.StreamStdIn]
	}
	if o.stdout {
		opts.Stdout = streams[channels.StreamStdOut]
	}
	if o.stderr {
		opts.Stderr = streams[channels.StreamStdErr]
	}
	if o.tty {
		opts.TerminalSizeQueue = sizesOf(r.Context(), streams[channels.StreamResize])
	}
	outcome := outcomeOf(runSPDY(r.Context(), target, opts))
	text, err := json.Marshal(outcome)
	if err != nil {
		s.config.Log.Warn("the outcome of a command cannot be written", "err", err)
		return
	}
	conn.SetWriteDeadline(10 * time.Second)
	if _, err := streams[channels.StreamErr].Write(text); err != nil {
		s.config.Log.Debug("a client did not wait for its command's end", "err", err)
	}
}

func runSPDY(ctx context.Context, target *url.URL, opts remotecommand.StreamOptions) error {
	transport, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{PingPeriod: spdyPing})
	if err != nil {
		return err
	}
	executor, err := remotecommand.NewSPDYExecutorRejectRedirects(transport, clientspdy.NewUpgraderForStreaming(transport), http.MethodPost, target)
	if err != nil {
		return err
	}
	return executor.StreamWithContext(ctx, opts)
}

// outcomeOf is how a command ended, in the form that clients read exit codes from.
func outcomeOf(err error) metav1.Status {
	var code exec.CodeExitError
	var told *apierrors.StatusError
	switch {
	case err == nil:
		return metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &told):
		return told.Status()
	case errors.As(err, &code) && code.Exited():
		return metav1.Status{
			Status: metav1.StatusFailure, Reason: channels.NonZeroExitCodeReason,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{
				Type: channels.ExitCodeCauseType, Message: fmt.Sprint(code.ExitStatus()),
			}}},
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", code),
		}
	}
	return apierrors.NewInternalError(err).Status()
}

// sizes are the terminal's sizes as the client sends them.
type sizes struct {
	ctx  context.Context
	from <-chan remotecommand.TerminalSize
}

func sizesOf(ctx context.Context, stream io.Reader) sizes {
	c := make(chan remotecommand.TerminalSize)
	go func() {
		defer close(c)
		decoder := json.NewDecoder(stream)
		for {
			var size remotecommand.TerminalSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case c <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return sizes{ctx, c}
}

// Next waits for the next size; nil is the end.
func (s sizes) Next() *remotecommand.TerminalSize {
	select {
	case size, ok := <-s.from:
		if ok {
			return &size
		}
	case <-s.ctx.Done():
	}
	return nil
}

// tunnel connects a client that sends SPDY inside WebSocket messages with the
// runtime's SPDY.
func (s *Server) tunnel(w http.ResponseWriter, r *http.Request, target *url.URL) {
	runtime, resp, err := dialSPDY(r, target)
	if err != nil {
		responder{s}.Error(w, r, err)
		return
	}
	defer runtime.Close()
	var protocols []string
	if chosen := strings.TrimSpace(resp.Header.Get("X-Stream-Protocol-Version")); chosen != "" {
		protocols = []string{wire.WebsocketsSPDYTunnelingPrefix + chosen}
	}
	upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }, Subprotocols: protocols}
	conn, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // the client has been told
	}
	client := portforward.NewTunnelingConnection("server", conn)
	defer client.Close()
	ended := make(chan struct{}, 2)
	for _, c := range [][2]net.Conn{{client, runtime}, {runtime, client}} {
		go func() {
			_, _ = io.Copy(c[0], c[1]) // either end may leave
			ended <- struct{}{}
		}()
	}
	select {
	case <-ended:
	case <-r.Context().Done():
	}
}

// dialSPDY opens an SPDY connection to the runtime in the client's name.
func dialSPDY(r *http.Request, target *url.URL) (net.Conn, *http.Response, error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(r.Context(), "tcp", target.Host)
	if err != nil {
		return nil, nil, fmt.Errorf("connect with the runtime's streaming server: %w", err)
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, target.String(), nil)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", spdy.HeaderSpdy31)
	for _, p := range websocket.Subprotocols(r) {
		if inner, ok := strings.CutPrefix(p, wire.WebsocketsSPDYTunnelingPrefix); ok && strings.HasSuffix(inner, wire.KubernetesSuffix) {
			req.Header.Add("X-Stream-Protocol-Version", inner)
		}
	}
	if err := req.Write(conn); err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("ask the runtime for a stream: %w", err)
	}
	from := bufio.NewReader(conn)
	resp, err := http.ReadResponse(from, req)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("ask the runtime for a stream: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // what there is of it
		conn.Close()
		return nil, nil, fmt.Errorf("the runtime refuses a stream: %s: %s", resp.Status, text)
	}
	return &buffered{Conn: conn, from: from}, resp, nil
}

// buffered reads first what was read with the answer's head.
type buffered struct {
	net.Conn
	from *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.from.Read(p) }
