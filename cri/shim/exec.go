package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/shim/internal/wire"
)

const (
	// maxOutput is the CRI's bound on each stream of an ExecSync, in bytes.
	maxOutput = 16 << 20
	// drainTimeout is how long ExecSync reads on after the process has ended:
	// one that it left in the background may hold the streams for ever.
	drainTimeout = 2 * time.Second
)

// Exec is a process that Client.Exec has started.
type Exec struct {
	client   *Client
	id       uint64
	stdio    Stdio
	terminal bool
	sealed   *os.File // goes with the request; nil: nothing does

	exited chan wire.ExecExit // one value, or closed when the shim is gone
}

// Exec starts a process in a running container and returns its streams.
func (c *Client) Exec(ctx context.Context, p Process, wantStdin bool) (*Exec, error) {
	spec, err := json.Marshal(p.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode the process: %w", err)
	}
	body := wire.Exec{ContainerID: p.ContainerID, Process: spec, Terminal: p.Spec.Terminal, Stdin: wantStdin, Timeout: p.Timeout}
	e := &Exec{client: c, terminal: p.Spec.Terminal, exited: make(chan wire.ExecExit, 1)}
	if p.Enter != nil {
		enter, err := json.Marshal(p.Enter)
		if err != nil {
			return nil, fmt.Errorf("encode how to start the process: %w", err)
		}
		if len(spec)+len(enter) < wire.MaxMessage/2 { // the runtime has no such limit
			body.Enter, e.sealed = enter, p.Sealed
		}
	}
	files, err := c.ask(ctx, wire.MethodExec, body, nil, e)
	if err != nil {
		return nil, err
	}
	want := 2
	switch {
	case e.terminal:
		want = 1
	case wantStdin:
		want = 3
	}
	if len(files) != want {
		closeFiles(files)
		return nil, fmt.Errorf("the shim sent %d streams, not %d", len(files), want)
	}
	switch {
	case e.terminal:
		e.stdio.Terminal = files[0]
	case wantStdin:
		e.stdio = Stdio{Stdin: files[0], Stdout: files[1], Stderr: files[2]}
	default:
		e.stdio = Stdio{Stdout: files[0], Stderr: files[1]}
	}
	return e, nil
}

// files are the descriptors that go with the request.
func (e *Exec) files() []int {
	if e == nil || e.sealed == nil {
		return nil
	}
	return []int{int(e.sealed.Fd())}
}

func (c *Client) execExited(m wire.Message) {
	var exit wire.ExecExit
	if json.Unmarshal(m.Body, &exit) != nil {
		return
	}
	c.mu.Lock()
	e := c.execs[exit.Exec]
	delete(c.execs, exit.Exec)
	c.mu.Unlock()
	if e != nil {
		e.exited <- exit
	}
}

// Stdio are the streams; Close closes those that the caller has not.
func (e *Exec) Stdio() Stdio { return e.stdio }

// Resize sets the size of the process's terminal in characters.
func (e *Exec) Resize(_ context.Context, width, height uint16) error {
	if e.stdio.Terminal == nil {
		return errors.New("the process has no terminal")
	}
	raw, err := e.stdio.Terminal.SyscallConn()
	if err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	var setErr error
	if err := raw.Control(func(fd uintptr) {
		setErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	}); err != nil {
		return fmt.Errorf("resize the terminal: %w", err)
	}
	if setErr != nil {
		return fmt.Errorf("resize the terminal: %w", setErr)
	}
	return nil
}

// Wait returns the exit code, 128+signal for a process ended by a signal. It
// may be called once.
func (e *Exec) Wait(ctx context.Context) (exitCode int, err error) {
	exit, err := e.wait(ctx)
	return exit.ExitCode, err
}

func (e *Exec) wait(ctx context.Context) (wire.ExecExit, error) {
	select {
	case exit, ok := <-e.exited:
		if !ok {
			return exit, fmt.Errorf("wait for the process: %w", ErrGone)
		}
		return exit, nil
	case <-ctx.Done():
		return wire.ExecExit{}, context.Cause(ctx)
	}
}

// Kill ends the process and all that it started.
func (e *Exec) Kill(ctx context.Context) error {
	err := e.client.call(ctx, wire.MethodExecKill, wire.ExecKill{Exec: e.id}, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// Close closes the streams. It does not end the process.
func (e *Exec) Close() error {
	for _, f := range []*os.File{e.stdio.Stdin, e.stdio.Stdout, e.stdio.Stderr, e.stdio.Terminal} {
		if f != nil {
			_ = f.Close() // the caller may have closed it
		}
	}
	return nil
}

// ExecSync runs a process to its end and returns its output. When ctx ends
// first, the process and all that it started are killed.
func (c *Client) ExecSync(ctx context.Context, p Process) (ExecResult, error) {
	p.Spec.Terminal = false
	e, err := c.Exec(ctx, p, false)
	if err != nil {
		return ExecResult{}, err
	}
	defer e.Close()
	var out, errOut capture
	var reading sync.WaitGroup
	reading.Go(func() { out.from(e.stdio.Stdout) })
	reading.Go(func() { errOut.from(e.stdio.Stderr) })
	exit, err := e.wait(ctx)
	if err != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		return ExecResult{}, errors.Join(fmt.Errorf("wait for the process in container %s: %w", p.ContainerID, err), e.Kill(kill))
	}
	deadline := time.Now().Add(drainTimeout)
	_ = e.stdio.Stdout.SetReadDeadline(deadline)
	_ = e.stdio.Stderr.SetReadDeadline(deadline)
	reading.Wait()
	return ExecResult{Stdout: out.Bytes(), Stderr: errOut.Bytes(), ExitCode: exit.ExitCode, TimedOut: exit.TimedOut}, nil
}

// capture keeps the first maxOutput bytes of a stream and reads the rest, so
// that its writer is not held up.
type capture struct{ bytes.Buffer }

func (c *capture) from(r io.Reader) {
	if _, err := io.CopyN(c, r, maxOutput); err == nil {
		_, _ = io.Copy(io.Discard, r)
	}
}
