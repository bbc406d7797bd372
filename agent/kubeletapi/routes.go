package kubeletapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/berth-io/berth/agent/kubeletapi/access"
)

// handler is the whole API, for those who may.
func (s *Server) handler() http.Handler {
	mux := newMux()
	s.open(mux)
	if s.config.EnableDebuggingHandlers {
		s.systemLogs(mux)
		s.profiling(mux)
		s.guarded(mux)
	} else {
		s.disabled(mux)
	}
	return s.counted(access.NewGuard(s.parts.Authn, s.parts.Authz, s.config.Log).Protect(mux), mux.buckets, "readwrite")
}

// readOnlyHandler is what the kubelet's read-only port has, for everybody.
func (s *Server) readOnlyHandler() http.Handler {
	mux := newMux()
	s.open(mux)
	s.disabled(mux)
	return s.counted(mux, mux.buckets, "readonly")
}

// mux remembers its paths: /statusz lists them, and metrics name them.
type mux struct {
	*http.ServeMux
	paths   []string
	buckets map[string]bool
}

func newMux() *mux { return &mux{ServeMux: http.NewServeMux(), buckets: map[string]bool{}} }

// on serves path, and all below it where it ends with a slash. Methods: any if
// there are none.
func (m *mux) on(path string, h http.HandlerFunc, methods ...string) {
	m.paths = append(m.paths, path)
	m.buckets[bucket(path)] = true
	if len(methods) == 0 {
		m.HandleFunc(path, h)
	}
	for _, method := range methods {
		m.HandleFunc(method+" "+path, h)
	}
}

// open are the paths that also the read-only port has (the kubelet's
// InstallAuthNotRequiredHandlers).
func (s *Server) open(m *mux) {
	s.health(m)
	m.on("/pods", s.pods, http.MethodGet)
	m.on("/pods/{$}", s.pods, http.MethodGet)
	m.on("/stats/summary", s.summary, http.MethodGet, http.MethodPost)
	for path, h := range s.parts.Metrics.Handlers() {
		m.on(path, h.ServeHTTP)
	}
}

// guarded are the paths that need a caller who may (InstallAuthRequiredHandlers).
func (s *Server) guarded(m *mux) {
	for _, p := range []struct {
		prefix, suffix string
		h              http.HandlerFunc
		methods        []string
	}{
		{"/run/{namespace}/{pod}", "/{container}", s.run, []string{http.MethodPost}},
		{"/exec/{namespace}/{pod}", "/{container}", s.exec, []string{http.MethodGet, http.MethodPost}},
		{"/attach/{namespace}/{pod}", "/{container}", s.attach, []string{http.MethodGet, http.MethodPost}},
		{"/portForward/{namespace}/{pod}", "", s.portForward, []string{http.MethodGet, http.MethodPost}},
	} {
		m.on(p.prefix+p.suffix, p.h, p.methods...)
		m.on(p.prefix+"/{uid}"+p.suffix, p.h, p.methods...)
	}
	m.on("/containerLogs/{namespace}/{pod}/{container}", s.containerLogs, http.MethodGet)
	m.on("/configz", s.configz)
	m.on("/runningpods/{$}", s.runningPods, http.MethodGet)
	m.on("/runningpods", s.runningPods, http.MethodGet)
	m.on("/checkpoint/{namespace}/{pod}/{container}", s.checkpoint, http.MethodPost)
	if s.config.Flags != nil {
		m.on("/flagz", s.flagz)
	}
	if s.config.Statusz {
		m.on("/statusz", s.statusz(m))
	}
}

// disabled answers for what EnableDebuggingHandlers switches off.
func (s *Server) disabled(m *mux) {
	for _, path := range []string{"/run/", "/exec/", "/attach/", "/portForward/", "/containerLogs/", "/runningpods/", "/debug/pprof/", "/logs/"} {
		m.on(path, no("Debug endpoints are disabled."))
	}
}

// no is the answer of an endpoint that is switched off.
func no(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, http.StatusMethodNotAllowed) }
}

// longRunning are the first elements of paths whose requests may stay.
var longRunning = []string{"exec", "attach", "portforward", "debug"}

// counted counts requests under the names that the kubelet gives them.
func (s *Server) counted(h http.Handler, buckets map[string]bool, server string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := bucket(r.URL.Path)
		if !buckets[path] {
			path = "other"
		}
		method := r.Method
		switch method {
		case "OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT":
		default:
			method = "other"
		}
		done := s.parts.Metrics.Serving(method, path, server, slices.Contains(longRunning, path))
		defer done()
		h.ServeHTTP(w, r)
	})
}

// bucket is the part of a path that a metric is labelled with: the first
// element, two of what is below metrics (the kubelet's getURLRootPath).
func bucket(path string) string {
	parts := strings.SplitN(strings.TrimPrefix(path, "/"), "/", 3)
	if parts[0] == "metrics" && len(parts) > 1 {
		return parts[0] + "/" + parts[1]
	}
	return parts[0]
}

func (s *Server) answer(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(data); err != nil {
		s.config.Log.Debug("a client of the kubelet API went away", "err", err)
	}
}

// fail answers as the kubelet's web service does: with bare text.
func fail(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text)) // a client that is gone gets nothing
}
