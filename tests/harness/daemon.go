package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	readyTimeout = 2 * time.Minute
	stopTimeout  = time.Minute
)

// tagName marks the processes of a node in their environment.
const tagName = "BERTH_TEST_NODE"

// daemon is one run of `berth node`.
type daemon struct {
	cmd    *exec.Cmd
	ready  chan time.Time // when READY=1 came
	exited chan struct{}  // closed; err is valid after
	err    error
}

// Start runs the daemon and waits until it reports to be in control.
func (n *Node) Start(env ...string) {
	n.t.Helper()
	n.Launch(env...)
	n.WaitReady()
}

// Launch runs the daemon without waiting for anything.
func (n *Node) Launch(env ...string) {
	n.t.Helper()
	if n.Running() {
		n.t.Fatalf("the daemon of %s runs already", n.Name)
	}
	d := &daemon{ready: make(chan time.Time, 1), exited: make(chan struct{})}
	notify := filepath.Join(n.Dir, "notify.sock")
	if err := d.listenNotify(notify); err != nil {
		n.t.Fatalf("notify socket: %v", err)
	}
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatalf("%v", err)
	}
	defer log.Close()
	n.starts++
	fmt.Fprintf(log, "--- start %d\n", n.starts)
	args := append(append(n.InNetNS(), n.inBoot()...), filepath.Join(n.Bin, "berth"), "node", "--config", n.configFile)
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Env = append(append(n.Environ(), "NOTIFY_SOCKET="+notify), env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// Interrupting a test must not stop the node before its clean-up asks it to.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		n.t.Fatalf("start the daemon: %v", err)
	}
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	n.daemon = d
}

// Environ marks a process as the node's, so that it is found and ended with it.
func (n *Node) Environ() []string {
	env := []string{
		"PATH=" + n.Bin + ":" + os.Getenv("PATH"),
		"HOME=/root",
		tagName + "=" + n.Name,
	}
	return append(env, n.env...)
}

// WaitReady waits for READY=1 and returns when it came.
func (n *Node) WaitReady() time.Time {
	n.t.Helper()
	select {
	case at := <-n.daemon.ready:
		return at
	case <-n.daemon.exited:
		n.t.Fatalf("the daemon ended before it was ready: %v\n%s", n.daemon.err, n.LogTail(40))
	case <-time.After(readyTimeout):
		n.t.Fatalf("the daemon is not ready after %v\n%s", readyTimeout, n.LogTail(40))
	}
	return time.Time{}
}

// Running tells whether the daemon was started and has not ended.
func (n *Node) Running() bool {
	if n.daemon == nil {
		return false
	}
	select {
	case <-n.daemon.exited:
		return false
	default:
		return true
	}
}

// Pid of the daemon; what comes before it on its command line became it by exec.
func (n *Node) Pid() int { return n.daemon.cmd.Process.Pid }

// Kill ends the daemon with SIGKILL.
func (n *Node) Kill() {
	n.t.Helper()
	if err := n.daemon.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Fatalf("kill the daemon: %v", err)
	}
	<-n.daemon.exited
}

// Stop ends the daemon with SIGTERM, and fails the test when that takes too
// long or it reports an error.
func (n *Node) Stop() {
	n.t.Helper()
	if err := n.daemon.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		n.t.Fatalf("stop the daemon: %v", err)
	}
	select {
	case <-n.daemon.exited:
		if n.daemon.err != nil {
			n.t.Fatalf("the daemon did not end well: %v\n%s", n.daemon.err, n.LogTail(20))
		}
	case <-time.After(stopTimeout):
		n.t.Fatalf("the daemon runs %v after SIGTERM", stopTimeout)
	}
}

// WaitExit waits until the daemon has ended by itself and returns the signal
// that did it, or 0.
func (n *Node) WaitExit(ctx context.Context) (syscall.Signal, error) {
	select {
	case <-n.daemon.exited:
	case <-ctx.Done():
		return 0, fmt.Errorf("the daemon still runs: %w", ctx.Err())
	}
	if status, ok := n.daemon.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal(), nil
	}
	return 0, nil
}

// end is for clean-up: it kills at once, since pods are swept away after it.
func (d *daemon) end() {
	_ = d.cmd.Process.Kill() // an error means that it has ended
	<-d.exited
}

// listenNotify receives what sd_notify sends; the socket lasts for one run.
func (d *daemon) listenNotify(path string) error {
	_ = os.Remove(path) // of the run before
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	go func() {
		<-d.exited
		conn.Close()
	}()
	go func() {
		buf := make([]byte, 4096)
		for {
			count, err := conn.Read(buf)
			if err != nil {
				return // closed
			}
			for _, line := range strings.Split(string(buf[:count]), "\n") {
				if line == "READY=1" {
					select {
					case d.ready <- time.Now():
					default: // said before
					}
				}
			}
		}
	}()
	return nil
}

// LogFile is what the daemon prints.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "daemon.log") }

// LogTail returns the last lines of LogFile.
func (n *Node) LogTail(lines int) string {
	data, err := os.ReadFile(n.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
