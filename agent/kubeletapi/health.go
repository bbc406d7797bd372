package kubeletapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// check is one of the checks that make up /healthz.
type check struct {
	name string
	ask  func() error
}

func ping() error { return nil }

// checks of the API's /healthz. The kubelet's "log" check sees whether its log
// writer is stuck; Berth's logger writes at once or not at all, so it is good
// whenever it answers. So is "device-plugin": where device plugins cannot
// register any more, the agent ends.
func (s *Server) checks() []check {
	return []check{{"ping", ping}, {"log", ping}, {"syncloop", s.config.SyncLoop}, {"device-plugin", ping}}
}

func (s *Server) health(m *mux) {
	checks := s.checks()
	m.on("/healthz", s.allChecks(checks))
	for _, c := range checks {
		m.on("/healthz/"+c.name, oneCheck(c))
	}
}

// healthHandler is the health port's: the process answers, and no more.
func (s *Server) healthHandler() http.Handler {
	mux := http.NewServeMux()
	checks := []check{{"ping", ping}}
	mux.HandleFunc("/healthz", s.allChecks(checks))
	mux.HandleFunc("/healthz/ping", oneCheck(checks[0]))
	return mux
}

// allChecks answers "ok", or with ?verbose or a failure check by check, as
// k8s.io/apiserver/pkg/server/healthz. Reasons are only for the log.
func (s *Server) allChecks(checks []check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var text strings.Builder
		var failed []string
		excluded := r.URL.Query()["exclude"]
		for _, c := range checks {
			if slices.Contains(excluded, c.name) {
				excluded = slices.DeleteFunc(slices.Clone(excluded), func(n string) bool { return n == c.name })
				fmt.Fprintf(&text, "[+]%s excluded: ok\n", c.name)
				continue
			}
			err := c.ask()
			s.parts.Metrics.Checked(c.name, err == nil)
			if err != nil {
				fmt.Fprintf(&text, "[-]%s failed: reason withheld\n", c.name)
				failed = append(failed, fmt.Sprintf("%s: %v", c.name, err))
				continue
			}
			fmt.Fprintf(&text, "[+]%s ok\n", c.name)
		}
		if len(excluded) > 0 {
			fmt.Fprintf(&text, "warn: some health checks cannot be excluded: no matches for %s\n", quoted(excluded))
		}
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if len(failed) > 0 {
			s.config.Log.Warn("the node's health checks fail", "checks", failed)
			http.Error(w, text.String()+"healthz check failed", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if _, verbose := r.URL.Query()["verbose"]; !verbose {
			fmt.Fprint(w, "ok")
			return
		}
		fmt.Fprintf(w, "%shealthz check passed\n", text.String())
	}
}

func quoted(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, fmt.Sprintf("%q", n))
	}
	return strings.Join(out, ",")
}

func oneCheck(c check) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := c.ask(); err != nil {
			http.Error(w, fmt.Sprintf("internal server error: %v", err), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, "ok")
	}
}
