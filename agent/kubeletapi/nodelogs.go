package kubeletapi

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// journalTimeout bounds a query of the journal, as in the kubelet.
const journalTimeout = 30 * time.Second

// systemLogs serves the host's log directory, and its journal where that is
// enabled.
func (s *Server) systemLogs(m *mux) {
	if !s.config.EnableSystemLogHandler {
		m.on("/logs/", no("logs endpoint is disabled."))
		return
	}
	m.on("/logs/", s.systemLog, http.MethodGet)
}

func (s *Server) systemLog(w http.ResponseWriter, r *http.Request) {
	if s.config.EnableSystemLogQuery {
		query, errs := readNodeQuery(r.URL.Query())
		switch {
		case len(errs) > 0:
			http.Error(w, errs.ToAggregate().Error(), http.StatusBadRequest)
			return
		case query == nil:
		case strings.TrimPrefix(r.URL.Path, "/logs/") != "":
			http.Error(w, "path not allowed in query mode", http.StatusNotAcceptable)
			return
		default:
			s.queried(w, r, query)
			return
		}
	}
	root, err := os.OpenRoot(s.config.LogDir)
	if err != nil {
		http.Error(w, fmt.Sprintf("open the log directory: %v", err), http.StatusInternalServerError)
		return
	}
	defer root.Close()
	http.StripPrefix("/logs", http.FileServerFS(root.FS())).ServeHTTP(w, s.resolved(r))
}

// resolved is the request for what a link in the log directory leads to: those
// of container logs are absolute. One that leads out of the directory stays, and
// the root does not follow it: a pod that may write there must not read the host.
func (s *Server) resolved(r *http.Request) *http.Request {
	dir, err := filepath.EvalSymlinks(s.config.LogDir)
	if err != nil {
		return r
	}
	name := strings.TrimPrefix(r.URL.Path, "/logs/")
	real, err := filepath.EvalSymlinks(filepath.Join(dir, name))
	if err != nil {
		return r // not there: the file server says so
	}
	rel, err := filepath.Rel(dir, real)
	if err != nil || !filepath.IsLocal(rel) || rel == filepath.Clean(name) {
		return r
	}
	to := r.Clone(r.Context())
	to.URL.Path = "/logs/" + rel
	if strings.HasSuffix(name, "/") {
		to.URL.Path += "/"
	}
	return to
}

// queried answers a node log query.
func (s *Server) queried(w http.ResponseWriter, r *http.Request, q *nodeQuery) {
	if errs := q.validate(s.config.LogDir); len(errs) > 0 {
		http.Error(w, errs.ToAggregate().Error(), http.StatusNotAcceptable)
		return
	}
	if len(q.files) > 0 {
		root, err := os.OpenRoot(s.config.LogDir)
		if err != nil {
			http.Error(w, fmt.Sprintf("open the log directory: %v", err), http.StatusInternalServerError)
			return
		}
		defer root.Close()
		http.ServeFileFS(w, r, root.FS(), strings.TrimPrefix(q.files[0], "/"))
		return
	}
	w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
	var out io.Writer = w
	if r.Header.Get("Accept-Encoding") == "gzip" {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer z.Close()
		out = z
	}
	ctx, cancel := context.WithTimeout(r.Context(), journalTimeout)
	defer cancel()
	q.write(ctx, out, s.config.LogDir)
}

// write writes what the services logged: those that the journal knows from
// there, the others from their files. An error is told where the log would be: the
// answer has begun.
func (q *nodeQuery) write(ctx context.Context, out io.Writer, dir string) {
	var units, files []string
	known := journalUnits(ctx)
	for _, service := range q.services {
		if strings.Contains(known, service+".service") {
			units = append(units, service)
		} else {
			files = append(files, service)
		}
	}
	if len(units) > 0 {
		cmd := exec.CommandContext(ctx, "journalctl", q.arguments(units)...)
		cmd.Stdout, cmd.Stderr = out, out
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			fmt.Fprint(out, "\nerror: journal output not available\n")
		}
	}
	if len(files) > 0 && q.restricted() {
		fmt.Fprintf(out, "\noptions present and query resolved to log files for %v\ntry without specifying options\n", files)
		return
	}
	for _, service := range files {
		err := copyLog(out, dir, service)
		switch {
		case errors.Is(err, os.ErrNotExist):
			fmt.Fprintf(out, "\nlog not found for %s\n", service)
		case err != nil:
			fmt.Fprintf(out, "\nerror getting log for %s: %v\n", service, err)
		}
	}
}

// journalUnits is the list of units with entries; empty where there is no journal.
func journalUnits(ctx context.Context) string {
	list, err := exec.CommandContext(ctx, "journalctl", "--field", "_SYSTEMD_UNIT").Output()
	if err != nil {
		return ""
	}
	return string(list)
}

// copyLog finds a service's file: NAME, NAME.log or NAME/NAME.log.
func copyLog(out io.Writer, dir, service string) error {
	var err error
	for _, name := range []string{service, service + ".log", service + "/" + service + ".log"} {
		if err = copyFile(out, dir, name); !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return err
}

func copyFile(out io.Writer, dir, name string) error {
	f, err := os.OpenInRoot(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.ErrNotExist
	}
	_, err = io.Copy(out, f)
	return err
}
