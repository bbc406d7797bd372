//go:build failpoints

package volume

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// lifeInDir is where the child of a crash test lives.
const lifeInDir = "BERTH_TEST_VOLUME_LIFE"

// TestLife is what the crash test kills: a pod's volumes from the first set-up
// to nothing left.
func TestLife(t *testing.T) {
	root := os.Getenv(lifeInDir)
	if root == "" {
		t.Skip("run by TestKilledAtEachFailpoint")
	}
	if err := life(t, root); err != nil {
		t.Fatal(err)
	}
}

func life(t *testing.T, root string) error {
	e := &env{t: t, root: root, objects: newObjects()}
	pod := e.withFSGroup(e.fullPod(), 4321)
	m, err := New(Config{KubeletDir: root + "/kubelet", ClaimsDir: root + "/claims"}, e.objects)
	if err != nil {
		return err
	}
	mounted, err := m.SetUp(t.Context(), pod)
	if err != nil {
		return err
	}
	if err := m.CleanSubPaths(t.Context(), "uid-1", "main"); err != nil {
		return err
	}
	for i, at := range []struct{ volume, path string }{{"scratch", "a/b"}, {"cfg", "a"}} {
		if _, err := m.SubPath(t.Context(), pod, "main", i, mounted[at.volume], at.path, false); err != nil {
			return err
		}
	}
	e.keyed("a", "2", "b", "1")
	if _, err := m.SetUp(t.Context(), pod); err != nil {
		return err
	}
	if data, err := os.ReadFile(mounted["cfg"].HostPath + "/a"); err != nil || string(data) != "2" {
		return fmt.Errorf("the configMap holds %q, %v", data, err)
	}
	e.wantMode(mounted["scratch"].HostPath, 0o2777, 4321)
	e.wantMode(mounted["scratch"].HostPath+"/a/b", 0o2777, 4321)
	e.wantMode(mounted["data"].HostPath, 0o2777, 4321)
	return m.TearDown(t.Context(), "uid-1")
}

// TestKilledAtEachFailpoint kills the life of a pod's volumes at each pass of
// each failpoint. Once it is torn down then, and once it is lived again to its
// end; either way nothing is left.
func TestKilledAtEachFailpoint(t *testing.T) {
	e := newEnv(t)
	trace := e.root + "/trace"
	if out, err := liveIn(e.root+"/traced", "BERTH_FAILPOINT_TRACE="+trace); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	hits, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	times := map[string]int{}
	for name := range strings.Lines(string(hits)) {
		times[strings.TrimSpace(name)]++
	}
	if len(times) < 10 {
		t.Errorf("only %d failpoints are passed: %v", len(times), times)
	}
	for _, name := range slices.Sorted(maps.Keys(times)) {
		for n := 1; n <= times[name]; n++ {
			t.Run(fmt.Sprintf("%s:%d", name, n), func(t *testing.T) {
				e := newEnv(t)
				killed := func() {
					out, err := liveIn(e.root, fmt.Sprintf("BERTH_FAILPOINT=%s:%d", name, n))
					if exit, ok := err.(*exec.ExitError); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
						t.Fatalf("not killed: %v\n%s", err, out)
					}
				}
				killed()
				e.tearDown(newPod())
				if err := os.RemoveAll(e.root + "/claims"); err != nil {
					t.Fatal(err)
				}
				killed()
				if err := life(t, e.root); err != nil {
					t.Error(err)
				}
				e.tearDown(newPod())
			})
		}
	}
}

func liveIn(root, environment string) (string, error) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestLife$", "-test.count=1")
	cmd.Env = append(os.Environ(), lifeInDir+"="+root, environment)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
