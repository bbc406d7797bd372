package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-io/berth/cri/ns"
	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/streaming"
)

// Session is a process that an exec started, with a client at its streams.
type Session interface {
	Stdio() shim.Stdio
	Resize(ctx context.Context, width, height uint16) error
	Wait(ctx context.Context) (exitCode int, err error)
	Kill(ctx context.Context) error
	Close() error
}

// portForwardTimeout bounds the connection to a port of a pod.
const portForwardTimeout = 10 * time.Second

// StreamHandler serves the URLs that Exec, Attach and PortForward return; the
// caller listens on Config.StreamAddr for it.
func (s *Server) StreamHandler() http.Handler { return s.streams }

// Exec returns a URL at which the command starts.
func (s *Server) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "cmd: it is empty")
	}
	if _, _, err := s.runningContainer(req.GetContainerId()); err != nil {
		return nil, err
	}
	url, err := s.streams.ExecURL(req)
	return &runtimeapi.ExecResponse{Url: url}, err
}

// Attach returns a URL at which the container's streams are.
func (s *Server) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, _, err := s.runningContainer(req.GetContainerId()); err != nil {
		return nil, err
	}
	url, err := s.streams.AttachURL(req)
	return &runtimeapi.AttachResponse{Url: url}, err
}

// PortForward returns a URL at which the sandbox's ports are.
func (s *Server) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	sb, err := s.sandboxes.Find(req.GetPodSandboxId())
	if err != nil {
		return nil, findError("sandbox", req.GetPodSandboxId(), err)
	}
	if !sb.Ready() {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %s is not ready but %s", sb.ID, sb.State)
	}
	url, err := s.streams.PortForwardURL(req)
	return &runtimeapi.PortForwardResponse{Url: url}, err
}

// streamRuntime is what the streaming server calls once a client is there.
type streamRuntime struct{ s *Server }

// Exec implements streaming.Runtime.
func (r streamRuntime) Exec(ctx context.Context, id string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, client, err := r.s.runningContainer(id)
	if err != nil {
		return err
	}
	process, err := r.s.process(c, command, tty)
	if err != nil {
		return err
	}
	session, err := client.Exec(ctx, process, in != nil)
	if err != nil {
		return err // it names the container
	}
	defer session.Close()
	// A client that went away takes its command along.
	stop := context.AfterFunc(ctx, func() {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), shimTimeout)
		defer cancel()
		_ = session.Kill(kill) // it may have ended meanwhile
	})
	defer stop()
	go follow(ctx, resize, session.Resize)
	output := pump(session.Stdio(), in, out, errOut)
	code, err := session.Wait(ctx)
	if err != nil {
		return err // it names the container
	}
	output.finish(ctx)
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("the command ended with exit code %d", code), Code: code}
	}
	return nil
}

// Attach implements streaming.Runtime.
func (r streamRuntime) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	c, client, err := r.s.runningContainer(id)
	if err != nil {
		return err
	}
	if !c.Config.GetStdin() {
		in = nil
	}
	stdio, err := client.Attach(ctx, c.ID, in != nil)
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", c.ID, err)
	}
	defer closeStdio(stdio)
	go follow(ctx, resize, func(ctx context.Context, width, height uint16) error {
		return client.Resize(ctx, c.ID, width, height)
	})
	output := pump(stdio, in, out, errOut)
	select {
	case <-output.done: // the streams ended with the container
	case <-r.s.task(c.ID).exited:
		output.finish(ctx)
	case <-ctx.Done():
	}
	return nil
}

// PortForward implements streaming.Runtime. A server that listens on the
// loopback address only is reached as well: the connection is made from
// inside the pod.
func (r streamRuntime) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	sb, err := r.s.sandboxes.Find(id)
	if err != nil {
		return findError("sandbox", id, err)
	}
	if !sb.Ready() {
		return fmt.Errorf("sandbox %s is not ready but %s", sb.ID, sb.State)
	}
	var conn net.Conn
	dial := func() (err error) {
		conn, err = dialLoopback(ctx, port)
		return err
	}
	if sb.HostNetwork() {
		err = dial()
	} else {
		err = ns.Do(ns.Path(r.s.nsDir(sb.ID), ns.Net), dial)
	}
	if err != nil {
		return fmt.Errorf("forward port %d of sandbox %s: %w", port, sb.ID, err)
	}
	defer conn.Close()
	return relay(ctx, conn, stream)
}

// dialLoopback stays on its thread: the addresses are literal and tried one
// after the other.
func dialLoopback(ctx context.Context, port int32) (net.Conn, error) {
	dialer := net.Dialer{Timeout: portForwardTimeout}
	conn, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err == nil {
		return conn, nil
	}
	conn6, err6 := dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(int(port))))
	if err6 != nil {
		return nil, err // what IPv4 said is what people can act upon
	}
	return conn6, nil
}

// relay copies both ways until the pod's side is through.
func relay(ctx context.Context, conn net.Conn, stream io.ReadWriter) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, stream) // its end is the other direction's to report
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.CloseWrite()
		}
	}()
	if _, err := io.Copy(stream, conn); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("copy from the pod: %w", err)
	}
	return nil
}

// follow passes a client's window sizes on.
func follow(ctx context.Context, resize <-chan remotecommand.TerminalSize, apply func(ctx context.Context, width, height uint16) error) {
	if resize == nil {
		return
	}
	for {
		select {
		case size, ok := <-resize:
			if !ok {
				return
			}
			if err := apply(ctx, size.Width, size.Height); err != nil {
				return // the process has ended
			}
		case <-ctx.Done():
			return
		}
	}
}

var _ streaming.Runtime = streamRuntime{}
