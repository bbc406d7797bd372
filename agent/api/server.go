// Package api is the agent's HTTP API: the kubelet's paths where the kubelet
// has them, and a few of Berth's own. Today it is served on a unix socket for
// the CLI of the same host, whose file permissions are the authorization.
//
//	GET  /healthz
//	GET  /pods                               v1.PodList, with statuses
//	GET  /events                             v1.EventList
//	GET  /containerLogs/NS/POD/CONTAINER     ?follow ?previous ?timestamps ?tailLines ?sinceSeconds ?limitBytes
//	POST /exec/NS/POD/CONTAINER              ?command ?input ?output ?error ?tty; SPDY or WebSocket
//	POST /attach/NS/POD/CONTAINER            ?input ?output ?error ?tty
//	POST /portForward/NS/POD
//
// and Berth's own:
//
//	GET    /explain/NS/POD                   worker.Explanation
//	GET    /rejected                         manifests that are not in force
//	POST   /run                              a manifest to be kept in the manifest directory
//	POST   /stop/NS/POD                      ?grace=SECONDS
//	DELETE /pods/NS/POD                      a pod that came by /run
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/worker"
)

// Pods are the pods of this node.
type Pods interface {
	Pods() []*v1.Pod
	Worker(namespace, name string) *worker.Worker
	Stop(namespace, name string, grace *int64) error
}

// Events are what happened to them.
type Events interface{ List() []v1.Event }

// Manifests is the manifest directory.
type Manifests interface {
	// Add validates a manifest and writes it into the directory.
	Add(data []byte) (*v1.Pod, error)
	// Remove deletes the file of a pod that Add wrote.
	Remove(pod *v1.Pod) error
	Rejected() []manifest.Rejection
}

// Streams asks the runtime for the URL of a stream.
type Streams interface {
	Exec(context.Context, *runtimeapi.ExecRequest, ...grpc.CallOption) (*runtimeapi.ExecResponse, error)
	Attach(context.Context, *runtimeapi.AttachRequest, ...grpc.CallOption) (*runtimeapi.AttachResponse, error)
	PortForward(context.Context, *runtimeapi.PortForwardRequest, ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error)
}

// Config of a Server.
type Config struct {
	Socket    string // path of the unix socket
	Pods      Pods
	Events    Events
	Manifests Manifests
	Streams   Streams
	// Observations tell container IDs and log files.
	Observations Observations
	Log          *slog.Logger
}

// Server serves the API.
type Server struct{ config Config }

// New returns a Server; Run serves.
func New(c Config) *Server { return &Server{config: c} }

// Run serves until ctx ends. Streams under way get a moment to end.
func (s *Server) Run(ctx context.Context) error {
	// What an agent before this one left there is nobody's: the daemon's lock
	// says that it is gone.
	if err := os.Remove(s.config.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old API socket: %w", err)
	}
	l, err := net.Listen("unix", s.config.Socket)
	if err != nil {
		return fmt.Errorf("listen on the API socket: %w", err)
	}
	if err := os.Chmod(s.config.Socket, 0o600); err != nil {
		return fmt.Errorf("restrict the API socket to root: %w", err)
	}
	server := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelWarn),
	}
	go func() {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return ctx.Err()
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /pods", s.pods)
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("GET /rejected", s.rejected)
	mux.HandleFunc("GET /explain/{namespace}/{pod}", s.explain)
	mux.HandleFunc("POST /run", s.run)
	mux.HandleFunc("POST /stop/{namespace}/{pod}", s.stop)
	mux.HandleFunc("DELETE /pods/{namespace}/{pod}", s.remove)
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	for _, method := range []string{"GET", "POST"} { // WebSocket clients use GET
		mux.HandleFunc(method+" /exec/{namespace}/{pod}/{container}", s.exec)
		mux.HandleFunc(method+" /attach/{namespace}/{pod}/{container}", s.attach)
		mux.HandleFunc(method+" /portForward/{namespace}/{pod}", s.portForward)
	}
	return mux
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []v1.Pod{}}
	for _, p := range s.config.Pods.Pods() {
		list.Items = append(list.Items, *p)
	}
	s.answer(w, list)
}

func (s *Server) events(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, v1.EventList{TypeMeta: metav1.TypeMeta{Kind: "EventList", APIVersion: "v1"}, Items: s.config.Events.List()})
}

func (s *Server) rejected(w http.ResponseWriter, _ *http.Request) {
	list := s.config.Manifests.Rejected()
	if list == nil {
		list = []manifest.Rejection{}
	}
	s.answer(w, list)
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request) {
	if worker := s.worker(w, r); worker != nil {
		s.answer(w, worker.Explain())
	}
}

// worker finds the worker of the request's pod, or answers that there is none.
func (s *Server) worker(w http.ResponseWriter, r *http.Request) *worker.Worker {
	found := s.config.Pods.Worker(r.PathValue("namespace"), r.PathValue("pod"))
	if found == nil {
		http.Error(w, fmt.Sprintf("pod %q not found in namespace %q on this node", r.PathValue("pod"), r.PathValue("namespace")), http.StatusNotFound)
	}
	return found
}

func (s *Server) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.config.Log.Debug("an API client went away", "err", err)
	}
}
