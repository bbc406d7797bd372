package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/observed"
)

// Observations are what the runtime says of a pod.
type Observations interface {
	Pod(uid string) observed.Pod
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	c := s.container(w, r)
	if c == nil {
		return
	}
	q := r.URL.Query()
	resp, err := s.config.Streams.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.ID, Cmd: q["command"], Tty: on(q, "tty"),
		Stdin: on(q, "input"), Stdout: on(q, "output"), Stderr: on(q, "error"),
	})
	s.stream(w, r, resp.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	c := s.container(w, r)
	if c == nil {
		return
	}
	q := r.URL.Query()
	resp, err := s.config.Streams.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.ID, Tty: on(q, "tty"),
		Stdin: on(q, "input"), Stdout: on(q, "output"), Stderr: on(q, "error"),
	})
	s.stream(w, r, resp.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	worker := s.worker(w, r)
	if worker == nil {
		return
	}
	pod := worker.Pod()
	obs := s.config.Observations.Pod(string(pod.UID))
	sandbox := obs.ReadySandbox()
	if sandbox == nil {
		http.Error(w, fmt.Sprintf("pod %s/%s has no running sandbox", pod.Namespace, pod.Name), http.StatusConflict)
		return
	}
	resp, err := s.config.Streams.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox.ID})
	s.stream(w, r, resp.GetUrl(), err)
}

// stream passes the connection on to the runtime's streaming server, upgrade
// and all, as the kubelet does.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, to string, err error) {
	if err != nil {
		http.Error(w, status.Convert(err).Message(), http.StatusInternalServerError)
		return
	}
	target, err := url.Parse(to)
	if err != nil {
		http.Error(w, fmt.Sprintf("the runtime's streaming URL: %v", err), http.StatusInternalServerError)
		return
	}
	handler := proxy.NewUpgradeAwareHandler(target, nil, false, true, responder{})
	handler.ServeHTTP(w, r)
}

type responder struct{}

func (responder) Error(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, fmt.Sprintf("stream to the runtime: %v", err), http.StatusBadGateway)
}

// container finds the running container that a request names, or answers why
// there is none.
func (s *Server) container(w http.ResponseWriter, r *http.Request) *observed.Container {
	worker := s.worker(w, r)
	if worker == nil {
		return nil
	}
	pod, name := worker.Pod(), r.PathValue("container")
	if !has(pod, name) {
		http.Error(w, fmt.Sprintf("container %q is not in pod %s/%s", name, pod.Namespace, pod.Name), http.StatusNotFound)
		return nil
	}
	obs := s.config.Observations.Pod(string(pod.UID))
	c := obs.Container(name)
	if c == nil || c.State != observed.Running {
		http.Error(w, fmt.Sprintf("container %q of pod %s/%s is not running", name, pod.Namespace, pod.Name), http.StatusConflict)
		return nil
	}
	return c
}

func has(pod *v1.Pod, container string) bool {
	return slices.ContainsFunc(slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers), func(c v1.Container) bool { return c.Name == container })
}

// on reads a flag as the kubelet does: 1 or true.
func on(q url.Values, name string) bool { return q.Get(name) == "1" || q.Get(name) == "true" }
