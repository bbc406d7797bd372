package kubeletapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/agent/podlog"
)

// statusTimeout bounds the runtime's answer about one container.
const statusTimeout = 10 * time.Second

func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	opts, err := logOptions(r.URL.Query())
	switch {
	case errors.Is(err, errDecode):
		fail(w, http.StatusBadRequest, errDecode.Error())
		return
	case errors.Is(err, errInvalid):
		fail(w, http.StatusUnprocessableEntity, errInvalid.Error())
		return
	}
	name, container := r.PathValue("pod"), r.PathValue("container")
	pod := s.find(r)
	if pod == nil {
		fail(w, http.StatusNotFound, fmt.Sprintf("pod %q does not exist", name))
		return
	}
	if specOf(pod, container) == nil {
		fail(w, http.StatusNotFound, fmt.Sprintf("container %q not found in pod %q", container, name))
		return
	}
	id, err := logOf(pod, container, opts.Previous)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	s.log(w, r, id, readOptions(opts, time.Now()))
}

// logOf chooses the container whose log is meant: the one that runs, or else
// the last that did. The errors are the kubelet's (validateContainerLogStatus of
// pkg/kubelet/kubelet_pods.go).
func logOf(pod *v1.Pod, name string, previous bool) (id string, err error) {
	s := statusOf(pod, name)
	if s == nil {
		return "", fmt.Errorf("container %q in pod %q is not available", name, pod.Name)
	}
	last := ""
	if t := s.LastTerminationState.Terminated; t != nil {
		last = t.ContainerID
	}
	ended := fmt.Errorf("container %q in pod %q is terminated", name, pod.Name)
	switch {
	case previous && last == "":
		return "", fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	case previous:
		id = last
	case s.State.Running != nil:
		id = s.ContainerID
	case s.State.Terminated != nil:
		if id = s.State.Terminated.ContainerID; id == "" { // the next one did not start
			id = last
		}
		if id == "" {
			return "", ended
		}
	case s.LastTerminationState.Terminated != nil:
		if id = last; id == "" {
			return "", ended
		}
	case s.State.Waiting != nil:
		why := s.State.Waiting.Reason
		switch why {
		case "ErrImagePull":
			why = "image can't be pulled"
		case "ImagePullBackOff":
			why = "trying and failing to pull image"
		}
		return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod.Name, why)
	default:
		return "", fmt.Errorf("container %q in pod %q is waiting to start - no logs yet", name, pod.Name)
	}
	_, id, _ = strings.Cut(id, "://")
	return id, nil
}

func statusOf(pod *v1.Pod, container string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == container {
				return &list[i]
			}
		}
	}
	return nil
}

// log writes a container's log.
func (s *Server) log(w http.ResponseWriter, r *http.Request, id string, opts podlog.Options) {
	c, err := s.containerStatus(r.Context(), id)
	if err != nil || c.GetLogPath() == "" {
		fail(w, http.StatusBadRequest, fmt.Sprintf("unable to retrieve container logs for %s", id))
		return
	}
	// A container is taken to run on while its runtime is away.
	running := func() bool {
		c, err := s.containerStatus(r.Context(), id)
		return status.Code(err) == codes.Unavailable || c.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	out := &flusher{w: w}
	if opts.Follow {
		// The client shall see at once that it is connected, however quiet the
		// container is.
		if _, err := out.Write(nil); err != nil {
			return
		}
	}
	err = podlog.Read(r.Context(), c.GetLogPath(), opts, running, out)
	switch {
	case err == nil, r.Context().Err() != nil:
	case !out.began:
		fail(w, http.StatusBadRequest, err.Error())
	default:
		s.config.Log.Warn("a log could not be read to its end", "container", id, "err", err)
	}
}

func (s *Server) containerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	c, err := s.parts.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	return c.GetStatus(), err
}

// flusher sends what is written at once: a followed log is read as it grows.
type flusher struct {
	w     http.ResponseWriter
	began bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.began = true
	n, err := f.w.Write(p)
	if err == nil {
		err = http.NewResponseController(f.w).Flush()
	}
	return n, err
}
