package kubeletapi

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/proxy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/berth-io/berth/agent/podspec"
)

// streamOptions are which streams a client wants.
type streamOptions struct{ stdin, stdout, stderr, tty bool }

// streamsOf reads them as the kubelet does (k8s.io/cri-streaming
// pkg/streaming/remotecommand NewOptions): with a terminal there is no stderr.
func streamsOf(q url.Values) (streamOptions, error) {
	o := streamOptions{stdin: q.Get("input") == "1", stdout: q.Get("output") == "1", stderr: q.Get("error") == "1", tty: q.Get("tty") == "1"}
	o.stderr = o.stderr && !o.tty
	if !o.stdin && !o.stdout && !o.stderr {
		return o, errors.New("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	o, _, c := s.command(w, r)
	if c == nil {
		return
	}
	resp, err := s.parts.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.GetId(), Cmd: r.URL.Query()["command"], Tty: o.tty, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr,
	})
	s.connect(w, r, "exec", o, resp.GetUrl(), err)
}

// attach takes from the pod whether there is a terminal: a running process has
// one or has none.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	o, pod, c := s.command(w, r)
	if c == nil {
		return
	}
	spec := specOf(pod, r.PathValue("container"))
	if spec == nil {
		fail(w, http.StatusInternalServerError, fmt.Sprintf("container %s not found in pod %s_%s", r.PathValue("container"), pod.Name, pod.Namespace))
		return
	}
	resp, err := s.parts.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.GetId(), Tty: spec.TTY, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr && !spec.TTY,
	})
	s.connect(w, r, "attach", o, resp.GetUrl(), err)
}

// command finds what exec and attach need, or answers what is missing: then
// the container is nil.
func (s *Server) command(w http.ResponseWriter, r *http.Request) (streamOptions, *v1.Pod, *runtimeapi.Container) {
	o, err := streamsOf(r.URL.Query())
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return o, nil, nil
	}
	pod := s.pod(w, r)
	if pod == nil {
		return o, nil, nil
	}
	return o, pod, s.container(w, r, pod)
}

// container finds the running container that a request names, or answers that
// none runs.
func (s *Server) container(w http.ResponseWriter, r *http.Request, pod *v1.Pod) *runtimeapi.Container {
	name := r.PathValue("container")
	c, err := s.containerOf(r.Context(), pod, name)
	switch {
	case err != nil:
		failStream(w, err)
	case c == nil:
		fail(w, http.StatusInternalServerError, fmt.Sprintf("container not found (%q)", name))
	}
	return c
}

// run runs a command without streams. Its words are parted by spaces, as ever
// in this call.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	c := s.container(w, r, pod)
	if c == nil {
		return
	}
	cmd := strings.Split(r.FormValue("cmd"), " ")
	resp, err := s.parts.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.GetId(), Cmd: cmd})
	if err == nil && resp.GetExitCode() != 0 {
		err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(cmd, " "), resp.GetExitCode(), resp.GetStderr())
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")            // as the kubelet says, whatever it is
	_, _ = w.Write(append(resp.GetStdout(), resp.GetStderr()...)) // a client that is gone gets nothing
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	tunnel := wsstream.IsWebSocketRequestWithTunnelingProtocol(r)
	var ports []int32
	if wsstream.IsWebSocketRequest(r) && !tunnel {
		var err error
		if ports, err = portsOf(r.URL.Query()); err != nil {
			fail(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	list, err := s.parts.Runtime.ListPodSandbox(r.Context(), &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{State: ready, LabelSelector: map[string]string{podspec.LabelPodUID: string(pod.UID)}},
	})
	if err != nil {
		failStream(w, err)
		return
	}
	var sandbox *runtimeapi.PodSandbox
	for _, sb := range list.GetItems() {
		if sandbox == nil || sb.GetCreatedAt() > sandbox.GetCreatedAt() {
			sandbox = sb
		}
	}
	if sandbox == nil {
		fail(w, http.StatusInternalServerError, fmt.Sprintf("pod not found (%q)", pod.Name+"_"+pod.Namespace))
		return
	}
	resp, err := s.parts.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox.GetId(), Port: ports})
	target, err := streamURL(resp.GetUrl(), err)
	switch {
	case err != nil:
		failStream(w, err)
	case tunnel:
		s.parts.Metrics.WebSocket("portforward")
		s.tunnel(w, r, target)
	default:
		s.pass(w, r, target)
	}
}

// portsOf are the ports that a WebSocket client forwards, given with its
// request because it opens no streams (k8s.io/cri-streaming NewV4Options).
func portsOf(q url.Values) ([]int32, error) {
	texts := q["port"]
	if len(texts) == 0 {
		return nil, errors.New(`query parameter "port" is required`)
	}
	var ports []int32
	for _, list := range texts {
		for _, text := range strings.Split(list, ",") {
			n, err := strconv.ParseUint(text, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("unable to parse %q as a port", text)
			}
			ports = append(ports, int32(n))
		}
	}
	return ports, nil
}

// connect connects the client of a command with the runtime.
func (s *Server) connect(w http.ResponseWriter, r *http.Request, kind string, o streamOptions, to string, err error) {
	target, err := streamURL(to, err)
	switch {
	case err != nil:
		failStream(w, err)
	case wsstream.IsWebSocketRequestWithStreamCloseProtocol(r):
		s.parts.Metrics.WebSocket(kind)
		s.translate(w, r, target, o)
	default:
		s.pass(w, r, target)
	}
}

// pass passes the connection on to the runtime's streaming server, upgrade and
// all.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, target *url.URL) {
	proxy.NewUpgradeAwareHandler(target, nil, false, true, responder{s}).ServeHTTP(w, r)
}

type responder struct{ s *Server }

func (p responder) Error(w http.ResponseWriter, r *http.Request, err error) {
	p.s.config.Log.Warn("a stream to the runtime failed", "path", r.URL.Path, "err", err)
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func streamURL(to string, err error) (*url.URL, error) {
	if err != nil {
		return nil, err
	}
	target, err := url.Parse(to)
	if err != nil {
		return nil, fmt.Errorf("the runtime's streaming URL: %w", err)
	}
	return target, nil
}

// failStream answers with an error of the runtime as k8s.io/cri-streaming's
// WriteError.
func failStream(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch status.Code(err) {
	case codes.NotFound:
		code = http.StatusNotFound
	case codes.ResourceExhausted:
		w.Header().Set("Retry-After", "60")
		code = http.StatusTooManyRequests
	}
	fail(w, code, err.Error())
}
