package shim

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These tests run the real shim with the real runc.

// bed is a sandbox for one test.
type bed struct {
	t      testing.TB
	dir    string
	rootfs string
	client *Client
}

var shimBinary string

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Println("skipped: the shim's tests need root")
		return
	}
	// On a host without Go both binaries are brought along.
	if shimBinary = os.Getenv("BERTH_SHIM"); shimBinary != "" {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "shim-test")
	if err != nil {
		panic(err)
	}
	shimBinary = filepath.Join(dir, "berth-shim")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", shimBinary, "github.com/berth-io/berth/cmd/berth-shim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func runcPath(t testing.TB) string {
	t.Helper()
	path := os.Getenv("BERTH_RUNC")
	if path == "" {
		path = "../../bin/runc"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("skipped: no runc at %s: make build, or set BERTH_RUNC", path)
	}
	return path
}

func newBed(t *testing.T) *bed {
	return newBedWith(t, Runtime{Binary: runcPath(t), Timeout: time.Minute})
}

func newBedWith(t *testing.T, runtime Runtime) *bed {
	t.Helper()
	b := &bed{t: t, dir: t.TempDir()}
	b.rootfs = filepath.Join(b.dir, "rootfs")
	if err := b.makeRootfs(); err != nil {
		t.Skipf("skipped: %v", err)
	}
	var err error
	runtime.Root = filepath.Join(b.dir, "runc")
	b.client, err = Start(t.Context(), Sandbox{ID: "s", Dir: b.dir, Binary: shimBinary, Runtime: runtime})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.end)
	return b
}

func (b *bed) makeRootfs() error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("no busybox: install busybox-static: %w", err)
	}
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.rootfs, d), 0o755); err != nil {
			return err
		}
	}
	if out, err := exec.Command("cp", busybox, filepath.Join(b.rootfs, "bin/busybox")).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	for _, applet := range []string{"sh", "sleep", "cat", "echo", "seq", "dd", "kill", "stty", "tail", "true", "setsid", "ls", "wc", "tr"} {
		if err := os.Link(filepath.Join(b.rootfs, "bin/busybox"), filepath.Join(b.rootfs, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// end leaves nothing behind, whatever state the test left.
func (b *bed) end() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if b.t.Failed() {
		log, _ := os.ReadFile(filepath.Join(b.dir, "shim.log"))
		b.t.Logf("shim.log:\n%s", log)
	}
	if c, err := Connect(ctx, b.dir); err == nil {
		states, err := c.State(ctx)
		if err != nil {
			b.t.Error(err)
		}
		for _, st := range states {
			if err := c.Delete(ctx, st.ID); err != nil {
				b.t.Error(err)
			}
		}
		if err := c.Shutdown(ctx); err != nil {
			b.t.Error(err)
		}
		if err := c.Close(); err != nil {
			b.t.Error(err)
		}
	}
	if err := b.client.Close(); err != nil {
		b.t.Error(err)
	}
	reap(b.client.Pid())
	left, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test")
	for _, dir := range append(left, "/sys/fs/cgroup/berth-shim-test") {
		_ = os.Remove(dir)
	}
}

// bundle prepares a container that runs a shell script.
func (b *bed) bundle(script string, change func(*specs.Spec)) Container {
	b.t.Helper()
	id := strings.ToLower(rand.Text())
	dir := filepath.Join(b.dir, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: b.rootfs},
		Process: &specs.Process{Cwd: "/", Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/berth-shim-test/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}},
			Resources:   &specs.LinuxResources{},
		},
	}
	if change != nil {
		change(spec)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return Container{ID: id, Bundle: dir, LogPath: filepath.Join(dir, "log"), Terminal: spec.Process.Terminal}
}

func (b *bed) run(c Container) ContainerState {
	b.t.Helper()
	st, err := b.client.Run(b.t.Context(), c)
	if err != nil {
		b.t.Fatal(err)
	}
	if st.Pid == 0 || st.StartedAt.IsZero() {
		b.t.Fatalf("started as %+v", st)
	}
	return st
}

