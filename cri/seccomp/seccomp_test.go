package seccomp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-io/berth/cri/cgroup"
)

// These tests run the real runc and ask the real kernel.

const denied = unix.EXDEV // by the profile, for mkdir

// TestMain is also the process that is confined: it installs the filter in the
// file that it is told of, and exits with what mkdir(2) says then.
func TestMain(m *testing.M) {
	if file := os.Getenv("BERTH_TEST_FILTER"); file != "" {
		os.Exit(confined(file))
	}
	os.Exit(m.Run())
}

func confined(file string) int {
	runtime.LockOSThread()
	program, err := os.ReadFile(file)
	if err != nil || len(program) == 0 {
		return 201
	}
	f := unix.SockFprog{Len: uint16(len(program) / instructionSize), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&f))); errno != 0 {
		return 202
	}
	var errno syscall.Errno
	if errors.As(unix.Mkdirat(unix.AT_FDCWD, file+".dir", 0o700), &errno) {
		return int(errno)
	}
	return 0
}

func newFilters(t *testing.T) (*Filters, *strings.Builder) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("skipped: a container needs root")
	}
	runc := os.Getenv("BERTH_RUNC")
	if runc == "" {
		runc = "../../bin/runc"
	}
	runc, err := filepath.Abs(runc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(runc); err != nil {
		t.Skipf("skipped: no runc at %s: make build, or set BERTH_RUNC", runc)
	}
	cgroups, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	return New(Config{Dir: t.TempDir(), Runtime: runc, Cgroups: cgroups, Timeout: time.Minute, Logger: slog.New(slog.NewTextHandler(&log, nil))}), &log
}

// run has f run until the test's body is over.
func run(t *testing.T, f *Filters) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		left, err := filepath.Glob(filepath.Join(f.cfg.Dir, "*", "*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		cgroups, err := filepath.Glob("/sys/fs/cgroup/*/" + namePrefix + "*")
		if err != nil || len(cgroups) > 0 {
			t.Errorf("left: %v, %v", cgroups, err)
		}
	}
}

func profile(t *testing.T, change func(*specs.LinuxSeccomp)) json.RawMessage {
	t.Helper()
	p := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	change(p)
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// await asks until the profile's filter is known, or has been tried.
func await(t *testing.T, f *Filters, profile json.RawMessage) []byte {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		program, known := f.Of(profile)
		f.mu.Lock()
		tried := true
		for _, one := range f.known {
			tried = tried && one.profile == nil
		}
		f.mu.Unlock()
		if known || tried {
			return program
		}
	}
	t.Fatal("it is not found out")
	return nil
}

func needKernel(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(tellsFilters); err != nil {
		t.Skip("skipped: the kernel does not tell filters: it has no CONFIG_CHECKPOINT_RESTORE")
	}
}

func TestAProfilesFilterDoesWhatTheProfileSays(t *testing.T) {
	needKernel(t)
	f, log := newFilters(t)
	stop := run(t, f)
	errno := uint(denied)
	forbids := profile(t, func(p *specs.LinuxSeccomp) {
		for i := range p.Syscalls {
			names := p.Syscalls[i].Names[:0:0]
			for _, n := range p.Syscalls[i].Names {
				if n != "mkdir" && n != "mkdirat" {
					names = append(names, n)
				}
			}
			p.Syscalls[i].Names = names
		}
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: &errno})
	})
	allows := profile(t, func(*specs.LinuxSeccomp) {})
	if _, known := f.Of(forbids); known {
		t.Error("known before it was found out")
	}
	for _, c := range []struct {
		profile json.RawMessage
		want    int
	}{{forbids, int(denied)}, {allows, 0}} {
		program := await(t, f, c.profile)
		file := filepath.Join(t.TempDir(), "filter")
		if err := os.WriteFile(file, program, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "BERTH_TEST_FILTER="+file)
		err := cmd.Run()
		var ended *exec.ExitError
		if err != nil && !errors.As(err, &ended) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("mkdir ended with %d, not %d", got, c.want)
		}
	}
	// What was forgotten while it waited is asked for twice, and found out once.
	for k := range f.known {
		f.find(t.Context(), k)
	}
	if _, known := f.Of(allows); !known {
		t.Error("a filter that was known is not any more")
	}
	stop()
	if log.Len() > 0 {
		t.Error(log.String())
	}
}

func TestAProfileThatCannotBeFoundOutIsTriedOnce(t *testing.T) {
	needKernel(t)
	f, log := newFilters(t)
	stop := run(t, f)
	for _, bad := range []json.RawMessage{
		json.RawMessage(`{"defaultAction": "SCMP_ACT_NONSENSE"}`),                                            // runc refuses it
		json.RawMessage(`{"defaultAction": "SCMP_ACT_KILL_PROCESS", "architectures": ["SCMP_ARCH_X86_64"]}`), // the runtime's own process dies of it
		json.RawMessage(`[]`),
	} {
		if program := await(t, f, bad); program != nil {
			t.Errorf("%s has a filter", bad)
		}
		if _, known := f.Of(bad); known {
			t.Errorf("%s is known", bad)
		}
	}
	stop()
	if n := strings.Count(log.String(), "cannot be had"); n != 3 {
		t.Errorf("said %d times:\n%s", n, log)
	}
}

func TestWhatAKilledDaemonLeftIsRemoved(t *testing.T) {
	f, _ := newFilters(t)
	name := namePrefix + "killed"
	bundle := filepath.Join(f.cfg.Dir, name)
	if err := writeBundle(bundle, name, profile(t, func(*specs.LinuxSeccomp) {}), false); err != nil {
		t.Fatal(err)
	}
	pidFile := filepath.Join(bundle, "pid")
	if err := f.command(t.Context(), bundle, "create", "--bundle", bundle, "--pid-file", pidFile, name); err != nil {
		t.Fatal(err)
	}
	// Of another, the runtime had come as far as its cgroup.
	if err := os.MkdirAll(filepath.Join(f.cfg.Dir, namePrefix+"half"), 0o700); err != nil {
		t.Fatal(err)
	}
	half, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.Ensure("/" + namePrefix + "half"); err != nil {
		t.Fatal(err)
	}
	stop := run(t, f)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		left, err := filepath.Glob(filepath.Join(f.cfg.Dir, namePrefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("left: %v", left)
		}
	}
	stop()
}

func TestMoreProfilesThanAreRememberedComeBack(t *testing.T) {
	f := New(Config{})
	for i := range 3 * maxProfiles {
		f.Of(json.RawMessage{byte(i)})
		if len(f.known) > maxProfiles {
			t.Fatalf("%d are remembered", len(f.known))
		}
	}
}
