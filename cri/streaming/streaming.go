// Package streaming serves the URLs that the CRI's Exec, Attach and PortForward
// return: it owns the tokens in them, the connections, and the protocols that
// run over those. What happens in the pod is a Runtime's, which cri/server is.
//
// SPDY, and WebSocket up to v4, are those of k8s.io/cri-streaming. This package
// adds what today's clients of Kubernetes speak beyond that: WebSocket v5 with
// its half-close for Exec and Attach, and SPDY in a WebSocket for PortForward;
// and the context of a request ends when its client has gone.
package streaming

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

const (
	// idleTimeout ends a connection over which nothing goes, as the kubelet's
	// default for streamingConnectionIdleTimeout does.
	idleTimeout = 4 * time.Hour
	// creationTimeout bounds the wait for the streams a client said it makes.
	creationTimeout = remotecommand.DefaultStreamCreationTimeout
)

// Runtime does what a client asks for. A context ends when its client has gone.
// Streams that were not asked for are nil.
type Runtime interface {
	// Exec runs a command to its end. An utilexec.ExitError tells its exit code.
	Exec(ctx context.Context, containerID string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	// Attach returns when the container has ended.
	Attach(ctx context.Context, containerID string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	// PortForward connects one stream to a port of a pod. Its error goes to
	// the client, and ends none of the connection's other streams.
	PortForward(ctx context.Context, sandboxID string, port int32, stream io.ReadWriteCloser) error
}

// Server makes URLs and, as an http.Handler, serves each of them once.
type Server struct {
	base    url.URL
	runtime Runtime
	tokens  *tokens
}

// New returns a server for addr, host:port, on which its caller listens.
func New(addr string, r Runtime) *Server {
	return &Server{base: url.URL{Scheme: "http", Host: addr}, runtime: r, tokens: newTokens()}
}

// ExecURL is where the command of a request is started.
func (s *Server) ExecURL(req *runtimeapi.ExecRequest) (string, error) {
	if err := validate(req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()); err != nil {
		return "", err
	}
	return s.url("exec", req)
}

// AttachURL is where a container's streams are.
func (s *Server) AttachURL(req *runtimeapi.AttachRequest) (string, error) {
	if err := validate(req.GetStdin(), req.GetStdout(), req.GetStderr(), req.GetTty()); err != nil {
		return "", err
	}
	return s.url("attach", req)
}

// PortForwardURL is where a sandbox's ports are.
func (s *Server) PortForwardURL(req *runtimeapi.PortForwardRequest) (string, error) {
	return s.url("portforward", req)
}

// validate has the rules that api.proto states for ExecRequest and
// AttachRequest.
func validate(stdin, stdout, stderr, tty bool) error {
	if tty && stderr {
		return status.Error(codes.InvalidArgument, "stderr: a terminal has none of its own; ask for stdout")
	}
	if !stdin && !stdout && !stderr {
		return status.Error(codes.InvalidArgument, "stdin, stdout, stderr: at least one is needed")
	}
	return nil
}

func (s *Server) url(kind string, req any) (string, error) {
	token, err := s.tokens.put(req)
	if err != nil {
		return "", err
	}
	u := s.base
	u.Path = path.Join("/", kind, token)
	return u.String(), nil
}

// ServeHTTP serves a URL that one of the methods above made.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	ctx, cancel := context.WithCancel(logr.NewContext(r.Context(), logr.Discard())) // to the libraries, each end of a connection is an error
	defer cancel()
	watched, r := watch{ResponseWriter: w, ctx: ctx, gone: cancel, interval: checkInterval}, r.WithContext(ctx)
	switch req := s.tokens.take(token).(type) {
	case *runtimeapi.ExecRequest:
		if kind == "exec" {
			s.serveExec(watched, r, req)
			return
		}
	case *runtimeapi.AttachRequest:
		if kind == "attach" {
			s.serveAttach(watched, r, req)
			return
		}
	case *runtimeapi.PortForwardRequest:
		if kind == "portforward" {
			s.servePortForward(watched, r, req)
			return
		}
	}
	http.NotFound(w, r)
}

func (s *Server) serveExec(w http.ResponseWriter, r *http.Request, req *runtimeapi.ExecRequest) {
	opts := remotecommand.Options{Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), TTY: req.GetTty()}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		serveV5(w, r, opts, func(ctx context.Context, io v5Streams) error {
			return s.runtime.Exec(ctx, req.GetContainerId(), req.GetCmd(), io.in, io.out, io.errOut, opts.TTY, io.resize)
		})
		return
	}
	remotecommand.ServeExec(w, r, adapter{s.runtime}, "", "", req.GetContainerId(), req.GetCmd(), &opts,
		idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) serveAttach(w http.ResponseWriter, r *http.Request, req *runtimeapi.AttachRequest) {
	opts := remotecommand.Options{Stdin: req.GetStdin(), Stdout: req.GetStdout(), Stderr: req.GetStderr(), TTY: req.GetTty()}
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		serveV5(w, r, opts, func(ctx context.Context, io v5Streams) error {
			return s.runtime.Attach(ctx, req.GetContainerId(), io.in, io.out, io.errOut, opts.TTY, io.resize)
		})
		return
	}
	remotecommand.ServeAttach(w, r, adapter{s.runtime}, "", "", req.GetContainerId(), &opts,
		idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

func (s *Server) servePortForward(w http.ResponseWriter, r *http.Request, req *runtimeapi.PortForwardRequest) {
	if wsstream.IsWebSocketRequestWithTunnelingProtocol(r) {
		var ok bool
		if w, r, ok = tunnel(w, r); !ok {
			return // the client was told
		}
	}
	portforward.ServePortForward(w, r, adapter{s.runtime}, req.GetPodSandboxId(), "", &portforward.V4Options{Ports: req.GetPort()},
		idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

// adapter gives a Runtime the signatures of the library, which has pods' names
// where a runtime has IDs.
type adapter struct{ Runtime }

func (a adapter) ExecInContainer(ctx context.Context, _, _, container string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return a.Exec(ctx, container, command, in, out, errOut, tty, resize)
}

func (a adapter) AttachContainer(ctx context.Context, _, _, container string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return a.Attach(ctx, container, in, out, errOut, tty, resize)
}

func (a adapter) PortForward(ctx context.Context, sandbox, _ string, port int32, stream io.ReadWriteCloser) error {
	return a.Runtime.PortForward(ctx, sandbox, port, stream)
}
