package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	utilexec "k8s.io/utils/exec"

	"github.com/berth-io/berth/tests/harness"
)

func TestExecAndAttachCarryStreamsSizesAndExitCodes(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("streams")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			r := r.on(t)
			t.Run("output, errors and the exit code are the command's", func(t *testing.T) { exitCode(t, r.on(t), protocol, id) })
			t.Run("the end of the input reaches the command, whose output goes on", func(t *testing.T) { halfClose(t, r.on(t), protocol, id) })
			t.Run("a terminal has the client's size, and follows it", func(t *testing.T) { terminal(t, r.on(t), protocol, id) })
			t.Run("a command that is not there is an error", func(t *testing.T) { missingCommand(t, r.on(t), protocol, id) })
			t.Run("a slow client gets everything that the command said before its end", func(t *testing.T) { slowClient(t, r.on(t), protocol, id) })
			t.Run("a command that does not read its input does not keep the client", func(t *testing.T) { unreadInput(t, r.on(t), protocol, id) })
			t.Run("attach brings a container its input, and its output back", func(t *testing.T) { attachOnce(t, r.on(t), protocol, sandbox, pod) })
		})
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

func exitCode(t *testing.T, r *runtime, protocol, id string) {
	l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 7"}, Stdout: true, Stderr: true})
	var out, errOut bytes.Buffer
	err := l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("ended with %v, want exit code 7", err)
	}
	equal(t, "output", out.String(), "out\n")
	equal(t, "errors", errOut.String(), "err\n")
	if err := l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}); err == nil {
		t.Error("the URL is good a second time")
	}
}

func halfClose(t *testing.T, r *runtime, protocol, id string) {
	l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "cat; sleep 0.2; echo end"}, Stdin: true, Stdout: true})
	var out bytes.Buffer
	must(t, l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdin: strings.NewReader("input\n"), Stdout: &out}))
	equal(t, "output", out.String(), "input\nend\n")
}

// sizeQueue hands out the sizes that are put into it.
type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func terminal(t *testing.T, r *runtime, protocol, id string) {
	const script = `until [ "$(stty size 2>/dev/null)" = "40 100" ]; do sleep 0.02; done; echo first
until [ "$(stty size 2>/dev/null)" = "50 120" ]; do sleep 0.02; done; echo second $TERM; tty >/dev/null && echo terminal`
	l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Stdin: true, Stdout: true, Tty: true})
	sizes := make(sizeQueue, 1)
	sizes <- remotecommand.TerminalSize{Width: 100, Height: 40}
	in, inWriter := io.Pipe()
	defer inWriter.Close()
	var out watched
	ended := make(chan error, 1)
	e, ctx := l.executor(t, protocol), r.ctx()
	go func() {
		ended <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: &out, Tty: true, TerminalSizeQueue: sizes})
	}()
	out.wait(t, "first")
	sizes <- remotecommand.TerminalSize{Width: 120, Height: 50}
	defer close(sizes)
	must(t, within(t, "the end of the exec", ended))
	equal(t, "output", out.String(), "first\r\nsecond xterm\r\nterminal\r\n")
}

func missingCommand(t *testing.T, r *runtime, protocol, id string) {
	l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"no-such-command"}, Stdout: true})
	err := l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no-such-command") {
		t.Errorf("ended with %v", err)
	}
}

// lateReader takes its time longer than the runtime waits for more output.
type lateReader struct {
	buf  bytes.Buffer
	once sync.Once
}

func (s *lateReader) Write(p []byte) (int, error) {
	s.once.Do(func() { time.Sleep(4 * time.Second) })
	return s.buf.Write(p)
}

func slowClient(t *testing.T, r *runtime, protocol, id string) {
	const size = 8 << 20 // more than the connection holds
	l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", fmt.Sprintf("head -c %d /dev/zero; echo the end", size)}, Stdout: true})
	var out lateReader
	must(t, l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdout: &out}))
	if got := out.buf.Bytes(); len(got) != size+len("the end\n") || !bytes.HasSuffix(got, []byte("the end\n")) {
		t.Errorf("got %d bytes of %d", len(got), size+len("the end\n"))
	}
}

// zeros never end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func unreadInput(t *testing.T, r *runtime, protocol, id string) {
	l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 10 >/dev/null; echo done; exit 3"}, Stdin: true, Stdout: true})
	var out bytes.Buffer
	err := l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdin: zeros{}, Stdout: &out})
	var exit utilexec.ExitError
	if !errors.As(err, &exit) || exit.ExitStatus() != 3 || out.String() != "done\n" {
		t.Errorf("said %q, ended with %v", out.String(), err)
	}
}