// exit waits for the exit event of a container.
func (b *bed) exit(id string) ContainerState {
	b.t.Helper()
	for {
		select {
		case e, ok := <-b.client.Events():
			if !ok {
				b.t.Fatal("the connection ended")
			}
			if e.Kind == EventExit && e.State.ID == id {
				return e.State
			}
		case <-time.After(time.Minute):
			b.t.Fatalf("no exit of %s", id)
		}
	}
}

func (b *bed) log(c Container) string {
	b.t.Helper()
	data, err := os.ReadFile(c.LogPath)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(data)
}

// contents drops the time stamps of log lines.
func contents(log string) (lines []string) {
	for line := range strings.Lines(log) {
		_, rest, _ := strings.Cut(line, " ")
		lines = append(lines, strings.TrimSuffix(rest, "\n"))
	}
	return lines
}

func TestExitCodesAndOutputAreKept(t *testing.T) {
	b := newBed(t)
	c := b.bundle("echo out; echo err >&2; exit 3", nil)
	b.run(c)
	st := b.exit(c.ID)
	if st.ExitCode != 3 || !st.Exited || st.OOMKilled {
		t.Errorf("ended as %+v", st)
	}
	got := strings.Join(contents(b.log(c)), "|")
	if got != "stdout F out|stderr F err" && got != "stderr F err|stdout F out" {
		t.Errorf("log %q", got)
	}
	var kept ContainerState
	data, err := os.ReadFile(filepath.Join(c.Bundle, "exit.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &kept); err != nil || kept.ExitCode != 3 || !kept.Exited {
		t.Errorf("exit.json says %+v, %v", kept, err)
	}
}

func TestASignalEndsAContainer(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	b.run(c)
	if err := b.client.Kill(t.Context(), c.ID, unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if st := b.exit(c.ID); st.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", st.ExitCode)
	}
	if err := b.client.Kill(t.Context(), c.ID, unix.SIGTERM, false); !errors.Is(err, ErrNotFound) {
		t.Errorf("a signal to an ended container: %v, want ErrNotFound", err)
	}
}

func TestAStartThatFailsTellsTheRuntimesReason(t *testing.T) {
	b := newBed(t)
	c := b.bundle("", func(s *specs.Spec) { s.Process.Args = []string{"/bin/nothing"} })
	_, err := b.client.Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "/bin/nothing") || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("error %v", err)
	}
	states, err := b.client.State(t.Context())
	if err != nil || len(states) != 0 {
		t.Errorf("left: %v, %v", states, err)
	}
}

