package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/shim"
	"github.com/berth-io/berth/cri/store"
)

// ExecSync runs a command in a container and returns its output.
func (s *Server) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if len(req.GetCmd()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "cmd: it is empty")
	}
	c, client, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	process, err := s.process(c, req.GetCmd(), false)
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(req.GetTimeout()) * time.Second
	process.Timeout = timeout
	result, err := client.ExecSync(ctx, process)
	if err != nil {
		return nil, err // it names the container
	}
	if result.TimedOut {
		// The kubelet's probes look for this code.
		return nil, status.Errorf(codes.DeadlineExceeded, "exec in container %s: command timed out after %s", c.ID, timeout)
	}
	stdout, stderr := fitAnswer(result.Stdout, result.Stderr)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(result.ExitCode)}, nil
}

// maxExecOutput is what fits, in bytes, into an answer that a kubelet accepts:
// 16 MiB with everything around the output.
const maxExecOutput = 16<<20 - 1<<10

// fitAnswer cuts output that would not arrive at all otherwise. api.proto asks
// for a cap on the output as a whole; errors have a quarter for sure.
func fitAnswer(stdout, stderr []byte) (cutStdout, cutStderr []byte) {
	stderr = stderr[:min(len(stderr), max(maxExecOutput/4, maxExecOutput-len(stdout)))]
	return stdout[:min(len(stdout), maxExecOutput-len(stderr))], stderr
}

// runningContainer finds a container that processes can be started in.
func (s *Server) runningContainer(id string) (store.Container, Shim, error) {
	c, err := s.containers.Find(id)
	if err != nil {
		return c, nil, findError("container", id, err)
	}
	if c.State != store.ContainerRunning {
		return c, nil, status.Errorf(codes.FailedPrecondition, "container %s is not running but %s", c.ID, c.State)
	}
	client := s.pod(c.SandboxID).client()
	if client == nil {
		return c, nil, status.Errorf(codes.Unavailable, "the shim of container %s is gone", c.ID)
	}
	return c, client, nil
}

// ReopenContainerLog makes the shim open the log anew after its rotation.
func (s *Server) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, client, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	err = client.ReopenLog(ctx, c.ID)
	if errors.Is(err, shim.ErrNotFound) {
		return nil, status.Errorf(codes.FailedPrecondition, "container %s has ended", c.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("reopen the log of container %s: %w", c.ID, err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
