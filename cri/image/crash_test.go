//go:build failpoints

package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	crashRoot = "BERTH_IMAGE_CRASH_ROOT"
	crashRef  = "BERTH_IMAGE_CRASH_REF"
)

// TestCrashChild is the life that TestKilledAtAnyStep ends: it is run as a
// process of its own.
func TestCrashChild(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		t.Skip("run by TestKilledAtAnyStepTheStoreRecovers")
	}
	ctx := context.Background()
	s := open(t, Config{Root: root, Platform: "linux/amd64"})
	img := mustPull(t, s, os.Getenv(crashRef))
	if err := s.Retain(img.ChainID, "c"); err != nil {
		t.Fatal(err)
	}
	mustRemove(t, s, img.ID)
	if err := s.garbageCollect(s.context(ctx)); err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, os.Getenv(crashRef))
	mustRemove(t, s, img.ID)
	if err := s.Release(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	if err := s.garbageCollect(s.context(ctx)); err != nil {
		t.Fatal(err)
	}
}

func crashChild(t *testing.T, root, ref string, env ...string) error {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), append(env, crashRoot+"="+root, crashRef+"="+ref)...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() == 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	return err
}

func TestKilledAtAnyStepTheStoreRecovers(t *testing.T) {
	config := testConfig(t)
	reg := newTestRegistry(t)
	ref := reg.push(t, "app:1", small(t, "app"))
	trace := filepath.Join(t.TempDir(), "trace")
	if err := crashChild(t, filepath.Join(t.TempDir(), "i"), ref, "BERTH_FAILPOINT_TRACE="+trace); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	hits := map[string]int{}
	for name := range strings.Lines(string(b)) {
		name = strings.TrimSpace(name)
		hits[name]++
		at := fmt.Sprintf("%s:%d", name, hits[name])
		t.Run(at, func(t *testing.T) {
			config.Root = filepath.Join(t.TempDir(), "i")
			var exit *exec.ExitError
			err := crashChild(t, config.Root, ref, "BERTH_FAILPOINT="+at)
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the process was not killed: %v", err)
			}
			recovers(t, config, ref)
		})
	}
	if len(hits) < 10 {
		t.Errorf("failpoints passed: %v", hits)
	}
}

// recovers opens a store after a crash and lives on with it.
func recovers(t *testing.T, config Config, ref string) {
	t.Helper()
	var logged bytes.Buffer
	config.Log = slog.New(slog.NewTextHandler(&logged, nil))
	s := open(t, config)
	if logged.Len() > 0 {
		t.Errorf("log of the recovery:\n%s", logged.String())
	}
	kinds := map[string]int{}
	after := holdings(t, s)
	for line := range strings.Lines(after) {
		kind, name, _ := strings.Cut(line, " ")
		if kind == "file" {
			kind = "file " + strings.Split(name, "/")[1] + "/" + strings.Split(name, "/")[2][:1]
		}
		kinds[kind]++
		if strings.Contains(line, "snapshot "+extractPrefix) || strings.Contains(line, "/new-") {
			t.Errorf("left over: %s", line)
		}
	}
	snapshotFiles := 0
	for kind, n := range kinds {
		if strings.HasPrefix(kind, "file snapshots/") {
			snapshotFiles += n
		}
	}
	if snapshotFiles != kinds["snapshot"] || kinds["file content/b"] != kinds["blob"] {
		t.Errorf("files and records differ:\n%s", after)
	}

	if _, pulled := s.Get(ref); pulled && strings.Contains(after, "lease pull-") {
		t.Errorf("a complete pull is still leased:\n%s", after)
	}
	img := mustPull(t, s, ref)
	if b, err := os.ReadFile(filepath.Join(img.Layers[0], "bin/run")); err != nil || string(b) != "#!app" {
		t.Errorf("file of the image: %q, %v", b, err)
	}
	mustRemove(t, s, img.ID)
	if err := s.releaseUnused(s.context(context.Background())); err != nil {
		t.Fatal(err)
	}
	if err := s.garbageCollect(s.context(context.Background())); err != nil {
		t.Fatal(err)
	}
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings in the end:\n%s", left)
	}
}
