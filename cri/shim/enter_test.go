package shim

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-io/berth/cri/cgroup"
	filters "github.com/berth-io/berth/cri/seccomp"
	"github.com/berth-io/berth/cri/shim/enter"
	"github.com/berth-io/berth/cri/spec"
)

// describe prints what a process can find out about itself.
const describe = `
cat /proc/self/status | grep -E '^(Umask|Uid|Gid|Groups|Sig|Cap|NoNewPrivs|Seccomp|Speculation|Cpus_allowed|Mems_allowed)'
cat /proc/self/limits /proc/self/cgroup /proc/self/oom_score_adj /proc/self/timerslack_ns /proc/self/coredump_filter
cat /proc/self/environ | tr '\0' '\n'; echo
cd . && pwd; umask
ls -l /proc/self/ns; ls -ln /proc/self/fd; ls -lnL /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
set -- $(cat /proc/$$/stat); test $1 = $5 && test $1 = $6 && echo leads its session, ppid $4, terminal $7, nice ${19}
grep -o ' 3f.* _ses.CONTAINER' /proc/keys | tr -s ' '
cat /proc/self/attr/current 2>/dev/null
mkdir /tmp/made-$$ 2>&1; echo made $?
echo >&2 an error
`

// incidental is what differs from one process to the next.
var incidental = regexp.MustCompile(`exec-\d+|\d+:\d+|pipe:\[\d+\]|/proc/\d+|made-\d+|SigQ.*`)

