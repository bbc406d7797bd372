package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/cri/checkpoint"
	"github.com/berth-io/berth/cri/handler"
	"github.com/berth-io/berth/cri/rootfs"
	"github.com/berth-io/berth/cri/store"
)

// criuTimeout bounds a checkpoint that its request does not.
const criuTimeout = 10 * time.Minute

// CheckpointContainer writes a running container, which goes on, into an
// archive.
func (s *Server) CheckpointContainer(ctx context.Context, req *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if !filepath.IsAbs(req.GetLocation()) {
		return nil, status.Errorf(codes.InvalidArgument, "location: %q is not an absolute path of the archive to write", req.GetLocation())
	}
	if req.GetTimeout() < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "timeout: %d is negative", req.GetTimeout())
	}
	c, _, err := s.runningContainer(req.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := haveCRIU(); err != nil {
		return nil, err
	}
	timeout := criuTimeout
	if req.GetTimeout() > 0 {
		timeout = time.Duration(req.GetTimeout()) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %v: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	err = s.checkpoint(ctx, c, req.GetLocation())
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, status.Errorf(codes.DeadlineExceeded, "checkpoint container %s: %v", c.ID, err)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint container %s: %w", c.ID, err)
	}
	s.log.Info("container checkpointed", "container", c.ID, "archive", req.GetLocation())
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// haveCRIU: it is the OCI runtime that calls it, and finds it where we do.
func haveCRIU() error {
	if _, err := exec.LookPath("criu"); err != nil {
		return status.Errorf(codes.FailedPrecondition, "checkpoints need criu on this node: %v (install the package criu; criu check tells whether it works with this kernel)", err)
	}
	return nil
}

// checkpoint gathers the content of the archive beside the writable layer,
// where it is removed with the container if nobody does before.
func (s *Server) checkpoint(ctx context.Context, c store.Container, location string) error {
	// Neither its end nor an update comes in between.
	t := s.task(c.ID)
	if err := t.op.acquire(ctx); err != nil {
		return err
	}
	defer t.op.release()
	sb, ok := s.sandboxes.Get(c.SandboxID)
	if !ok {
		return findError("sandbox", c.SandboxID, store.ErrNotFound)
	}
	runtime, err := s.runtimeOf(sb)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.layer(c.ID).Dir, "checkpointing")
	if err := rootfs.RemoveTree(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, checkpoint.ImagesDir), 0o700); err != nil {
		return fmt.Errorf("make room for the checkpoint: %w", err)
	}
	err = s.dump(ctx, runtime, c, dir)
	if err == nil {
		err = s.describe(c, runtime, dir)
	}
	if err == nil {
		err = checkpoint.Pack(ctx, dir, location)
	}
	return errors.Join(err, rootfs.RemoveTree(dir))
}

// dump writes the container's processes and files.
func (s *Server) dump(ctx context.Context, runtime *handler.Runtime, c store.Container, dir string) error {
	if err := runtime.Checkpoint(ctx, c.ID, filepath.Join(dir, checkpoint.ImagesDir), dir); err != nil {
		// What was frozen when criu was killed has to go on.
		resume, cancel := context.WithTimeout(context.WithoutCancel(ctx), shimTimeout)
		defer cancel()
		if again := runtime.Resume(resume, c.ID); again != nil {
			s.log.Debug("container was not paused by its checkpoint", "container", c.ID, "error", again)
		}
		if why := criuError(filepath.Join(dir, "dump.log")); why != "" {
			err = fmt.Errorf("%w; criu says: %s", err, why)
		}
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, checkpoint.RootfsFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the root file system: %w", err)
	}
	return errors.Join(s.layer(c.ID).WriteChanges(f), f.Close())
}

// criuError is the last error in criu's log.
func criuError(path string) (last string) {
	log, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(log)) {
		if _, text, found := strings.Cut(line, "Error "); found {
			last = strings.TrimSpace(text)
		}
	}
	return last
}

// describe writes what the archive says of the container.
func (s *Server) describe(c store.Container, runtime *handler.Runtime, dir string) error {
	st := containerStatus(c)
	shown, err := protojson.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode the status: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, checkpoint.StatusDump), shown, 0o600); err != nil {
		return fmt.Errorf("write the status: %w", err)
	}
	if err := copyFile(filepath.Join(s.containers.Dir(c.ID), "config.json"), filepath.Join(dir, checkpoint.SpecFile)); err != nil {
		return err
	}
	if c.LogPath != "" {
		if err := copyFile(c.LogPath, filepath.Join(dir, checkpoint.LogFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	image := st.GetImage().GetImage()
	return errors.Join(
		checkpoint.WriteJSON(dir, checkpoint.ConfigFile, checkpoint.Config{
			ID: c.ID, Name: c.Config.GetMetadata().GetName(), RootfsImage: image, RootfsImageRef: c.ImageRef, RootfsImageName: image,
			Runtime: runtime.Name, CreatedAt: c.CreatedAt, CheckpointedAt: time.Now(),
		}),
		checkpoint.WriteJSON(dir, checkpoint.StatusFile, checkpoint.Status{
			CreatedAt: c.CreatedAt.UnixNano(), StartedAt: c.StartedAt.UnixNano(), Pid: uint32(c.Pid),
		}),
	)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy %s into the checkpoint: %w", from, err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy %s into the checkpoint: %w", from, err)
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy %s into the checkpoint: %w", from, err)
	}
	return nil
}
