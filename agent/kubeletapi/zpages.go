package kubeletapi

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/pprof"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
)

// notParseable is what the text form of the z-pages begins with (k8s.io/apiserver
// pkg/server/flagz and statusz).
const notParseable = "\nkubelet %s\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for debugging purposes only.\n"

// zGroup is the API group of the z-pages' structured form.
const zGroup = "config.k8s.io/v1beta1"

// structured tells whether the client wants JSON (as=KIND in the Accept
// header); ok is false if it wants what is not served.
func structured(r *http.Request, kind string) (json, ok bool) {
	accept := r.Header.Get("Accept")
	if strings.TrimSpace(accept) == "" {
		return false, true
	}
	for _, one := range strings.Split(accept, ",") {
		parts := strings.Split(strings.ReplaceAll(one, " ", ""), ";")
		switch parts[0] {
		case "text/plain", "text/*", "*/*":
			return false, true
		case "application/json":
			if slices.Contains(parts, "as="+kind) && slices.Contains(parts, "v=v1beta1") && slices.Contains(parts, "g=config.k8s.io") {
				return true, true
			}
		}
	}
	return false, false
}

func (s *Server) flagz(w http.ResponseWriter, r *http.Request) {
	asJSON, ok := structured(r, "Flagz")
	switch {
	case !ok:
		http.Error(w, "only text/plain and application/json;g=config.k8s.io;v=v1beta1;as=Flagz are served", http.StatusNotAcceptable)
	case asJSON:
		s.answer(w, struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
			Flags             map[string]string `json:"flags"`
		}{metav1.TypeMeta{Kind: "Flagz", APIVersion: zGroup}, metav1.ObjectMeta{Name: "kubelet"}, s.config.Flags})
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, notParseable, "flagz")
		for _, name := range slices.Sorted(maps.Keys(s.config.Flags)) {
			fmt.Fprintf(w, "%s=%s\n", name, s.config.Flags[name])
		}
	}
}

// statusz lists the paths that the mux has when it is asked.
func (s *Server) statusz(m *mux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		paths := slices.Compact(slices.Sorted(slices.Values(listed(m.paths))))
		asJSON, ok := structured(r, "Statusz")
		switch {
		case !ok:
			http.Error(w, "only text/plain and application/json;g=config.k8s.io;v=v1beta1;as=Statusz are served", http.StatusNotAcceptable)
		case asJSON:
			s.answer(w, struct {
				metav1.TypeMeta   `json:",inline"`
				metav1.ObjectMeta `json:"metadata"`
				StartTime         metav1.Time `json:"startTime"`
				UptimeSeconds     int64       `json:"uptimeSeconds"`
				GoVersion         string      `json:"goVersion"`
				BinaryVersion     string      `json:"binaryVersion"`
				Paths             []string    `json:"paths"`
			}{
				metav1.TypeMeta{Kind: "Statusz", APIVersion: zGroup}, metav1.ObjectMeta{Name: "kubelet"},
				metav1.NewTime(s.start), int64(time.Since(s.start).Seconds()), runtime.Version(), s.config.Version, paths,
			})
		default:
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintf(w, notParseable, "statusz")
			fmt.Fprintf(w, "\nStarted: %s\nUp: %s\nGo version: %s\nBinary version: %s\n\nPaths: %s\n", s.start.Format(time.UnixDate),
				time.Since(s.start).Truncate(time.Second), runtime.Version(), s.config.Version, strings.Join(paths, " "))
		}
	}
}

// listed are paths up to their first variable.
func listed(paths []string) []string {
	var out []string
	for _, p := range paths {
		p, _, _ = strings.Cut(p, "{")
		out = append(out, "/"+strings.Trim(p, "/"))
	}
	return out
}

// profiling serves /debug.
func (s *Server) profiling(m *mux) {
	if s.config.EnableDebugFlagsHandler {
		m.on("/debug/flags/v", s.verbosity)
	} else {
		m.on("/debug/flags/v", no("flags endpoint is disabled."))
	}
	if !s.config.EnableProfilingHandler {
		m.on("/debug/pprof/", no("profiling endpoint is disabled."))
		return
	}
	m.on("/debug/pprof/", pprof.Index)
	m.on("/debug/pprof/profile", pprof.Profile)
	m.on("/debug/pprof/symbol", pprof.Symbol)
	m.on("/debug/pprof/cmdline", pprof.Cmdline)
	m.on("/debug/pprof/trace", pprof.Trace)
}

// verbosity sets how much Kubernetes' libraries log, as k8s.io/apiserver
// pkg/server/routes StringFlagPutHandler does for the kubelet. Berth's own log has
// its level in its configuration.
func (s *Server) verbosity(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		fail(w, http.StatusNotAcceptable, "unsupported http method")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64))
	if err != nil {
		fail(w, http.StatusBadRequest, "error reading request body: "+err.Error())
		return
	}
	if _, err := strconv.ParseUint(string(body), 10, 32); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	var level klog.Level
	if err := level.Set(string(body)); err != nil {
		fail(w, http.StatusBadRequest, fmt.Sprintf("failed set klog.logging.verbosity %s: %v", body, err))
		return
	}
	fail(w, http.StatusOK, fmt.Sprintf("successfully set klog.logging.verbosity to %s", body))
}

func profileContention() { runtime.SetBlockProfileRate(1) }
