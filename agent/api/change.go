package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/berth-io/berth/agent/manifest"
)

// maxManifest bounds what /run reads, as the API server bounds its requests.
const maxManifest = 3 << 20

// run keeps a manifest in the manifest directory, from where it comes into
// force like any other. The answer is the pod as it will be.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		http.Error(w, fmt.Sprintf("read the manifest: %v", err), http.StatusBadRequest)
		return
	}
	pod, err := s.config.Manifests.Add(data)
	var rejected manifest.Rejection
	switch {
	case errors.As(err, &rejected):
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
	case err != nil:
		http.Error(w, err.Error(), http.StatusConflict)
	default:
		s.answer(w, pod)
	}
}

func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	var grace *int64
	if text := r.URL.Query().Get("grace"); text != "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds < 0 {
			http.Error(w, fmt.Sprintf("grace %q: it must be a number of seconds, zero or more", text), http.StatusBadRequest)
			return
		}
		grace = &seconds
	}
	if err := s.config.Pods.Stop(r.PathValue("namespace"), r.PathValue("pod"), grace); err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
	}
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request) {
	worker := s.worker(w, r)
	if worker == nil {
		return
	}
	if err := s.config.Manifests.Remove(worker.Pod()); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}
