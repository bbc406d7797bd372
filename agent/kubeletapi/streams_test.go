package kubeletapi

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"crypto/ecdsa"
	"crypto/x509"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// clientConfig has the world's client certificate.
func (w *world) clientConfig() *rest.Config {
	c := w.client.Transport.(*http.Transport).TLSClientConfig.Certificates[0]
	key, err := x509.MarshalECPrivateKey(c.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		w.t.Fatal(err)
	}
	return &rest.Config{Host: w.base, TLSClientConfig: rest.TLSClientConfig{
		Insecure: true,
		CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}),
		KeyData:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key}),
	}}
}

func (w *world) url(path string) *url.URL {
	u, err := url.Parse(w.base + path)
	if err != nil {
		w.t.Fatal(err)
	}
	return u
}

// executors are the clients that kubectl and the API server have: SPDY, and
// WebSocket with version 5 of the protocol.
func (w *world) executors(path string) map[string]remotecommand.Executor {
	w.t.Helper()
	out := map[string]remotecommand.Executor{}
	var err error
	if out["SPDY"], err = remotecommand.NewSPDYExecutor(w.clientConfig(), http.MethodPost, w.url(path)); err != nil {
		w.t.Fatal(err)
	}
	if out["WebSocket"], err = remotecommand.NewWebSocketExecutor(w.clientConfig(), http.MethodGet, w.base+path); err != nil {
		w.t.Fatal(err)
	}
	return out
}

type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	s, ok := <-q
	if !ok {
		return nil
	}
	return &s
}

func TestCommandsRunOverSPDYAndWebSocket(t *testing.T) {
	w := newWorld(t, nil)
	for _, uid := range []string{"", "/u1"} {
		for kind, e := range w.executors("/exec/default/web" + uid + "/app?command=ls&command=-l&output=1&error=1") {
			var out, errOut bytes.Buffer
			err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
			if err != nil || out.String() != containerID+" ls -l" || errOut.Len() > 0 {
				t.Errorf("%s%s: %q %q %v", kind, uid, &out, &errOut, err)
			}
		}
	}
	if got := w.counts.sockets; !slices.Equal(got, []string{"exec", "exec"}) {
		t.Errorf("WebSocket requests counted: %v", got)
	}
}

func TestACommandsInputEndsItsCopying(t *testing.T) {
	w := newWorld(t, nil)
	text := strings.Repeat("0123456789abcdef", 20_000)
	for kind, e := range w.executors("/exec/default/web/app?command=cat&input=1&output=1") {
		var out bytes.Buffer
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out})
		if err != nil || out.String() != text {
			t.Errorf("%s: %d of %d bytes, %v", kind, out.Len(), len(text), err)
		}
	}
	for kind, e := range w.executors("/attach/default/web/app?input=1&output=1") {
		var out bytes.Buffer
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: strings.NewReader("attached"), Stdout: &out})
		if err != nil || out.String() != "attached" {
			t.Errorf("attach over %s: %q, %v", kind, &out, err)
		}
	}
}

func TestACommandsExitCodeArrives(t *testing.T) {
	w := newWorld(t, nil)
	for kind, e := range w.executors("/exec/default/web/app?command=fail&output=1&error=1") {
		var out, errOut bytes.Buffer
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
		var code exec.CodeExitError
		if !errors.As(err, &code) || code.ExitStatus() != 7 || errOut.String() != "it fails" {
			t.Errorf("%s: %v, %q", kind, err, &errOut)
		}
	}
}

func TestATerminalsSizeArrives(t *testing.T) {
	w := newWorld(t, nil)
	for kind, e := range w.executors("/exec/default/web/app?command=size&output=1&error=1&tty=1") {
		var out bytes.Buffer
		q := make(sizeQueue, 1)
		q <- remotecommand.TerminalSize{Width: 80, Height: 24}
		err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: q})
		close(q)
		if err != nil || out.String() != "80x24 tty=true" {
			t.Errorf("%s: %q, %v", kind, &out, err)
		}
	}
}

func TestAnOldWebSocketClientIsPassedOn(t *testing.T) {
	w := newWorld(t, nil)
	e, err := remotecommand.NewWebSocketExecutorForProtocols(w.clientConfig(), http.MethodGet, w.base+"/exec/default/web/app?command=ls&output=1", "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out}); err != nil || out.String() != containerID+" ls" {
		t.Errorf("%q, %v", &out, err)
	}
	if len(w.counts.sockets) != 0 {
		t.Errorf("translated: %v", w.counts.sockets)
	}
}

func TestAttachHasTheContainersTerminal(t *testing.T) {
	w := newWorld(t, func(w *world) { w.pods[0].Spec.Containers[0].TTY = true })
	e := w.executors("/attach/default/web/app?output=1&error=1")["SPDY"]
	var out bytes.Buffer
	// Whatever the client says of a terminal: the runtime is told the pod's.
	err := e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out, Tty: true})
	if err != nil || !w.runtime.attachTTY {
		t.Errorf("tty %v, %v", w.runtime.attachTTY, err)
	}
}

// forward forwards a local port to the pod's port 80.
func (w *world) forward(dialer httpstream.Dialer) string {
	w.t.Helper()
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:80"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f.ForwardPorts() }()
	w.t.Cleanup(func() {
		close(stop)
		<-done
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		w.t.Fatalf("forward: %v", err)
	case <-time.After(20 * time.Second):
		w.t.Fatal("forwarding does not begin")
	}
	ports, err := f.GetPorts()
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
}

func TestPortsAreForwardedOverSPDYAndWebSocket(t *testing.T) {
	w := newWorld(t, nil)
	transport, upgrader, err := spdy.RoundTripperFor(w.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(w.url("/portForward/default/web"), w.clientConfig())
	if err != nil {
		t.Fatal(err)
	}
	for kind, dialer := range map[string]httpstream.Dialer{
		"SPDY":      spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, w.url("/portForward/default/web/u1")),
		"WebSocket": tunnel,
	} {
		at := w.forward(dialer)
		for range 3 {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Fprint(conn, "ping"); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len("80:ping"))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "80:ping" {
				t.Errorf("%s: %q, %v", kind, got, err)
			}
			conn.Close()
		}
	}
	if got := w.counts.sockets; !slices.Equal(got, []string{"portforward"}) {
		t.Errorf("WebSocket requests counted: %v", got)
	}
}

func TestARuntimeThatIsGoneIsAnErrorInTheAnswer(t *testing.T) {
	w := newWorld(t, nil)
	gone := w.url("/")
	gone.Host = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := runSPDY(ctx, gone, remotecommand.StreamOptions{Stdout: io.Discard}); err == nil {
		t.Error("no error")
	}
	if got := outcomeOf(errors.New("x")); got.Status != "Failure" || got.Code != 500 {
		t.Errorf("%+v", got)
	}
}

func TestPortsOfAWebSocketClient(t *testing.T) {
	for query, want := range map[string]string{"port=80": "[80]", "port=80,443&port=8080": "[80 443 8080]", "": "", "port=": "", "port=0": "", "port=65536": "", "port=8x": "", "port=-1": ""} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := portsOf(q)
		if text := fmt.Sprint(got); (err == nil) != (want != "") || err == nil && text != want {
			t.Errorf("%q: %v, %v", query, got, err)
		}
	}
}