// entry is how enter starts p in c, as the daemon finds out.
func entry(t *testing.T, c Container, p specs.Process, known *filters.Filters) *enter.Spec {
	t.Helper()
	config, err := os.ReadFile(filepath.Join(c.Bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	running, err := spec.ParseRunning(config)
	if err != nil {
		t.Fatal(err)
	}
	var filter []byte
	if running.HasSeccomp() {
		filter = awaitFilter(t, known, running.Linux.Seccomp)
	}
	s, err := running.Enter(c.ID, p, filter)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func awaitFilter(t *testing.T, known *filters.Filters, profile json.RawMessage) []byte {
	t.Helper()
	if _, err := os.Stat("/proc/sys/kernel/ns_last_pid"); err != nil {
		t.Skip("skipped: the kernel does not tell filters: it has no CONFIG_CHECKPOINT_RESTORE")
	}
	for range 3000 {
		if program, ok := known.Of(profile); ok {
			return program
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the filter is not found out")
	return nil
}

// runFilters is what a daemon has of them.
func runFilters(t *testing.T, b *bed) *filters.Filters {
	t.Helper()
	cgroups, err := cgroup.Open()
	if err != nil {
		t.Fatal(err)
	}
	f := filters.New(filters.Config{Dir: filepath.Join(b.dir, "seccomp"), Runtime: runcPath(t), Cgroups: cgroups, Timeout: time.Minute, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { <-done })
	return f
}

// left is what the shim says of execs that it left to the runtime.
func (b *bed) left() string {
	b.t.Helper()
	log, err := os.ReadFile(filepath.Join(b.dir, "shim.log"))
	if err != nil {
		b.t.Fatal(err)
	}
	return string(log)
}

func caps(names ...string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

func withUserNamespace(s *specs.Spec) {
	s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5}}
	s.Process.Capabilities = caps("CAP_CHOWN", "CAP_SYS_ADMIN")
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"}, specs.LinuxNamespace{Type: "network"}, specs.LinuxNamespace{Type: "cgroup"})
	ids := []specs.LinuxIDMapping{{HostID: 1 << 20, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
}

// What enter starts cannot tell that it was not the runtime.
func TestAnEnteredProcessIsAsTheRuntimeWouldHaveStartedIt(t *testing.T) {
	umask := uint32(0o27)
	noMkdir := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}})
	for i := range noMkdir.Syscalls {
		noMkdir.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(noMkdir.Syscalls[i].Names), func(n string) bool { return n == "mkdir" || n == "mkdirat" })
	}
	for _, c := range []struct {
		name   string
		change func(*specs.Spec)
	}{
		{"root with the usual capabilities", func(s *specs.Spec) {
			s.Process.Capabilities = caps("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID")
		}},
		{"all privileges", func(s *specs.Spec) {
			s.Process.Capabilities = caps("CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_SETPCAP", "CAP_MKNOD")
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "mount"}, {Type: "pid"}}
		}},
		{"nothing", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{}
			s.Process.NoNewPrivileges = true
		}},
		{"a user with groups, a home and ambient capabilities", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{2000, 3000, 70000}, Umask: &umask}
			s.Process.Capabilities = caps("CAP_NET_BIND_SERVICE", "CAP_KILL")
			s.Process.Capabilities.Inheritable = []string{"CAP_NET_BIND_SERVICE"}
			s.Process.Capabilities.Ambient = []string{"CAP_NET_BIND_SERVICE"}
		}},
		{"a user that nobody knows, in a directory of its own", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 4321, GID: 4321}
			s.Process.Cwd = "/tmp/own"
			s.Process.Capabilities = &specs.LinuxCapabilities{}
		}},
		{"limits", func(s *specs.Spec) {
			s.Process.Capabilities = caps("CAP_CHOWN")
			score := 900
			s.Process.OOMScoreAdj = &score
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_STACK", Soft: 1 << 20, Hard: 8 << 20}}
		}},
		{"a filter and no_new_privs", func(s *specs.Spec) {
			s.Process.Capabilities = caps("CAP_CHOWN")
			s.Process.NoNewPrivileges = true
			s.Linux.Seccomp = noMkdir
		}},
		{"a filter without no_new_privs", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.Capabilities = &specs.LinuxCapabilities{}
			s.Linux.Seccomp = noMkdir
		}},
		{"a filter with flags", func(s *specs.Spec) {
			s.Process.Capabilities = caps("CAP_CHOWN")
			with := *noMkdir
			with.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}
			s.Linux.Seccomp = &with
		}},
		{"a user namespace", withUserNamespace},
		{"a user namespace and a filter", func(s *specs.Spec) {
			withUserNamespace(s)
			s.Linux.Seccomp = noMkdir
		}},
		{"an environment with doubles", func(s *specs.Spec) {
			s.Process.Capabilities = caps("CAP_CHOWN")
			s.Process.Env = []string{"A=1", "PATH=/nowhere:/bin", "A=2", "HOME=", "B=x=y", "C="}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBed(t)
			own := filepath.Join(b.rootfs, "tmp/own")
			if err := os.MkdirAll(own, 0o700); err != nil {
				t.Fatal(err)
			}
			// Root of the container may not enter it: it has no CAP_DAC_OVERRIDE there.
			for _, err := range []error{
				os.Chown(own, 4321, 4321), os.Chmod(filepath.Join(b.rootfs, "tmp"), 0o1777), os.Chmod(b.dir, 0o711), os.Chmod(filepath.Dir(b.dir), 0o711),
				os.MkdirAll(filepath.Join(b.rootfs, "etc"), 0o755),
				os.WriteFile(filepath.Join(b.rootfs, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nsomebody:x:1000:1000::/home/somebody:/bin/sh\n"), 0o644),
			} {
				if err != nil {
					t.Fatal(err)
				}
			}
			box := b.bundle("exec sleep 1000", c.change)
			if strings.HasPrefix(c.name, "a user namespace") {
				box.UID, box.GID = 1<<20, 1<<20
			}
			b.run(box)
			config, err := os.ReadFile(filepath.Join(box.Bundle, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			var s specs.Spec
			if err := json.Unmarshal(config, &s); err != nil {
				t.Fatal(err)
			}
			process := *s.Process
			process.Args = []string{"sh", "-c", strings.ReplaceAll(describe, "CONTAINER", box.ID)}
			by := map[string]ExecResult{}
			for _, how := range []string{"runtime", "enter"} {
				p := Process{ContainerID: box.ID, Spec: process}
				if how == "enter" {
					p.Enter = entry(t, box, process, runFilters(t, b))
				}
				r, err := b.client.ExecSync(t.Context(), p)
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				by[how] = r
			}
			if log := b.left(); strings.Contains(log, "left to the runtime") {
				t.Fatalf("the shim says:\n%s", log)
			}
			compare(t, string(by["runtime"].Stdout), string(by["enter"].Stdout))
			compare(t, string(by["runtime"].Stderr), string(by["enter"].Stderr))
			if by["runtime"].ExitCode != by["enter"].ExitCode {
				t.Errorf("exit codes %d and %d", by["runtime"].ExitCode, by["enter"].ExitCode)
			}
			if !strings.Contains(string(by["enter"].Stdout), "leads its session") {
				t.Errorf("the script did not come to its end:\n%s", by["enter"].Stdout)
			}
		})
	}
}

func compare(t *testing.T, runtime, entered string) {
	t.Helper()
	want := strings.Split(incidental.ReplaceAllString(runtime, "N"), "\n")
	got := strings.Split(incidental.ReplaceAllString(entered, "N"), "\n")
	for i := range max(len(want), len(got)) {
		var w, g string
		if i < len(want) {
			w = want[i]
		}
		if i < len(got) {
			g = got[i]
		}
		if w != g {
			t.Errorf("by the runtime:\n  %s\nentered:\n  %s", w, g)
		}
	}
}

// Nothing has happened in the container until the program is executed: the
// runtime has its try, and its error is the answer.
func TestWhatCannotBeEnteredIsTheRuntimes(t *testing.T) {
	b := newBed(t)
	box := b.bundle("exec sleep 1000", func(s *specs.Spec) { s.Process.Capabilities = caps("CAP_CHOWN") })
	b.run(box)
	base := specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: caps("CAP_CHOWN")}
	for _, c := range []struct {
		name    string
		command []string
		change  func(*enter.Spec)
		want    string // of the error; empty: it runs
	}{
		{"no such program", []string{"nothing"}, nil, "executable file not found"},
		{"no such path", []string{"/bin/nothing"}, nil, "no such file"},
		{"a directory", []string{"/tmp"}, nil, "is a directory"},
		{"not executable", []string{"/tmp/data"}, nil, "permission denied"},
		{"a filter that is none", []string{"true"}, func(s *enter.Spec) { s.Seccomp = []byte{1, 2, 3} }, ""},
		{"a filter that the kernel refuses", []string{"true"}, func(s *enter.Spec) { s.Seccomp = make([]byte, 80) }, ""},
		{"a working directory that is not there", []string{"true"}, func(s *enter.Spec) { s.Cwd = "/nowhere" }, ""},
		{"a limit above the host's", []string{"true"}, func(s *enter.Spec) { s.Rlimits = []enter.Rlimit{{Resource: 99}} }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(b.rootfs, "tmp/data"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			p := base
			p.Args = c.command
			how := entry(t, box, p, nil)
			if c.change != nil {
				c.change(how)
			}
			r, err := b.client.ExecSync(t.Context(), Process{ContainerID: box.ID, Spec: p, Enter: how})
			if c.want == "" {
				if err != nil || r.ExitCode != 0 {
					t.Errorf("%+v, %v", r, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if !strings.Contains(b.left(), "left to the runtime") {
				t.Error("the shim does not say that it was the runtime")
			}
			noExecCgroups(t, box.ID)
		})
	}
}

func noExecCgroups(t *testing.T, id string) {
	t.Helper()
	for range 500 {
		found, err := filepath.Glob("/sys/fs/cgroup/*/berth-shim-test/" + id + "/exec-*")
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a cgroup of an exec is left")
}

// The program in /proc/self/exe of the container's processes is never a file of
// the host that somebody could write to (CVE-2019-5736), and no descriptor or
// working directory leads out (CVE-2024-21626).
func TestNothingOfTheHostIsReachedByEntering(t *testing.T) {
	b := newBed(t)
	box := b.bundle("exec sleep 1000", func(s *specs.Spec) {
		s.Process.Capabilities = caps("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE")
	})
	b.run(box)
	exec := func(change func(*enter.Spec), command ...string) (ExecResult, error) {
		p := specs.Process{Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: caps("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE"), Args: command}
		how := entry(t, box, p, nil)
		if change != nil {
			change(how)
		}
		return b.client.ExecSync(t.Context(), Process{ContainerID: box.ID, Spec: p, Enter: how, Timeout: 10 * time.Second})
	}
	before, err := os.ReadFile(shimBinary)
	if err != nil {
		t.Fatal(err)
	}
	r, err := exec(nil, "/proc/self/exe", "-version")
	if err != nil || !strings.Contains(string(r.Stdout), "berth-shim") {
		t.Fatalf("%+v, %v: the attack is not tried", r, err)
	}
	// It runs as the container's: another process of the container opens it.
	r, err = exec(nil, "sh", "-c", `/proc/self/exe -h >/dev/null 2>&1; (echo x > /proc/1/exe) 2>&1; true`)
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(shimBinary)
	if err != nil || string(before) != string(after) {
		t.Fatalf("the shim's file has changed, %v", err)
	}
	for fd := range 32 {
		dir := fmt.Sprintf("/proc/self/fd/%d", fd)
		// It is declined, and the runtime has /.
		r, err := exec(func(s *enter.Spec) { s.Cwd = dir }, "sh", "-c", "test . -ef /")
		if err != nil || r.ExitCode != 0 {
			t.Errorf("the working directory %s was entered: %+v, %v", dir, r, err)
		}
	}
}
