package handler

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// fake is a runtime that is a shell script.
func fake(t *testing.T, script string) *Runtime {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "fake")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Runtime{Name: "fake", Config: Config{Path: path, Root: filepath.Join(dir, "root"), Timeout: time.Minute}}
}

func TestHandlersThatCannotWorkAreRefused(t *testing.T) {
	for _, c := range []struct {
		configs  map[string]Config
		standard string
		want     string
	}{
		{map[string]Config{"a": {Path: "/a", Root: "/r/a"}}, "b", `default runtime handler "b": there is none of this name`},
		{map[string]Config{"a": {Path: "/a"}}, "a", "runtime handler a: it has no path or no root"},
		{map[string]Config{"a": {Path: "/a", Root: "/r"}, "b": {Path: "/b", Root: "/r"}}, "a", "runtime handler b: its root /r is also that of a"},
	} {
		if _, err := NewSet(c.configs, c.standard); err == nil || err.Error() != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestTheEmptyNameIsTheDefaultHandler(t *testing.T) {
	s, err := NewSet(map[string]Config{"a": {Path: "/a", Root: "/r/a"}, "b": {Path: "/b", Root: "/r/b"}}, "b")
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := s.Get(""); !ok || r.Name != "b" {
		t.Errorf("got %v", r)
	}
	if _, ok := s.Get("c"); ok {
		t.Error("an unknown handler is found")
	}
}

func TestARuntimeIsAskedForItsFeaturesOnceUntilItIsReplaced(t *testing.T) {
	r := fake(t, `echo x >>"$0.asked"; echo '{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}}'`)
	for range 3 {
		got, err := r.Features(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if want := (Features{RecursiveReadOnly: true, IDMappedMounts: true, UserNamespaces: true}); got != want {
			t.Errorf("got %+v", got)
		}
	}
	asked, err := os.ReadFile(r.Path + ".asked")
	if err != nil || string(asked) != "x\n" {
		t.Errorf("asked %q, %v", asked, err)
	}
	if err := os.WriteFile(r.Path, []byte("#!/bin/sh\necho '{}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Features(t.Context()); err != nil || got != (Features{}) {
		t.Errorf("after the program was replaced: %+v, %v", got, err)
	}
}

func TestARuntimeThatKnowsNoFeaturesIsNotAskedAllTheTime(t *testing.T) {
	r := fake(t, `echo x >>"$0.asked"; echo "unknown command $3" >&2; exit 1`)
	for range 3 {
		if _, err := r.Features(t.Context()); err == nil || !strings.Contains(err.Error(), "unknown command features") {
			t.Errorf("got %v", err)
		}
	}
	if asked, err := os.ReadFile(r.Path + ".asked"); err != nil || string(asked) != "x\n" {
		t.Errorf("asked %q, %v", asked, err)
	}
}

func TestACommandGetsItsFlagsAndInput(t *testing.T) {
	r := fake(t, `echo "$@" >"$0.args"; cat >"$0.input"`)
	r.SystemdCgroup, r.Args = true, []string{"--debug"}
	limit := int64(7)
	if err := r.Update(t.Context(), "c1", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	args, _ := os.ReadFile(r.Path + ".args")
	if want := "--root " + r.Root + " --debug --systemd-cgroup update --resources - c1\n"; string(args) != want {
		t.Errorf("got %q, want %q", args, want)
	}
	if input, _ := os.ReadFile(r.Path + ".input"); string(input) != `{"memory":{"limit":7}}` {
		t.Errorf("got %s", input)
	}
}

func TestAHungCommandIsKilledWithItsChildrenAndNamed(t *testing.T) {
	r := fake(t, `sleep 600 & echo $! >"$0.child"; wait`)
	r.Timeout = 200 * time.Millisecond
	if err := os.MkdirAll(filepath.Join(r.Root, "c1"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := r.Delete(t.Context(), "c1")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "fake delete: it did not finish in 200ms and was killed") {
		t.Errorf("got %v", err)
	}
	child, err := os.ReadFile(r.Path + ".child")
	if err != nil {
		t.Fatal(err)
	}
	// It has been killed; its end takes its time.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		state, err := os.ReadFile("/proc/" + strings.TrimSpace(string(child)) + "/stat")
		if err != nil || strings.Contains(string(state), " Z ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("its child is still there: %s", state)
		}
	}
}

func TestWhatTheRuntimeDoesNotKnowIsDeletedWithoutAskingIt(t *testing.T) {
	r := fake(t, `exit 1`)
	if err := r.Delete(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
}

func FuzzParseFeatures(f *testing.F) {
	f.Add([]byte(`{"mountOptions": ["rro"], "linux": {"mountExtensions": {"idmap": {}}}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if known, err := parseFeatures(text); err != nil && known != (Features{}) {
			t.Errorf("%+v beside %v", known, err)
		}
	})
}
