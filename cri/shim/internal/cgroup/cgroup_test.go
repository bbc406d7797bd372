package cgroup

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestTheCgroupIsFoundInProc(t *testing.T) {
	const hybrid = "9:name=systemd:/kubepods/pod1/c1\n4:memory:/kubepods/pod1/c1\n1:cpu:/kubepods/pod1/c1\n0::/kubepods/pod1/c1\n"
	for _, c := range []struct {
		name, text, id string
		unified        bool
		want           string
	}{
		{"version 2", "0::/kubepods/pod1/c1\n", "c1", true, root + "/kubepods/pod1/c1"},
		{"a scope of systemd", "0::/kubepods.slice/cri-c1.scope\n", "c1", true, root + "/kubepods.slice/cri-c1.scope"},
		{"inside a scope of systemd", "0::/kubepods.slice/cri-c1.scope/container\n", "c1", true, root + "/kubepods.slice/cri-c1.scope"},
		{"version 1", "4:memory:/kubepods/pod1/c1\n", "c1", false, root + "/memory/kubepods/pod1/c1"},
		{"hybrid", hybrid, "c1", false, root + "/memory/kubepods/pod1/c1"},
		{"a cgroup that others share", "0::/kubepods/pod1\n", "c1", true, ""},
		{"the root", "4:memory:/\n", "c1", false, ""},
		{"no memory controller", "1:cpu:/kubepods/pod1/c1\n", "c1", false, ""},
		{"a path with a colon", "0::/a:b/c1\n", "c1", true, root + "/a:b/c1"},
		{"removed already", "0::/kubepods.slice/cri-c1.scope (deleted)\n", "c1", true, root + "/kubepods.slice/cri-c1.scope"},
		{"nonsense", "memory\n\n::\n", "c1", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := parse(c.text, c.id, c.unified); got.Dir != c.want {
				t.Errorf("got %q, want %q", got.Dir, c.want)
			}
		})
	}
}

func TestTheCgroupIsExpectedWhereTheBundleHasIt(t *testing.T) {
	for _, c := range []struct{ name, path, want string }{
		{"cgroupfs", "/kubepods/pod1/c1", "/kubepods/pod1/c1"},
		{"systemd", "kubepods-burstable-pod1.slice:berth:c1", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/berth-c1.scope"},
		{"systemd, in the root slice", "-.slice:berth:c1", "/berth-c1.scope"},
		{"one that others share", "/kubepods/pod1", ""},
		{"a relative one", "c1", ""},
		{"none", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			bundle := t.TempDir()
			config := `{"linux": {"cgroupsPath": "` + c.path + `"}}`
			if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(config), 0o600); err != nil {
				t.Fatal(err)
			}
			want := c.want
			if want != "" && isUnified() {
				want = root + want
			} else if want != "" {
				want = root + "/memory" + want
			}
			if got := Expect("c1", bundle); got.Dir != want {
				t.Errorf("got %q, want %q", got.Dir, want)
			}
		})
	}
	if got := Expect("c1", t.TempDir()); got != (Group{}) {
		t.Errorf("without a configuration: %+v", got)
	}
}

// By the time anybody looks there is neither a process nor a cgroup, and the
// pod's counter has counted.
func TestAContainerThatIsKilledAtOnceIsFoundToBe(t *testing.T) {
	const nobody = 1 << 30
	pod := filepath.Join(t.TempDir(), "memory.events")
	write := func(kills string) {
		if err := os.WriteFile(pod, []byte("oom_kill "+kills+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("2")
	expected := Group{Dir: "/gone", memory: "/gone/memory.events", parent: pod, before: 2}
	write("3")
	if got := expected.Find("c1", nobody); !got.OOMKilled(137) || got.OOMKilled(1) {
		t.Errorf("%+v", got)
	}
}

func TestOOMKillsAreFound(t *testing.T) {
	const version2 = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
	for _, c := range []struct {
		name, own, pod string
		before         int64
		exitCode       int
		want           bool
	}{
		{"version 2", version2, version2, 0, 137, true},
		{"version 1", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "", 0, 137, true},
		{"a child, and init goes on", version2, version2, 0, 3, true},
		{"an old kernel without the counter", "oom_kill_disable 0\nunder_oom 0\n", "", 0, 137, false},
		{"another container of the pod", "oom_kill 0\n", "oom_kill 1\n", 0, 137, false},
		{"the cgroup has gone, the pod's has counted", "", "oom_kill 3\n", 2, 137, true},
		{"the cgroup has gone, the pod's has not counted", "", "oom_kill 2\n", 2, 137, false},
		{"the cgroup has gone, init was not killed", "", "oom_kill 3\n", 2, 0, false},
		{"both have gone", "", "", 0, 137, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := Group{memory: filepath.Join(t.TempDir(), "own"), parent: filepath.Join(t.TempDir(), "pod"), before: c.before}
			for path, text := range map[string]string{g.memory: c.own, g.parent: c.pod} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if got := g.OOMKilled(c.exitCode); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
	if (Group{}).OOMKilled(137) {
		t.Error("a container without a cgroup")
	}
}

func TestACgroupThatGoesWhileItIsReadIsEmpty(t *testing.T) {
	for _, err := range []error{
		&fs.PathError{Op: "open", Path: "cgroup.procs", Err: syscall.ENOENT},
		&fs.PathError{Op: "read", Path: "cgroup.procs", Err: syscall.ENODEV},
	} {
		if ignoreGone(err) != nil {
			t.Errorf("%v is an error", err)
		}
	}
	if err := (&fs.PathError{Op: "read", Path: "cgroup.procs", Err: syscall.EIO}); ignoreGone(err) == nil {
		t.Errorf("%v is none", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0::/kubepods/pod1/c1\n", true)
	f.Add("4:memory:/x/c1\n", false)
	f.Fuzz(func(t *testing.T, text string, unified bool) {
		g := parse(text, "c1", unified)
		if g.Dir != "" && !filepath.IsAbs(g.Dir) {
			t.Errorf("relative directory %q", g.Dir)
		}
	})
}
