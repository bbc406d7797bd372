// Package kubeletapi serves the kubelet's HTTPS API (port 10250), its read-only
// port and its health port, path by path and word by word as the kubelet of
// Kubernetes 1.36 does. The API server, metrics-server, Prometheus and kubectl
// (through the API server) are its clients. It only reads: pods come from
// whoever runs them, everything else from the runtime, the host and the log files.
//
//	server.go   listeners
//	routes.go   which path is whose, and what a configuration switches off
//	health.go   /healthz and the health port
//	pods.go     /pods, /runningpods, /configz
//	logs.go     /containerLogs; options.go reads its parameters
//	nodelogs.go /logs; nodequery.go asks the journal
//	streams.go  /exec, /attach, /portForward, /run: passed on to the runtime
//	websocket.go for clients whose protocol the runtime does not speak
//	checkpoint.go /checkpoint
//	zpages.go   /statusz, /flagz, /debug
//
// Who may ask is decided in package access, metrics are package agent/metrics,
// statistics agent/stats.
package kubeletapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/berth-io/berth/agent/kubeletapi/access"
)

// Pods are the pods of this node with their statuses.
type Pods interface{ Pods() []*v1.Pod }

// Containers finds containers and runs commands in them.
type Containers interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error)
	ContainerStatus(context.Context, *runtimeapi.ContainerStatusRequest, ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error)
	ExecSync(context.Context, *runtimeapi.ExecSyncRequest, ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error)
	CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest, ...grpc.CallOption) (*runtimeapi.CheckpointContainerResponse, error)
}

// Streams asks the runtime for the URL of a stream.
type Streams interface {
	Exec(context.Context, *runtimeapi.ExecRequest, ...grpc.CallOption) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest, ...grpc.CallOption) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest, ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error)
}

// Runtime is the CRI as the API needs it; runtimeapi.RuntimeServiceClient has it all.
type Runtime interface {
	Containers
	Streams
}

// Stats measures (agent/stats.Collector).
type Stats interface {
	Summary(context.Context) (*statsapi.Summary, error)
	CPUAndMemory(context.Context) (*statsapi.Summary, error)
}

// Metrics has a handler for each path below /metrics (agent/metrics.Metrics).
type Metrics interface {
	// Handlers by path: /metrics, /metrics/cadvisor, /metrics/resource,
	// /metrics/probes, /metrics/slis.
	Handlers() map[string]http.Handler
	// Serving counts a request of the server ("readwrite" or "readonly")
	// until done is called.
	Serving(method, path, server string, longRunning bool) (done func())
	// WebSocket counts a streaming request that came by WebSocket.
	WebSocket(subresource string)
	// Checked tells the outcome of a health check.
	Checked(name string, healthy bool)
}

// Config of a Server. The names are KubeletConfiguration's where it has one.
type Config struct {
	// EnableServer serves the API; the ports beside it are there without it too.
	EnableServer bool
	// Address and Port of the API; ReadOnlyPort 0 is none. HealthzPort 0 is none.
	Address            string
	Port, ReadOnlyPort int
	HealthzBindAddress string
	HealthzPort        int

	// Certificate is asked for at each handshake.
	Certificate  func() (*tls.Certificate, error)
	MinVersion   uint16
	CipherSuites []uint16
	Curves       []tls.CurveID // tlsCurvePreferences; none: Go's

	EnableDebuggingHandlers, EnableSystemLogHandler, EnableSystemLogQuery bool
	EnableProfilingHandler, EnableContentionProfiling                     bool
	EnableDebugFlagsHandler                                               bool

	// KubeletConfig is what /configz shows: a *v1beta1.KubeletConfiguration with
	// all defaults. Flags is what /flagz shows, by name; nil: there is none.
	KubeletConfig any
	Flags         map[string]string
	Statusz       bool   // /statusz is there
	Version       string // of Kubernetes, for /statusz, as "v1.36.3"

	KubeletDir string // has checkpoints
	LogDir     string // /var/log
	// SyncLoop is the health of what syncs pods: a nil error is good.
	SyncLoop func() error
	Log      *slog.Logger
}

// Parts are what the API shows.
type Parts struct {
	Pods    Pods
	Runtime Runtime
	Stats   Stats
	Metrics Metrics
	Authn   *access.Authenticator
	Authz   *access.Authorizer
}

// Server serves the API.
type Server struct {
	parts  Parts
	config Config
	start  time.Time
}

// New returns a Server; Run serves.
func New(p Parts, c Config) *Server { return &Server{parts: p, config: c, start: time.Now()} }

const (
	// maxConnection bounds a request with all its streaming, as in the kubelet.
	maxConnection = 4 * time.Hour
	idleTimeout   = 90 * time.Second
	// shutdownGrace is what requests under way get when the agent ends.
	shutdownGrace = time.Second
)

// Run serves until ctx ends. A port that is taken is an error at once.
func (s *Server) Run(ctx context.Context) error {
	type endpoint struct {
		name, address string
		port          int
		handler       http.Handler
		tls           *tls.Config
	}
	var endpoints []endpoint
	if s.config.EnableServer {
		endpoints = append(endpoints, endpoint{"kubelet API", s.config.Address, s.config.Port, s.handler(), s.tls()})
	}
	if s.config.ReadOnlyPort != 0 {
		endpoints = append(endpoints, endpoint{"read-only kubelet API", s.config.Address, s.config.ReadOnlyPort, s.readOnlyHandler(), nil})
	}
	if s.config.HealthzPort != 0 {
		endpoints = append(endpoints, endpoint{"kubelet health", s.config.HealthzBindAddress, s.config.HealthzPort, s.healthHandler(), nil})
	}
	group, ctx := errgroup.WithContext(ctx)
	var listeners []net.Listener
	for _, e := range endpoints {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(e.address, strconv.Itoa(e.port)))
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return fmt.Errorf("listen for the %s: %w", e.name, err)
		}
		listeners = append(listeners, l)
	}
	if s.config.EnableDebuggingHandlers && s.config.EnableProfilingHandler && s.config.EnableContentionProfiling {
		profileContention()
	}
	for i, e := range endpoints {
		group.Go(func() error { return s.serve(ctx, listeners[i], e.name, e.handler, e.tls) })
	}
	group.Go(func() error { // also where nothing is served
		<-ctx.Done()
		return ctx.Err()
	})
	return group.Wait()
}

func (s *Server) serve(ctx context.Context, l net.Listener, name string, h http.Handler, config *tls.Config) error {
	server := &http.Server{
		Handler: h, TLSConfig: config,
		ReadHeaderTimeout: 30 * time.Second, IdleTimeout: idleTimeout,
		ReadTimeout: maxConnection, WriteTimeout: maxConnection, MaxHeaderBytes: 1 << 20,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	}()
	var err error
	if config == nil {
		err = server.Serve(l)
	} else {
		err = server.ServeTLS(l, "", "")
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the %s: %w", name, err)
	}
	return ctx.Err()
}

// tls asks clients for certificates without verifying them: who has none may
// have a token, and the CA file may change between two requests.
func (s *Server) tls() *tls.Config {
	c := &tls.Config{
		MinVersion: max(s.config.MinVersion, tls.VersionTLS12), CipherSuites: s.config.CipherSuites, CurvePreferences: s.config.Curves,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.config.Certificate() },
	}
	if s.parts.Authn.WantsCertificates() {
		c.ClientAuth = tls.RequestClientCert
	}
	return c
}
