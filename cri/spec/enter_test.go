package spec

import (
	"encoding/json"
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func running(t *testing.T, change func(*specs.Spec)) (Running, specs.Process) {
	t.Helper()
	s := &specs.Spec{Process: &specs.Process{Args: []string{"init"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
	change(s)
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseRunning(text)
	if err != nil {
		t.Fatal(err)
	}
	return r, *r.Process
}

func TestWhatIsRareIsLeftToTheRuntime(t *testing.T) {
	filter := []byte{1}
	for _, c := range []struct {
		name   string
		change func(*specs.Spec)
		ok     bool
	}{
		{"nothing special", func(*specs.Spec) {}, true},
		{"a seccomp profile", func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} }, true},
		{"a user namespace", func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}} }, true},
		{"a terminal", func(s *specs.Spec) { s.Process.Terminal = true }, false},
		{"no say on capabilities", func(s *specs.Spec) { s.Process.Capabilities = nil }, false},
		{"a scheduler", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO} }, false},
		{"an I/O priority", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE} }, false},
		{"CPUs of its own", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} }, false},
		{"a personality", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }, false},
		{"a cache of its own", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} }, false},
		{"a clock of its own", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} }, false},
		{"an unknown limit", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NEW"}} }, false},
		{"a profile that asks somebody", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/x", Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}}
		}, false},
		{"a profile with an unknown flag", func(s *specs.Spec) {
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW"}}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, p := running(t, c.change)
			got, err := r.Enter("id", p, filter)
			if c.ok != (err == nil) || c.ok != (got != nil) || (err != nil && !errors.Is(err, ErrByRuntime)) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	r, p := running(t, func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} })
	if got, err := r.Enter("id", p, nil); err == nil {
		t.Errorf("without the filter of its profile it may enter: %+v", got)
	}
}

func TestAProcessEntersWithAllThatItIsToHave(t *testing.T) {
	umask, score := uint32(0o22), 7
	r, p := running(t, func(s *specs.Spec) {
		s.Process = &specs.Process{
			Args: []string{"a", "b"}, Env: []string{"A=1"}, Cwd: "/w", NoNewPrivileges: true, OOMScoreAdj: &score,
			User: specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}, Umask: &umask},
			Capabilities: &specs.LinuxCapabilities{
				Bounding: []string{"CAP_CHOWN", "CAP_KILL", "CAP_OF_THE_FUTURE"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_CHOWN"},
				Inheritable: []string{"CAP_CHECKPOINT_RESTORE"}, Ambient: []string{"CAP_SYSLOG"},
			},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 5, Hard: 6}},
			SelinuxLabel: "label", ApparmorProfile: "profile",
		}
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_TSYNC"}}
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}}
	})
	got, err := r.Enter("id", p, []byte{1, 2})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"args":["a","b"],"env":["A=1"],"cwd":"/w","uid":1,"gid":2,"groups":[3],"umask":18,` +
		`"rlimits":[{"resource":7,"soft":5,"hard":6}],"oomScore":7,"keyring":"_ses.id",` +
		`"capabilities":{"bounding":33,"effective":32,"permitted":1,"inheritable":1099511627776,"ambient":17179869184},` +
		`"noNewPrivileges":true,"userNamespace":true,"selinux":"label","appArmor":"profile","seccomp":"AQI=","seccompFlags":2}`
	if string(text) != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

func TestAProfileWithoutFlagsHasTheRuntimesDefault(t *testing.T) {
	for text, want := range map[string]uintptr{
		`{}`: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, `{"flags": []}`: 0, `{"flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]}`: unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW,
	} {
		if got, err := seccompFlags([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %#x, %v, not %#x", text, got, err, want)
		}
	}
}
