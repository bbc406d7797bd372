package handler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// outputPatience is how long a command that has ended may leave its output to
// processes it started.
const outputPatience = time.Second

// command runs one command of the runtime and returns its standard output. A
// command that does not end in time is killed with all it started.
func (r *Runtime) command(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	var expired context.CancelFunc = func() {}
	if r.Timeout > 0 {
		ctx, expired = context.WithTimeoutCause(ctx, r.Timeout, fmt.Errorf("it did not finish in %v and was killed: %w", r.Timeout, context.DeadlineExceeded))
	}
	defer expired()
	all := append([]string{"--root", r.Root}, r.Args...)
	if r.SystemdCgroup {
		all = append(all, "--systemd-cgroup")
	}
	cmd := exec.CommandContext(ctx, r.Path, append(all, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = outputPatience
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &said
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	err = fmt.Errorf("%s %s: %w", filepath.Base(r.Path), args[0], err)
	if text := strings.TrimSpace(said.String()); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return nil, err
}

// Delete makes the runtime forget a container, and kills what is left of it. A
// container that the runtime does not know is not an error.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if !r.Knows(id) {
		return nil
	}
	_, err := r.command(ctx, nil, "delete", "--force", id)
	return err
}

// Knows tells whether the runtime keeps state of a container. Both runc and
// crun have it in ROOT/ID.
func (r *Runtime) Knows(id string) bool {
	_, err := os.Stat(filepath.Join(r.Root, id))
	return !errors.Is(err, os.ErrNotExist)
}

// Checkpoint writes the processes of a running container into imageDir and
// leaves them running; criu's log goes to workDir. Open connections and locks
// are no reason to refuse.
func (r *Runtime) Checkpoint(ctx context.Context, id, imageDir, workDir string) error {
	_, err := r.command(ctx, nil, "checkpoint", "--leave-running", "--image-path", imageDir, "--work-path", workDir,
		"--tcp-established", "--ext-unix-sk", "--file-locks", id)
	return err
}

// Resume lets the processes of a container go on that a checkpoint was killed
// over.
func (r *Runtime) Resume(ctx context.Context, id string) error {
	_, err := r.command(ctx, nil, "resume", id)
	return err
}

// Update changes the limits of a running container.
func (r *Runtime) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	data, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("encode the limits: %w", err)
	}
	_, err = r.command(ctx, data, "update", "--resources", "-", id)
	return err
}
