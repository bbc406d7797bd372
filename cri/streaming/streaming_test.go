package streaming

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// noRuntime is for requests that must not get as far.
type noRuntime struct{ t *testing.T }

func (n noRuntime) Exec(context.Context, string, []string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	n.t.Error("exec was called")
	return nil
}

func (n noRuntime) Attach(context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	n.t.Error("attach was called")
	return nil
}

func (n noRuntime) PortForward(context.Context, string, int32, io.ReadWriteCloser) error {
	n.t.Error("port-forward was called")
	return nil
}

func TestAURLIsForOneRequestOfItsKind(t *testing.T) {
	s := New("127.0.0.1:1", noRuntime{t})
	exec, err := s.ExecURL(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"true"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	attach, err := s.AttachURL(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	const head = "http://127.0.0.1:1/"
	if exec[:len(head)+5] != head+"exec/" || attach[:len(head)+7] != head+"attach/" {
		t.Fatalf("made %s and %s", exec, attach)
	}
	for _, c := range []struct {
		path string
		want int
	}{
		{"/attach/" + exec[len(head)+5:], http.StatusNotFound},     // of another kind
		{"/exec/" + exec[len(head)+5:], http.StatusNotFound},       // which has used it up
		{"/attach/" + attach[len(head)+7:], http.StatusBadRequest}, // no upgrade
		{"/attach/" + attach[len(head)+7:], http.StatusNotFound},
		{"/exec/", http.StatusNotFound},
		{"/", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, c.path, nil))
		if w.Code != c.want {
			t.Errorf("%s: %d %s, want %d", c.path, w.Code, w.Body, c.want)
		}
	}
}

func TestStreamsThatMakeNoSenseAreRefused(t *testing.T) {
	s := New("127.0.0.1:1", noRuntime{t})
	for _, req := range []*runtimeapi.ExecRequest{
		{ContainerId: "c", Cmd: []string{"true"}},
		{ContainerId: "c", Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true},
	} {
		if _, err := s.ExecURL(req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
		attach := &runtimeapi.AttachRequest{ContainerId: "c", Tty: req.Tty, Stdout: req.Stdout, Stderr: req.Stderr}
		if _, err := s.AttachURL(attach); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", attach, err)
		}
	}
}

func TestTokensEnd(t *testing.T) {
	now := time.Unix(1, 0)
	tokens := newTokens()
	tokens.now = func() time.Time { return now }
	late, err := tokens.put("late")
	if err != nil {
		t.Fatal(err)
	}
	now = now.Add(tokenLife + time.Nanosecond)
	if got := tokens.take(late); got != nil {
		t.Errorf("an old token gave %v", got)
	}
	for i := range maxTokens {
		if _, err := tokens.put(i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tokens.put("one too many"); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(tokenLife + time.Nanosecond)
	if _, err := tokens.put("later"); err != nil || len(tokens.waiting) != 1 {
		t.Errorf("later: %v, %d are kept", err, len(tokens.waiting))
	}
}

func TestTheEndOfACommandIsTold(t *testing.T) {
	if got := outcome(nil); got.Status != metav1.StatusSuccess {
		t.Errorf("success: %+v", got)
	}
	got := outcome(utilexec.CodeExitError{Err: errors.New("ended"), Code: 7})
	if got.Status != metav1.StatusFailure || got.Reason != "NonZeroExitCode" || got.Details.Causes[0].Type != "ExitCode" || got.Details.Causes[0].Message != "7" {
		t.Errorf("exit code: %+v", got)
	}
	if got := outcome(fmt.Errorf("no container")); got.Status != metav1.StatusFailure || got.Code != http.StatusInternalServerError || got.Message != "no container" {
		t.Errorf("an error: %+v", got)
	}
}

// hijacked serves one connection with a handler that has taken it over, and
// returns the client's side of it.
func hijacked(t *testing.T, w watch, handle func(net.Conn, *bufio.ReadWriter)) net.Conn {
	t.Helper()
	done := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		defer close(done)
		w.ResponseWriter = rw
		conn, buffered, err := w.Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		handle(conn, buffered)
	}))
	t.Cleanup(func() {
		<-done
		server.Close()
	})
	client, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// The line comes with the request: the server may have read both already.
	if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\nhello\n"); err != nil {
		t.Fatal(err)
	}
	return client
}

func TestAHandlerThatReadsHearsAtOnceOfAClientThatHasGone(t *testing.T) {
	ctx, gone := context.WithCancel(context.Background())
	heard := make(chan string, 1)
	client := hijacked(t, watch{ctx: ctx, gone: gone, interval: time.Hour}, func(_ net.Conn, buffered *bufio.ReadWriter) {
		line, _ := buffered.ReadString('\n')
		heard <- line
		_, _ = buffered.ReadByte()
	})
	if got := <-heard; got != "hello\n" || ctx.Err() != nil {
		t.Errorf("heard %q, %v", got, ctx.Err())
	}
	client.Close()
	<-ctx.Done()
}

func TestAHandlerThatDoesNotReadHearsOfItToo(t *testing.T) {
	for name, leave := range map[string]func(net.Conn){
		"closed": func(c net.Conn) { _ = c.Close() },
		"reset":  func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0); _ = c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, gone := context.WithCancel(context.Background())
			client := hijacked(t, watch{ctx: ctx, gone: gone, interval: time.Millisecond}, func(net.Conn, *bufio.ReadWriter) { <-ctx.Done() })
			time.Sleep(20 * time.Millisecond) // looked at many times
			if ctx.Err() != nil {
				t.Error("gone before it went")
			}
			leave(client)
			<-ctx.Done()
		})
	}
}
