package cri

import (
	"context"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestAPortForwardThatFailsEndsNoOther(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("ports")
	sandbox := r.runPod(pod)
	for name, address := range map[string]string{"loopback": "127.0.0.1:9000", "six": "[::1]:9001", "any": ":9002"} {
		config := r.containerConfig(name, "testbox", "serve", "-http", "127.0.0.1:0", "-tcp", address, "-name", name)
		r.run(sandbox, pod, config)
		r.waitLog(pod, config, "serving")
	}
	for _, protocol := range protocols {
		t.Run(protocol, func(t *testing.T) {
			r := r.on(t)
			conn := r.forward(protocol, sandbox)
			open := openForward(t, conn, 9000, 1)
			echo(t, open, "loopback", "before")
			refused := openForward(t, conn, 9999, 2)
			err := within(t, "the error", refused.failed)
			if err == nil || !strings.Contains(err.Error(), "9999") || !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("a port without a listener: %v", err)
			}
			echo(t, open, "loopback", "after")
			echo(t, openForward(t, conn, 9001, 3), "six", "another")
			echo(t, openForward(t, conn, 9002, 4), "any", "another")
			must(t, open.data.Close())
			if rest, err := io.ReadAll(open.data); len(rest) != 0 || err != nil {
				t.Errorf("after the end of the input: %q, %v", rest, err)
			}
			must(t, within(t, "the end of the stream", open.failed))
		})
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// echo sends a line to testbox and wants it back with the server's name.
func echo(t testing.TB, f forwarded, name, text string) {
	t.Helper()
	_, err := fmt.Fprintln(f.data, text)
	must(t, err)
	got := make([]byte, len(name+" "+text+"\n"))
	_, err = io.ReadFull(f.data, got)
	must(t, err)
	equal(t, "echo", string(got), name+" "+text+"\n")
}

// gibibyteTimeout bounds how long it may take, on a machine that is busy with
// other things.
const gibibyteTimeout = 6 * time.Minute

// much is the context of a stream of a gibibyte.
func much(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), gibibyteTimeout)
	t.Cleanup(cancel)
	return ctx
}

// gibibyte is how much goes through each kind of stream, both ways.
const gibibyte = 1 << 30

// pattern is a gibibyte that a sum tells from every other.
func pattern() (io.Reader, hash.Hash32) {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	return io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), gibibyte), sum), sum
}

// received counts and sums what comes back.
type received struct {
	sum   hash.Hash32
	count int64
}

func newReceived() *received {
	return &received{sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
}

func (r *received) Write(p []byte) (int, error) {
	r.count += int64(len(p))
	return r.sum.Write(p)
}

func (r *received) check(t testing.TB, sent hash.Hash32) {
	t.Helper()
	if r.count != gibibyte || r.sum.Sum32() != sent.Sum32() {
		t.Errorf("%d bytes came back, sum %08x; sent %d, sum %08x", r.count, r.sum.Sum32(), gibibyte, sent.Sum32())
	}
}

func TestAGibibyteThroughEachStreamComesBackWhole(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("much")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "nc", "-ll", "-p", "9000", "-e", "cat"))
	t.Run("exec", func(t *testing.T) {
		r := r.on(t)
		l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"cat"}, Stdin: true, Stdout: true})
		in, sent := pattern()
		out := newReceived()
		must(t, l.executor(t, "SPDY").StreamWithContext(much(t), remotecommand.StreamOptions{Stdin: in, Stdout: out}))
		out.check(t, sent)
	})
	t.Run("exec over WebSocket", func(t *testing.T) {
		r := r.on(t)
		l := r.execLink(&runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"cat"}, Stdin: true, Stdout: true})
		in, sent := pattern()
		out := newReceived()
		must(t, l.executor(t, "WebSocket").StreamWithContext(much(t), remotecommand.StreamOptions{Stdin: in, Stdout: out}))
		out.check(t, sent)
	})
	t.Run("attach", func(t *testing.T) {
		r := r.on(t)
		config := r.containerConfig("echo", "cat")
		config.Stdin, config.StdinOnce, config.LogPath = true, true, ""
		id := r.run(sandbox, pod, config)
		l := r.attachLink(&runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
		in, sent := pattern()
		out := newReceived()
		must(t, l.executor(t, "SPDY").StreamWithContext(much(t), remotecommand.StreamOptions{Stdin: in, Stdout: out}))
		out.check(t, sent)
	})
	t.Run("port-forward", func(t *testing.T) {
		r := r.on(t)
		f := openForward(t, r.forward("SPDY", sandbox), 9000, 1)
		in, sent := pattern()
		written := make(chan error, 1)
		go func() {
			if _, err := io.Copy(f.data, in); err != nil {
				written <- fmt.Errorf("send: %w", err)
				return
			}
			written <- f.data.Close()
		}()
		out := newReceived()
		_, err := io.Copy(out, f.data)
		must(t, err)
		must(t, <-written)
		must(t, within(t, "the error stream", f.failed))
		out.check(t, sent)
	})
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}
