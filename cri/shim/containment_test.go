package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// eventually asks until it is true: for what the kernel does in its own time.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range 500 {
		if is() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("not so after 5 s: %s", what)
}

func status(t *testing.T, pid int, field string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no %s in the status of process %d", field, pid)
	return ""
}

func TestAContainerStartsWithNoSignalIgnored(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	st := b.run(c)
	eventually(t, "the script runs sleep", func() bool { return strings.HasPrefix(commands(t, st.Pid), "sleep") })
	got, err := strconv.ParseUint(status(t, st.Pid, "SigIgn"), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	// The real-time signals are passed on as the test's own parent left them.
	const standard = 1<<31 - 1
	if ours := got & standard; ours != 0 {
		t.Errorf("ignored signals %#x, want none", ours)
	}
}

func TestAShimOutlivesATerminatingSignal(t *testing.T) {
	b := newBed(t)
	if _, err := b.client.State(t.Context()); err != nil { // it is up
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if err := syscall.Kill(b.client.Pid(), sig); err != nil {
			t.Fatal(err)
		}
	}
	b.run(b.bundle("exec sleep 1000", nil))
}

func TestASignalToAllReachesTheFirstProcessOnce(t *testing.T) {
	b := newBed(t)
	c := b.bundle("trap 'echo term' TERM; echo ready; while :; do sleep 0.05; done", func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[1:] })
	b.run(c)
	eventually(t, "the trap is set", func() bool { return strings.Contains(b.log(c), "ready") })
	if err := b.client.Kill(t.Context(), c.ID, unix.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the signal is handled", func() bool { return strings.Contains(b.log(c), "term") })
	if err := b.client.Kill(t.Context(), c.ID, unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	b.exit(c.ID)
	if n := strings.Count(b.log(c), "term"); n != 1 {
		t.Errorf("%d signals arrived, want 1", n)
	}
}

func TestTheInitProcessHasNothingThatAContainerCouldTake(t *testing.T) {
	b := newBed(t)
	pid, err := b.client.Init(t.Context(), Init{})
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if got := status(t, pid, field); strings.Trim(got, "0") != "" {
			t.Errorf("%s is %s, want none", field, got)
		}
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("%v, %v", tasks, err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil || !strings.Contains(string(text), "CapEff:\t0000000000000000") || !strings.Contains(string(text), "NoNewPrivs:\t1") {
			t.Errorf("%s: %v\n%s", task, err, text)
		}
	}
	for _, name := range []string{"pid", "mnt", "net", "ipc", "uts"} {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		if ours, err := os.Readlink("/proc/self/ns/" + name); err != nil || its == ours {
			t.Errorf("%s namespace %s is ours, %v", name, its, err)
		}
	}
	// As a debugging container of the pod sees it.
	c := b.bundle("ls -a /proc/1/root/; wc -l </proc/1/mounts; echo done", func(s *specs.Spec) {
		s.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pid)
		set := []string{"CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}
	})
	b.run(c)
	b.exit(c.ID)
	var out []string
	for _, line := range contents(b.log(c)) {
		if text, ok := strings.CutPrefix(line, "stdout F "); ok {
			out = append(out, text)
		}
	}
	if got := strings.Join(out, " "); got != ". .. 1 done" {
		t.Errorf("a container with CAP_SYS_PTRACE saw %q\n%s", got, b.log(c))
	}
}

func TestTheInitProcessReapsAndJoinsThePodsCgroup(t *testing.T) {
	dir := "/sys/fs/cgroup/pids/berth-shim-test-pod"
	if _, err := os.Stat(filepath.Dir(dir)); err != nil {
		dir = "/sys/fs/cgroup/berth-shim-test-pod"
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, "the pod's cgroup can be removed", func() bool {
			err := os.Remove(dir)
			return err == nil || errors.Is(err, os.ErrNotExist)
		})
	})
	b := newBed(t)
	pid, err := b.client.Init(t.Context(), Init{CgroupDirs: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(dir + "/cgroup.procs"); err != nil || strings.TrimSpace(string(text)) != strconv.Itoa(pid) {
		t.Errorf("in the cgroup: %q, %v, want %d", text, err, pid)
	}
	// The orphan's new parent is the init process, which must reap it.
	c := b.bundle("(setsid sleep 0.1 &); sleep 0.5; cat /proc/[0-9]*/stat", func(s *specs.Spec) {
		s.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pid)
	})
	b.run(c)
	b.exit(c.ID)
	if log := b.log(c); strings.Contains(log, ") Z ") {
		t.Errorf("a zombie is left:\n%s", log)
	}
	if _, err := b.client.Init(t.Context(), Init{CgroupDirs: []string{"/nowhere"}}); err != nil {
		t.Errorf("asked again: %v", err)
	}
}

func TestAnInitProcessThatCannotJoinItsCgroupIsNotLeftBehind(t *testing.T) {
	b := newBed(t)
	_, err := b.client.Init(t.Context(), Init{CgroupDirs: []string{"/sys/fs/cgroup/nowhere"}})
	if err == nil || !strings.Contains(err.Error(), "join the pod's cgroup") {
		t.Errorf("error %v", err)
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		text, _ := os.ReadFile(stat) // of others, which come and go
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[1] == strconv.Itoa(b.client.Pid()) {
			t.Errorf("a child is left: %s", text)
		}
	}
}

func TestExecsOfADaemonThatHasGoneAreEnded(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	st := b.run(c)
	for _, started := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := b.client.Exec(ctx, Process{ContainerID: c.ID, Spec: process("/bin/sh", "-c", "setsid sleep 666 & sleep 666")}, false)
			done <- err
		}()
		if started {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			eventually(t, "the exec runs", func() bool { return strings.Contains(commands(t, st.Pid), "666") })
		} else {
			time.Sleep(5 * time.Millisecond) // the runtime needs longer
		}
		if err := b.client.Close(); err != nil {
			t.Fatal(err)
		}
		cancel()
		var err error
		if b.client, err = Connect(t.Context(), b.dir); err != nil {
			t.Fatal(err)
		}
		// Once the runtime has finished another exec it has finished the first.
		if _, err := b.client.ExecSync(t.Context(), Process{ContainerID: c.ID, Spec: process("/bin/true")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		eventually(t, "the exec has ended", func() bool { return !strings.Contains(commands(t, st.Pid), "666") })
	}
}

func TestAnExecWhoseCallerGaveUpIsEnded(t *testing.T) {
	b := newBed(t)
	c := b.bundle("exec sleep 1000", nil)
	st := b.run(c)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	_, err := b.client.ExecSync(ctx, Process{ContainerID: c.ID, Spec: process("/bin/sh", "-c", "sleep 777 & sleep 777")})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	time.Sleep(200 * time.Millisecond)
	eventually(t, "the exec has ended", func() bool { return !strings.Contains(commands(t, st.Pid), "777") })
}

func TestAContainerThatAHungRuntimeHalfMadeIsRemoved(t *testing.T) {
	script := filepath.Join(t.TempDir(), "half")
	text := "#!/bin/sh\n" + runcPath(t) + " \"$@\" || exit\ncase \"$*\" in *' run '*) sleep 1000;; esac\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBedWith(t, Runtime{Binary: script, Timeout: 2 * time.Second})
	c := b.bundle("exec sleep 888", nil)
	_, err := b.client.Run(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "did not finish in 2s and was killed") {
		t.Fatalf("error %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(b.dir, "runc")); len(left) != 0 {
		t.Errorf("the runtime still knows %v", left)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test/" + c.ID); len(left) != 0 {
		t.Errorf("cgroups left: %v", left)
	}
	if states, err := b.client.State(t.Context()); err != nil || len(states) != 0 {
		t.Errorf("state %v, %v", states, err)
	}
}

func TestAFullDiskDoesNotHoldTheContainerUp(t *testing.T) {
	b := newBed(t)
	disk := filepath.Join(b.dir, "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	c := b.bundle("seq 1 50000; read x; echo after; read x; exit 6", nil)
	c.LogPath, c.Stdin = filepath.Join(disk, "log"), true
	b.run(c)
	s, err := b.client.Attach(t.Context(), c.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles([]*os.File{s.Stdin, s.Stdout, s.Stderr})
	var dropped int64
	eventually(t, "the disk is full and stays so", func() bool {
		states, err := b.client.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		kept := int64(strings.Count(b.log(c), "\n"))
		dropped = states[0].LogDropped
		return dropped > 0 && dropped+kept == 50000
	})
	for i, line := range contents(b.log(c)) {
		if want := fmt.Sprintf("stdout F %d", i+1); line != want {
			t.Fatalf("line %d is %q: an entry was torn", i+1, line)
		}
	}
	// There is room again.
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stdin.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log goes on", func() bool { return strings.HasSuffix(b.log(c), "stdout F after\n") })
	if _, err := s.Stdin.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	if st := b.exit(c.ID); st.ExitCode != 6 || st.LogDropped != dropped {
		t.Errorf("ended as %+v, dropped before: %d", st, dropped)
	}
}

func TestAnAttachedReaderThatIsSlowHoldsNobodyUp(t *testing.T) {
	b := newBed(t)
	c := b.bundle("read x; seq 1 300000", nil)
	c.Stdin = true
	b.run(c)
	slow, err := b.client.Attach(t.Context(), c.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles([]*os.File{slow.Stdin, slow.Stdout, slow.Stderr})
	quick, err := b.client.Attach(t.Context(), c.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles([]*os.File{quick.Stdin, quick.Stdout, quick.Stderr})
	if _, err := quick.Stdin.WriteString("go\n"); err != nil {
		t.Fatal(err)
	}
	if st := b.exit(c.ID); st.ExitCode != 0 || st.LogDropped != 0 {
		t.Errorf("ended as %+v", st)
	}
	if n := strings.Count(b.log(c), "\n"); n != 300000 {
		t.Errorf("%d lines in the log", n)
	}
	if err := b.client.Delete(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, slow.Stdout); err != nil {
		t.Errorf("what is left for the slow one: %v", err)
	}
}

func TestATerminalIsSharedResizedAndLogged(t *testing.T) {
	b := newBed(t)
	c := b.bundle("stty -echo; echo ready; read x; stty size; read x; echo got $x", func(s *specs.Spec) { s.Process.Terminal = true })
	c.Stdin = true
	b.run(c)
	s, err := b.client.Attach(t.Context(), c.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFiles([]*os.File{s.Stdin, s.Stdout})
	if s.Stderr != nil {
		t.Error("a terminal has a stderr")
	}
	eventually(t, "the terminal is set up", func() bool { return strings.Contains(b.log(c), "ready") })
	if err := b.client.Resize(t.Context(), c.ID, 132, 43); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stdin.WriteString("size\nhello\n"); err != nil {
		t.Fatal(err)
	}
	if st := b.exit(c.ID); st.ExitCode != 0 {
		t.Errorf("ended as %+v", st)
	}
	var lines []string
	for in := bufio.NewScanner(s.Stdout); in.Scan(); {
		lines = append(lines, strings.TrimSpace(in.Text()))
	}
	for _, want := range []string{"43 132", "got hello"} {
		if !strings.Contains(strings.Join(lines, "|"), want) || !strings.Contains(b.log(c), "stdout F "+want) {
			t.Errorf("%q is not in %q and %q", want, lines, b.log(c))
		}
	}
}

func TestLongLinesBecomeParts(t *testing.T) {
	b := newBed(t)
	c := b.bundle("dd if=/dev/zero bs=40000 count=1 2>/dev/null | tr '\\0' a; echo; echo -n end", nil)
	b.run(c)
	b.exit(c.ID)
	var got []string
	for _, line := range contents(b.log(c)) {
		f := strings.SplitN(line, " ", 3)
		got = append(got, fmt.Sprintf("%s %d", f[1], len(f[2])))
	}
	if s := strings.Join(got, ", "); s != "P 16384, P 16384, F 7232, P 3" {
		t.Errorf("entries %s", s)
	}
}
