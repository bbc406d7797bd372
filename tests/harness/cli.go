package harness

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const cliTimeout = 4 * time.Minute

// Result of one command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// CLI runs berth with arguments.
func (n *Node) CLI(args ...string) Result {
	n.t.Helper()
	return n.CLIWithInput(nil, args...)
}

// CLIWithInput runs berth with something on its standard input.
func (n *Node) CLIWithInput(stdin io.Reader, args ...string) Result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), cliTimeout)
	defer cancel()
	cmd := n.Command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String(), Code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		n.t.Fatalf("berth %s: %v after %v\n%s%s", strings.Join(args, " "), err, cliTimeout, r.Stdout, r.Stderr)
	}
	return r
}

// Command prepares a berth command in the node's network namespace.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	line := append(append(n.InNetNS(), filepath.Join(n.Bin, "berth")), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(n.Environ(), "BERTH_CONFIG="+n.configFile)
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// MustCLI runs berth, fails the test unless it exits 0, and returns what it
// printed.
func (n *Node) MustCLI(args ...string) string {
	n.t.Helper()
	r := n.CLI(args...)
	if r.Code != 0 {
		n.t.Fatalf("berth %s: exit status %d\n%s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}
