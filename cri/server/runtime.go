package server

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/berth-io/berth/cri/shim"
)

// runRuntime runs one command of the OCI runtime from the daemon itself: for
// what a shim is not there to do, or that changes no process.
func runRuntime(ctx context.Context, r shim.Runtime, stdin []byte, args ...string) error {
	if r.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.Timeout)
		defer cancel()
	}
	all := []string{"--root", r.Root}
	if r.SystemdCgroup {
		all = append(all, "--systemd-cgroup")
	}
	cmd := exec.CommandContext(ctx, r.Binary, append(all, args...)...)
	cmd.Stdin = bytes.NewReader(stdin)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", r.Binary, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// runtimeDelete makes the runtime forget a container, and kills what is left
// of it. A container that the runtime does not know is not an error.
func (s *Server) runtimeDelete(ctx context.Context, r shim.Runtime, id string) error {
	return runRuntime(ctx, r, nil, "delete", "--force", id)
}