func attachOnce(t *testing.T, r *runtime, protocol, sandbox string, pod *runtimeapi.PodSandboxConfig) {
	config := r.containerConfig("once"+protocol, "sh", "-c", "cat; echo err >&2; exit 5")
	config.Stdin, config.StdinOnce = true, true
	id := r.run(sandbox, pod, config)
	l := r.attachLink(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	var out, errOut bytes.Buffer
	must(t, l.executor(t, protocol).StreamWithContext(r.ctx(), remotecommand.StreamOptions{Stdin: strings.NewReader("input\n"), Stdout: &out, Stderr: &errOut}))
	equal(t, "output", out.String(), "input\n")
	equal(t, "errors", errOut.String(), "err\n")
	equal(t, "exit code", r.waitExit(id).ExitCode, 5)
	r.waitLog(pod, config, "stdout F input\n")
	_, err := r.RemoveContainer(r.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	must(t, err)
}

// watched is a buffer that can be waited for.
type watched struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (w *watched) wait(t testing.TB, text string) {
	t.Helper()
	harness.Eventually(t, callTimeout, fmt.Sprintf("output with %q", text), func() string {
		if got := w.String(); !strings.Contains(got, text) {
			return fmt.Sprintf("it is %q", got)
		}
		return ""
	})
}

// processes are those of a name in a container. What has ended stays as a
// zombie where the container's first process is not one to reap it.
func (r *runtime) processes(id, name string) string {
	r.t.Helper()
	return r.exec(id, "sh", "-c", "for p in $(pidof "+name+"); do grep -q '^State:.[ZX]' /proc/$p/status || echo $p; done 2>/dev/null")
}

// noProcess waits until no process of that name is in a container.
func (r *runtime) noProcess(id, name string) {
	r.t.Helper()
	harness.Eventually(r.t, callTimeout, "end of "+name, func() string { return r.processes(id, name) })
}

func TestClientsThatDisappearTakeTheirCommandsAndNothingElse(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("gone")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "cat")
	config.Stdin = true
	id := r.run(sandbox, pod, config)
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			r := r.on(t)
			exec := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo started; sleep 1000 & sleep 1000"}, Stdout: true})
			attach := r.attachLink(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
			var execOut, attachOut watched
			in, inWriter := io.Pipe()
			defer inWriter.Close()
			ended := make(chan error, 2)
			for _, s := range []struct {
				e    remotecommand.Executor
				opts remotecommand.StreamOptions
			}{
				{exec.executor(t, protocol), remotecommand.StreamOptions{Stdout: &execOut}},
				{attach.executor(t, protocol), remotecommand.StreamOptions{Stdin: in, Stdout: &attachOut}},
			} {
				go func() { ended <- s.e.StreamWithContext(context.Background(), s.opts) }()
			}
			execOut.wait(t, "started\n")
			_, err := inWriter.Write([]byte("hello\n"))
			must(t, err)
			attachOut.wait(t, "hello\n")
			exec.cut()
			attach.cut()
			within(t, "the end of a stream", ended)
			within(t, "the end of a stream", ended)
			r.noProcess(id, "sleep")
			equal(t, "state", r.status(id).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
			// A connection that is full of input for a command that reads none.
			full := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sleep", "1000"}, Stdin: true, Stdout: true})
			go func(e remotecommand.Executor) {
				ended <- e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: zeros{}, Stdout: io.Discard})
			}(full.executor(t, protocol))
			harness.Eventually(t, callTimeout, "a command that runs", func() string {
				if r.processes(id, "sleep") == "" {
					return "none yet"
				}
				return ""
			})
			time.Sleep(time.Second) // fills the buffers on the way
			full.reset()
			within(t, "the end of a stream", ended)
			r.noProcess(id, "sleep")
		})
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

func TestARestartOfTheDaemonEndsSessionsButNoContainers(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("restarted")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "cat")
	config.Stdin = true
	id := r.run(sandbox, pod, config)
	before := r.status(id)
	exec := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo started; sleep 1000"}, Stdout: true})
	attach := r.attachLink(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
	conn := r.forward("SPDY", sandbox)
	var execOut, attachOut watched
	in, inWriter := io.Pipe()
	defer inWriter.Close()
	ended := make(chan error, 2)
	go func(e remotecommand.Executor) {
		ended <- e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: &execOut})
	}(exec.executor(t, "SPDY"))
	go func(e remotecommand.Executor) {
		ended <- e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: in, Stdout: &attachOut})
	}(attach.executor(t, "WebSocket"))
	execOut.wait(t, "started\n")
	_, err := inWriter.Write([]byte("hello\n"))
	must(t, err)
	attachOut.wait(t, "hello\n")
	r.Kill()
	within(t, "the end of a stream", ended)
	within(t, "the end of a stream", ended)
	within(t, "the end of the port-forward", conn.CloseChan())
	r.Start()
	r.noProcess(id, "sleep")
	after := r.status(id)
	equal(t, "state", after.State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "start", after.StartedAt, before.StartedAt)
	again := r.attachLink(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
	var out watched
	go func(e remotecommand.Executor) {
		ended <- e.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdin: strings.NewReader("again\n"), Stdout: &out})
	}(again.executor(t, "SPDY"))
	out.wait(t, "again\n")
	r.removePod(sandbox, pod)
	within(t, "the end of a stream", ended)
	r.CheckNothingLeft()
}
