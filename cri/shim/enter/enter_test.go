package enter

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the whole does is tested from outside, beside the runtime: cri/shim,
// TestAnEnteredProcessIsAsTheRuntimeWouldHaveStartedIt.

func TestTheEnvironmentHasEachVariableOnce(t *testing.T) {
	for _, c := range []struct {
		name      string
		env, want []string // nil: refused
	}{
		{"as it is", []string{"A=1", "HOME=/h"}, []string{"A=1", "HOME=/h"}},
		{"the last of two counts, where it is", []string{"A=1", "B=2", "A=3", "HOME=/h"}, []string{"B=2", "A=3", "HOME=/h"}},
		{"an empty value is one", []string{"A=", "HOME=/h"}, []string{"A=", "HOME=/h"}},
		{"an equals sign in a value", []string{"A=x=y", "HOME=/h"}, []string{"A=x=y", "HOME=/h"}},
		{"an earlier home counts when the last is empty", []string{"HOME=/h", "HOME="}, []string{"HOME=/h"}},
		{"no equals sign", []string{"A", "HOME=/h"}, nil},
		{"no name", []string{"=1", "HOME=/h"}, nil},
		{"a NUL", []string{"A=\x00", "HOME=/h"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := environment(c.env, 0)
			if !slices.Equal(got, c.want) || (err != nil) != (c.want == nil) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestAUsersHomeIsThatOfTheFirstEntry(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\n\n# comment\nbroken\nshort:x:7:7\nempty:x:8:8:::\n  a:x:1000:1000::/home/a:/bin/sh\nb:x:1000:1000::/home/b:/bin/sh\nnoshell:x:9:9::/nine\n"
	for uid, want := range map[uint32]string{0: "/root", 1000: "/home/a", 4: "/", 7: "/", 8: "", 9: "/nine"} {
		got, err := findHome(strings.NewReader(passwd), uid)
		if err != nil || got != want {
			t.Errorf("the home of %d is %q, %v, not %q", uid, got, err, want)
		}
	}
	if got, err := findHome(strings.NewReader(strings.Repeat("x", maxPasswd)), 0); err == nil {
		t.Errorf("a line of 1 MiB has the home %q", got)
	}
}

func FuzzFindHome(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", uint32(0))
	f.Add(":::::::::", uint32(7))
	f.Fuzz(func(t *testing.T, passwd string, uid uint32) {
		home, err := findHome(strings.NewReader(passwd), uid)
		if err == nil && home != "/" && !strings.Contains(passwd, home) {
			t.Errorf("%q is from nowhere", home)
		}
	})
}

func TestProgramsAreLookedForInThePath(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"a/prog": 0o644, "b/prog": 0o755, "c/prog": 0o755, "a/sub/x": 0o755} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := "PATH=" + dir + "/none:" + dir + "/a:" + dir + "/b:" + dir + "/c"
	for _, c := range []struct {
		name, program string
		env           []string
		want          string // empty: not found
	}{
		{"the first that can be executed", "prog", []string{path}, dir + "/b/prog"},
		{"not a directory", "sub", []string{path}, ""},
		{"nowhere", "other", []string{path}, ""},
		{"no path", "prog", []string{"A=1"}, ""},
		{"an empty one", "prog", []string{"PATH="}, ""},
		{"with a slash it is where it says", "./prog", nil, "./prog"},
		{"a relative directory is the runtime's to judge", "prog", []string{"PATH=.:" + dir + "/b"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := programAt(c.program, c.env)
			if got != c.want || (err != nil) != (c.want == "") || (err != nil && !errors.Is(err, errNotFound)) {
				t.Errorf("got %q, %v, want %q", got, err, c.want)
			}
		})
	}
}

func TestTheContainersCgroupsAreEntered(t *testing.T) {
	const root = cgroupRoot
	for _, c := range []struct {
		name          string
		of, mine, own string
		unified       bool
		version1      []string
		version2      string
	}{
		{"version 2, with a cgroup for the exec", "0::/pod/c\n", "0::/berth\n", root + "/pod/c/exec-1", true, nil, root + "/pod/c/exec-1"},
		{"version 2, without", "0::/pod/c\n", "0::/berth\n", "", true, nil, root + "/pod/c"},
		{"version 1", "4:memory:/pod/c\n3:freezer:/pod/c\n2:cpu,cpuacct:/pod/c\n1:name=systemd:/pod/c\n", "4:memory:/\n3:freezer:/\n2:cpu,cpuacct:/\n1:name=systemd:/\n",
			root + "/freezer/pod/c/exec-1", false, []string{root + "/memory/pod/c", root + "/freezer/pod/c/exec-1", root + "/cpu,cpuacct/pod/c", root + "/systemd/pod/c"}, ""},
		{"hybrid, where the container is in none of version 2", "4:memory:/pod/c\n0::/\n", "4:memory:/berth\n0::/\n", "", false, []string{root + "/memory/pod/c"}, ""},
		{"hybrid, where it is", "4:memory:/pod/c\n0::/pod/c\n", "4:memory:/berth\n0::/\n", "", false, []string{root + "/memory/pod/c"}, root + "/unified/pod/c"},
		{"a hierarchy that it shares with the shim", "2:pids:/x\n4:memory:/pod/c\n", "2:pids:/x\n4:memory:/\n", "", false, []string{root + "/memory/pod/c"}, ""},
		{"a path with a colon", "0::/a:b\n", "0::/\n", "", true, nil, root + "/a:b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := locate(c.of, c.mine, c.own, c.unified)
			if !slices.Equal(got.version1, c.version1) || got.version2 != c.version2 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestAPausedContainerIsNotEntered(t *testing.T) {
	for text, want := range map[string]error{
		"freezer.state=THAWED\n": nil, "freezer.state=FROZEN\n": errFrozen, "freezer.state=FREEZING\n": errFrozen,
		"cgroup.freeze=0\n": nil, "cgroup.freeze=1\n": errFrozen, "other=1": nil,
	} {
		dir := t.TempDir()
		file, content, _ := strings.Cut(text, "=")
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := thawed(dir); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAFailureNamesWhatTheChildWasDoing(t *testing.T) {
	say := func(numbers ...uint32) (text []byte) {
		for _, n := range numbers {
			text = binary.NativeEndian.AppendUint32(text, n)
		}
		return text
	}
	var f failure
	if err := f.decode(say(uint32(stepExecute), uint32(unix.ENOENT))); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(f, unix.ENOENT) || f.Error() != "execute the program: no such file or directory" {
		t.Errorf("it says %q", f)
	}
	if len(steps) != int(stepExecute)+1 {
		t.Errorf("%d steps have names", len(steps))
	}
	for _, bad := range [][]byte{say(1), say(99, 1), say(1, 2, 3)} {
		if err := f.decode(bad); err == nil {
			t.Errorf("%v is understood", bad)
		}
	}
}

func TestAFilterHasToBeOne(t *testing.T) {
	for size, ok := range map[int]bool{0: true, 8: true, 7: false, 8 * maxFilter: true, 8 * (maxFilter + 1): false} {
		var c child
		if err := c.setFilter(make([]byte, size)); (err == nil) != ok || (ok && int(c.filter.Len) != size/8) {
			t.Errorf("%d bytes: %v, %d instructions", size, err, c.filter.Len)
		}
	}
}

func TestASealedProgramCannotBeChanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/true\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := Seal(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it can be written")
	}
	if err := f.Truncate(0); err == nil {
		t.Error("it can be cut off")
	}
	text := make([]byte, 12)
	if _, err := f.ReadAt(text, 0); err != nil || string(text) != "#!/bin/true\n" {
		t.Errorf("it says %q, %v", text, err)
	}
	if _, err := Seal(path + "-none"); err == nil {
		t.Error("what is not there was sealed")
	}
}
