package kubeletapi

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkpoint has the runtime write a container's state into a file below
// KubeletDir/checkpoints, named as the kubelet names it (CheckpointContainer of
// pkg/kubelet/kubelet.go). The file is the caller's to remove.
func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request) {
	pod := s.pod(w, r)
	if pod == nil {
		return
	}
	name := r.PathValue("container")
	if specOf(pod, name) == nil {
		fail(w, http.StatusNotFound, fmt.Sprintf("container %s does not exist", name))
		return
	}
	req := &runtimeapi.CheckpointContainerRequest{}
	if timeouts := r.URL.Query()["timeout"]; len(timeouts) > 0 {
		n, err := strconv.ParseInt(timeouts[len(timeouts)-1], 10, 64)
		if err != nil {
			fail(w, http.StatusNotFound, "cannot parse value of timeout parameter")
			return
		}
		req.Timeout = n
	}
	failed := func(err error) {
		fail(w, http.StatusInternalServerError, fmt.Sprintf("checkpointing of %s/%s/%s failed (%v)", pod.Namespace, pod.Name, name, err))
	}
	c, err := s.containerOf(r.Context(), pod, name)
	if err == nil && c == nil {
		err = fmt.Errorf("container %s not found", name)
	}
	if err != nil {
		failed(err)
		return
	}
	dir := filepath.Join(s.config.KubeletDir, "checkpoints")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		failed(err)
		return
	}
	req.ContainerId = c.GetId()
	req.Location = filepath.Join(dir, fmt.Sprintf("checkpoint-%s_%s-%s-%s.tar", pod.Name, pod.Namespace, name, time.Now().Format(time.RFC3339)))
	if _, err := s.parts.Runtime.CheckpointContainer(r.Context(), req); err != nil {
		failed(err)
		return
	}
	s.answer(w, map[string][]string{"items": {req.Location}})
}
