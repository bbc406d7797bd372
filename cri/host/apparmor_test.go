package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/contrib/apparmor"
)

func TestDefaultAppArmorProfileIsContainerds(t *testing.T) {
	t.Setenv("PATH", "") // a rootlesskit in it would be let in
	theirs, err := apparmor.DumpDefaultProfile(AppArmorProfile)
	if err != nil {
		t.Fatal(err)
	}
	onThisHost := func(name string) bool { return exists(filepath.Join("/etc/apparmor.d", name)) }
	ours := appArmorProfile(AppArmorProfile, onThisHost, daemonProfile())
	if got, want := rules(ours), rules(theirs); got != want {
		t.Errorf("the profile has the rules\n%s\ncontainerd's has\n%s", got, want)
	}
}

// rules drops comments and white space.
func rules(profile string) string {
	var lines []string
	for line := range strings.Lines(profile) {
		if !strings.HasPrefix(strings.TrimSpace(line), "#include") {
			line, _, _ = strings.Cut(line, "#")
		}
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func TestDefaultAppArmorProfileUsesWhatTheHostHas(t *testing.T) {
	for name, line := range map[string]string{
		"abi/3.0":           "abi <abi/3.0>,",
		"tunables/global":   "#include <tunables/global>",
		"abstractions/base": "#include <abstractions/base>",
	} {
		with := appArmorProfile("p", func(n string) bool { return n == name }, "unconfined")
		without := appArmorProfile("p", func(string) bool { return false }, "unconfined")
		if !strings.Contains(with, line+"\n") || strings.Contains(without, line) {
			t.Errorf("%s: with it\n%s\nwithout\n%s", name, with, without)
		}
	}
	if p := appArmorProfile("p", func(string) bool { return false }, "berth"); !strings.Contains(p, "@{PROC}=/proc/\n") ||
		!strings.Contains(p, "signal (receive) peer=berth,\n") {
		t.Errorf("without the host's tunables, of a confined daemon:\n%s", p)
	}
}

func TestLoadedAppArmorProfilesAreFoundByTheirWholeName(t *testing.T) {
	list := filepath.Join(t.TempDir(), "profiles")
	if err := os.WriteFile(list, []byte("berth-default-2 (enforce)\ncri (enforce)\nberth-default (enforce)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"berth-default": true, "cri": true, "berth": false, "enforce": false} {
		if got, err := isLoaded(list, name); err != nil || got != want {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	if _, err := isLoaded(list+"x", "cri"); err == nil {
		t.Error("no error without the kernel's list")
	}
}
