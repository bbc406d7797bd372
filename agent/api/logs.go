package api

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/observed"
	"github.com/berth-io/berth/agent/podlog"
)

// logs serves a container's log; the parameters are the kubelet's.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	worker := s.worker(w, r)
	if worker == nil {
		return
	}
	pod, name := worker.Pod(), r.PathValue("container")
	if !has(pod, name) {
		http.Error(w, fmt.Sprintf("container %q is not in pod %s/%s", name, pod.Namespace, pod.Name), http.StatusNotFound)
		return
	}
	opts, err := logOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c, err := s.logOf(pod, name, on(r.URL.Query(), "previous"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	id, uid := c.ID, string(pod.UID)
	running := func() bool {
		obs := s.config.Observations.Pod(uid)
		now := obs.ByID(id)
		return now != nil && now.State == observed.Running
	}
	out := &flusher{w: w}
	err = podlog.Read(r.Context(), c.LogPath, opts, running, out)
	switch {
	case err == nil, r.Context().Err() != nil:
	case !out.began && errors.Is(err, fs.ErrNotExist):
		http.Error(w, fmt.Sprintf("container %q has no log: it was removed", name), http.StatusNotFound)
	case !out.began:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		s.config.Log.Warn("a log could not be read to its end", "pod", pod.Namespace+"/"+pod.Name, "container", name, "err", err)
	}
}

// logOf finds the container whose log is asked for.
func (s *Server) logOf(pod *v1.Pod, name string, previous bool) (*observed.Container, error) {
	obs := s.config.Observations.Pod(string(pod.UID))
	c := obs.Container(name)
	if c != nil && c.State == observed.Created && !previous {
		c = obs.Previous(c) // as the kubelet does while the next one is waiting to start
	}
	if c == nil {
		return nil, fmt.Errorf("container %q of pod %s/%s is waiting to start: it has no log yet", name, pod.Namespace, pod.Name)
	}
	if !previous {
		return c, nil
	}
	if c = obs.Previous(c); c == nil {
		return nil, fmt.Errorf("previous terminated container %q in pod %s/%s not found", name, pod.Namespace, pod.Name)
	}
	return c, nil
}

func logOptions(q url.Values, now time.Time) (podlog.Options, error) {
	o := podlog.Options{Follow: on(q, "follow"), Timestamps: on(q, "timestamps"), TailLines: -1}
	for _, p := range []struct {
		name string
		to   func(int64)
	}{
		{"tailLines", func(n int64) { o.TailLines = n }},
		{"limitBytes", func(n int64) { o.LimitBytes = n }},
		{"sinceSeconds", func(n int64) { o.Since = now.Add(-time.Duration(n) * time.Second) }},
	} {
		text := q.Get(p.name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 {
			return o, fmt.Errorf("%s %q: it must be a number, zero or more", p.name, text)
		}
		p.to(n)
	}
	if text := q.Get("sinceTime"); text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return o, fmt.Errorf("sinceTime %q: it must be a time such as %s", text, time.RFC3339)
		}
		o.Since = t
	}
	return o, nil
}

// flusher sends what is written at once: a followed log is read as it grows.
type flusher struct {
	w     http.ResponseWriter
	began bool
}

var _ io.Writer = (*flusher)(nil)

func (f *flusher) Write(p []byte) (int, error) {
	f.began = true
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}