func TestAFloodKeepsEachLineWholeThroughRotation(t *testing.T) {
	const lines = 100_000
	b := newBed(t)
	c := b.bundle(fmt.Sprintf("seq 1 %d", lines), nil)
	b.run(c)
	var old []string
	done := make(chan ContainerState, 1)
	go func() { done <- b.exit(c.ID) }()
	var all string
	for i := 0; ; i++ {
		select {
		case st := <-done:
			if st.LogDropped != 0 {
				t.Errorf("%d lines dropped", st.LogDropped)
			}
			for _, name := range append(old, c.LogPath) {
				data, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				all += string(data)
			}
			got := contents(all)
			if len(got) != lines {
				t.Fatalf("%d lines, want %d", len(got), lines)
			}
			for i, line := range got {
				if want := fmt.Sprintf("stdout F %d", i+1); line != want {
					t.Fatalf("line %d is %q", i+1, line)
				}
			}
			return
		default:
		}
		name := fmt.Sprintf("%s.%d", c.LogPath, i)
		if err := os.Rename(c.LogPath, name); err != nil {
			t.Fatal(err)
		}
		old = append(old, name)
		if err := b.client.ReopenLog(t.Context(), c.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABadLogPathDoesNotHoldTheContainerUp(t *testing.T) {
	b := newBed(t)
	c := b.bundle("seq 1 100000; exit 5", nil)
	c.LogPath = filepath.Join(b.dir, "missing", "log")
	b.run(c)
	st := b.exit(c.ID)
	if st.ExitCode != 5 || st.LogDropped == 0 {
		t.Errorf("ended as %+v", st)
	}
}

func TestABackgroundProcessDoesNotHoldTheExitBack(t *testing.T) {
	b := newBed(t)
	// Without a pid namespace of its own, what the first process leaves lives on.
	c := b.bundle("sleep 1000 & echo last; exit 0", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] })
	b.run(c)
	b.exit(c.ID)
	if got := contents(b.log(c)); len(got) != 1 || got[0] != "stdout F last" {
		t.Errorf("log %q", got)
	}
	if err := b.client.Kill(t.Context(), c.ID, unix.SIGKILL, true); err != nil {
		t.Errorf("kill what is left: %v", err)
	}
}

func process(args ...string) specs.Process {
	return specs.Process{Cwd: "/", Args: args, Env: []string{"PATH=/bin"}}
}

func TestExecSync(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	b.run(c)
	r, err := b.client.ExecSync(t.Context(), Process{ContainerID: c.ID, Spec: process("/bin/sh", "-c", "echo a; echo b >&2; exit 7")})
	if err != nil {
		t.Fatal(err)
	}
	if string(r.Stdout) != "a\n" || string(r.Stderr) != "b\n" || r.ExitCode != 7 || r.TimedOut {
		t.Errorf("%q %q %d %v", r.Stdout, r.Stderr, r.ExitCode, r.TimedOut)
	}
	if _, err := b.client.ExecSync(t.Context(), Process{ContainerID: c.ID, Spec: process("/bin/nothing")}); err == nil {
		t.Error("a missing program was run")
	}
	if _, err := b.client.ExecSync(t.Context(), Process{ContainerID: "none", Spec: process("/bin/true")}); !errors.Is(err, ErrNotFound) {
		t.Errorf("in no container: %v", err)
	}
}

func TestAnExecThatRunsOutOfTimeTakesItsChildrenAlong(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	st := b.run(c)
	r, err := b.client.ExecSync(t.Context(), Process{
		ContainerID: c.ID, Timeout: 300 * time.Millisecond,
		Spec: process("/bin/sh", "-c", "setsid sleep 555 & sleep 555"),
	})
	if err != nil || !r.TimedOut {
		t.Fatalf("%+v, %v", r, err)
	}
	for range 100 {
		if !strings.Contains(commands(t, st.Pid), "555") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("still there: %s", commands(t, st.Pid))
}

// commands lists the command lines of a container's processes.
func commands(t *testing.T, pid int) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/root/proc/[0-9]*/cmdline", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range files {
		data, _ := os.ReadFile(f)
		out = append(out, strings.ReplaceAll(string(data), "\x00", " "))
	}
	return strings.Join(out, "; ")
}

