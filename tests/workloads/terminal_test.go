package workloads

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// session is a kubectl on a terminal of its own.
type session struct {
	t    *testing.T
	ctx  context.Context
	cmd  *exec.Cmd
	tty  *os.File // the terminal's other side
	done chan error

	mu  sync.Mutex
	out strings.Builder
}

// terminal runs kubectl on a terminal of 40 lines and 100 columns.
func (s *space) terminal(args ...string) *session {
	s.t.Helper()
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { tty.Close() })
	side, err := otherSide(tty)
	if err != nil {
		s.t.Fatal(err)
	}
	defer side.Close()
	k := &session{t: s.t, ctx: s.ctx, tty: tty, done: make(chan error, 1)}
	k.cmd = shared.Command(s.ctx, append([]string{"kubectl", "-n", s.ns}, args...)...)
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = side, side, side
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := k.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for buf := make([]byte, 4096); ; {
			n, err := tty.Read(buf)
			k.mu.Lock()
			k.out.Write(buf[:n])
			k.mu.Unlock()
			if err != nil {
				return // EIO, once nothing has the terminal open
			}
		}
	}()
	go func() {
		err := k.cmd.Wait()
		<-read
		k.done <- err
	}()
	return k
}

func otherSide(tty *os.File) (*os.File, error) {
	fd := int(tty.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock the terminal: %w", err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100}); err != nil {
		return nil, fmt.Errorf("size of the terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number of the terminal: %w", err)
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
}

func (k *session) output() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.String()
}

// expect waits until the terminal shows a text.
func (k *session) expect(text string) {
	k.t.Helper()
	for !strings.Contains(k.output(), text) {
		select {
		case err := <-k.done:
			k.t.Fatalf("kubectl ended (%v) before %q:\n%s", err, text, k.output())
		case <-k.ctx.Done():
			k.t.Fatalf("the terminal does not show %q:\n%s", text, k.output())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// enter types a line.
func (k *session) enter(line string) {
	k.t.Helper()
	if _, err := k.tty.WriteString(line + "\n"); err != nil {
		k.t.Fatal(err)
	}
}

// end waits for kubectl's exit status.
func (k *session) end() int {
	k.t.Helper()
	select {
	case <-k.done:
	case <-k.ctx.Done():
		k.t.Fatalf("kubectl does not end:\n%s", k.output())
	}
	return k.cmd.ProcessState.ExitCode()
}