func TestAnExecWithATerminal(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	b.run(c)
	p := process("/bin/sh", "-c", "stty size; read x; echo got $x; exit 4")
	p.Terminal = true
	p.ConsoleSize = &specs.Box{Width: 100, Height: 30}
	e, err := b.client.Exec(t.Context(), Process{ContainerID: c.ID, Spec: p}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Resize(t.Context(), 120, 40); err != nil {
		t.Error(err)
	}
	if _, err := e.Stdio().Terminal.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	_, _ = io.Copy(&out, e.Stdio().Terminal) // a pty ends with EIO
	code, err := e.Wait(t.Context())
	if err != nil || code != 4 || !strings.Contains(out.String(), "got hello") {
		t.Errorf("exit code %d, %v, output %q", code, err, out.String())
	}
}

func TestAttachReadsAndWrites(t *testing.T) {
	b := newBed(t)
	c := b.bundle("while read x; do echo got $x; done; echo end; exit 0", nil)
	c.Stdin, c.StdinOnce = true, true
	b.run(c)
	looksOn, err := b.client.Attach(t.Context(), c.ID, false)
	if err != nil || looksOn.Stdin != nil {
		t.Fatalf("%+v, %v", looksOn, err)
	}
	closeFiles([]*os.File{looksOn.Stdout, looksOn.Stderr})
	s, err := b.client.Attach(t.Context(), c.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles([]*os.File{s.Stdout, s.Stderr})
	if _, err := s.Stdin.WriteString("one\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(s.Stdout)
	if line, err := r.ReadString('\n'); line != "got one\n" {
		t.Errorf("%q, %v", line, err)
	}
	s.Stdin.Close() // the only client with a stdin that is once
	if rest, err := io.ReadAll(r); string(rest) != "end\n" {
		t.Errorf("%q, %v", rest, err)
	}
	if st := b.exit(c.ID); st.ExitCode != 0 {
		t.Errorf("exit code %d", st.ExitCode)
	}
}

func TestANewDaemonFindsTheShimAndItsContainers(t *testing.T) {
	b := newBed(t)
	running, ended := b.bundle("exec sleep 1000", nil), b.bundle("exit 9", nil)
	st := b.run(running)
	b.run(ended)
	b.exit(ended.ID)
	if err := b.client.Close(); err != nil {
		t.Fatal(err)
	}
	old := b.client
	var err error
	if b.client, err = Connect(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	if b.client.Pid() != old.Pid() {
		t.Errorf("shim %d, was %d", b.client.Pid(), old.Pid())
	}
	states, err := b.client.State(t.Context())
	if err != nil || len(states) != 2 {
		t.Fatalf("%+v, %v", states, err)
	}
	for _, s := range states {
		switch s.ID {
		case running.ID:
			if s.Pid != st.Pid || s.Exited || !s.StartedAt.Equal(st.StartedAt) {
				t.Errorf("running container: %+v, was %+v", s, st)
			}
		case ended.ID:
			if !s.Exited || s.ExitCode != 9 {
				t.Errorf("ended container: %+v", s)
			}
		}
	}
	if err := b.client.Kill(t.Context(), running.ID, unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	b.exit(running.ID)
}

func TestShutdownIsRefusedWhileAContainerRuns(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	b.run(c)
	if err := b.client.Shutdown(t.Context()); !errors.Is(err, ErrRunning) {
		t.Errorf("shutdown: %v, want ErrRunning", err)
	}
	if err := b.client.Delete(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.client.Delete(t.Context(), c.ID); err != nil {
		t.Errorf("deleted twice: %v", err)
	}
	if err := b.client.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	for e := range b.client.Events() {
		if e.Kind == EventGone {
			if _, err := Connect(t.Context(), b.dir); !errors.Is(err, ErrGone) {
				t.Errorf("connect after the end: %v, want ErrGone", err)
			}
			return
		}
	}
	t.Error("no EventGone")
}

func TestAKilledShimIsNoticed(t *testing.T) {
	b := newBed(t)
	if err := syscall.Kill(b.client.Pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := <-b.client.Events(); e.Kind != EventGone {
		t.Errorf("event %v", e.Kind)
	}
	if _, err := b.client.State(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("state of a shim that is gone: %v", err)
	}
}

func TestAHungRuntimeIsKilledAndNamed(t *testing.T) {
	script := filepath.Join(t.TempDir(), "hung")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBedWith(t, Runtime{Binary: script, Timeout: 200 * time.Millisecond})
	_, err := b.client.Run(t.Context(), b.bundle("exit 0", nil))
	if err == nil || !strings.Contains(err.Error(), "did not finish in 200ms and was killed") {
		t.Errorf("error %v", err)
	}
}

func TestAHungShimDoesNotHangItsCaller(t *testing.T) {
	b := newBed(t)
	if err := syscall.Kill(b.client.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(b.client.Pid(), syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.client.State(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}

func TestOutOfMemoryIsToldApart(t *testing.T) {
	b := newBed(t)
	limit := int64(8 << 20)
	c := b.bundle("tail /dev/zero", func(s *specs.Spec) {
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		s.Mounts[1] = specs.Mount{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}}
		s.Mounts = s.Mounts[:2]
	})
	b.run(c)
	if st := b.exit(c.ID); !st.OOMKilled || st.ExitCode != 137 {
		t.Errorf("ended as %+v", st)
	}
}

func TestAnInitProcessHoldsASharedPIDNamespace(t *testing.T) {
	b := newBed(t)
	pid, err := b.client.Init(t.Context(), Init{})
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.client.Init(t.Context(), Init{})
	if err != nil || again != pid {
		t.Errorf("asked again: %d, %v, was %d", again, err, pid)
	}
	c := b.bundle("exec sleep 1000", func(s *specs.Spec) { s.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pid) })
	b.run(c)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := b.exit(c.ID); st.ExitCode != 137 {
		t.Errorf("ended as %+v", st)
	}
}
