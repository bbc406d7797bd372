package volume

import (
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

func (e *env) subPath(pod Pod, vol Mounted, index int, path string) string {
	e.t.Helper()
	target, err := e.SubPath(e.t.Context(), pod, "main", index, vol, path, false)
	if err != nil {
		e.t.Fatalf("SubPath(%q): %v", path, err)
	}
	return target
}

func TestSubPathIsMadeWithTheVolumesModeAndPinned(t *testing.T) {
	e := newEnv(t)
	defer unix.Umask(unix.Umask(0o077))
	pod := e.withFSGroup(newPod(emptyDirOf("", "")), 4321)
	got := e.setUp(pod)["scratch"]
	target := e.subPath(pod, got, 2, "a/./b//c/")
	if want := e.podDir("uid-1") + "/volume-subpaths/scratch/main/2"; target != want {
		t.Errorf("pinned at %s, want %s", target, want)
	}
	mustWrite(t, target+"/file", "data")
	e.wantFile(got.HostPath+"/a/b/c/file", "data")
	e.wantMode(got.HostPath+"/a", 0o2777, 4321)
	e.wantMode(got.HostPath+"/a/b/c", 0o2777, 4321)
	// What is pinned stays what it was, whatever becomes of its name.
	if err := os.Rename(got.HostPath+"/a", got.HostPath+"/moved"); err != nil {
		t.Fatal(err)
	}
	e.wantFile(target+"/file", "data")
	e.tearDown(pod)
}

func TestSubPathOfAFileIsPinnedThroughTheVolumesOwnLinks(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1")
	pod := newPod(configMapOf())
	got := e.setUp(pod)["cfg"]
	target := e.subPath(pod, got, 0, "a")
	e.wantFile(target, "1")
	if err := os.WriteFile(target, []byte("x"), 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only volume: %v", err)
	}
	// As with the kubelet, a subPath does not follow updates; a new run of the
	// container does.
	e.keyed("a", "2")
	e.setUp(pod)
	e.setUp(pod)
	e.wantFile(target, "1")
	e.subPath(pod, got, 0, "a")
	e.wantFile(target, "2")
	e.tearDown(pod)
}

func TestSubPathBeforeItsKeyIsReplacedByTheKey(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1")
	pod := newPod(configMapOf())
	got := e.setUp(pod)["cfg"]
	if st, err := os.Stat(e.subPath(pod, got, 0, "late")); err != nil || !st.IsDir() {
		t.Errorf("a missing subPath is %v, %v; want a directory", st, err)
	}
	e.keyed("a", "1", "late", "2")
	e.setUp(pod)
	e.wantFile(e.subPath(pod, got, 0, "late"), "2")
	e.tearDown(pod)
}

func TestSubPathMayBeRepeatedAndReleased(t *testing.T) {
	e := newEnv(t)
	pod := newPod(emptyDirOf("", ""), configMapOf())
	e.keyed("a", "1")
	mounted := e.setUp(pod)
	for range 3 {
		e.subPath(pod, mounted["scratch"], 0, "x")
		e.subPath(pod, mounted["cfg"], 1, "a")
		if n := len(mountsBelow(t, e.root)); n != 2 {
			t.Errorf("%d mounts, want 2", n)
		}
	}
	if _, err := e.SubPath(t.Context(), pod, "other", 0, mounted["scratch"], "x", false); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := e.CleanSubPaths(t.Context(), "uid-1", "main"); err != nil {
			t.Fatal(err)
		}
		if left := mountsBelow(t, e.root); len(left) != 1 || !strings.HasSuffix(left[0], "/scratch/other/0") {
			t.Errorf("mounted are %v, want the other container's", left)
		}
	}
	e.tearDown(pod)
}

func TestReadOnlySubPathCannotBeWritten(t *testing.T) {
	e := newEnv(t)
	pod := newPod(emptyDirOf("", ""))
	got := e.setUp(pod)["scratch"]
	target, err := e.SubPath(t.Context(), pod, "main", 0, got, "x", true)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(target+"/f", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing: %v, want it read-only", err)
	}
	e.tearDown(pod)
}

func TestSubPathNeverLeavesTheVolume(t *testing.T) {
	e := newEnv(t)
	pod := newPod(emptyDirOf("", ""))
	got := e.setUp(pod)["scratch"]
	dir := got.HostPath
	mustWrite(t, e.root+"/secret/file", "secret")
	mustWrite(t, dir+"/file", "")
	for link, to := range map[string]string{
		"abs": e.root + "/secret", "up": "../../../../../../secret", "root": "/", "loop": "loop",
		"dangling": "nowhere", "fd": "/proc/self/root", "inside": "ok", "absfile": e.root + "/secret/file",
	} {
		if err := os.Symlink(to, dir+"/"+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir+"/ok", 0o755); err != nil {
		t.Fatal(err)
	}
	const out = "a symlink leads out of the volume"
	for path, problem := range map[string]string{
		"abs":          `subPath "abs": ` + out,
		"abs/file":     `subPath "abs/file": ` + out,
		"abs/new":      `subPath "abs/new": ` + out,
		"up":           `subPath "up": ` + out,
		"up/new":       `subPath "up/new": ` + out,
		"root/etc":     `subPath "root/etc": ` + out,
		"fd/etc":       `subPath "fd/etc": ` + out,
		"absfile":      `subPath "absfile": ` + out,
		"loop":         `subPath "loop": symlinks lead in a circle, or out of the volume`,
		"dangling":     `subPath "dangling": make dangling: no such file or directory`,
		"dangling/new": `subPath "dangling/new": make dangling: no such file or directory`,
		"file/new":     `subPath "file/new": not a directory`,
		"../x":         `subPath "../x" must not contain '..'`,
		"a/../../x":    `subPath "a/../../x" must not contain '..'`,
		"/etc":         `subPath "/etc" must be relative`,
		"":             `subPath is empty`,
		"a\x00b":       `subPath "a\x00b" has a NUL byte`,
	} {
		_, err := e.SubPath(t.Context(), pod, "main", 0, got, path, false)
		if want := `volume "scratch": ` + problem; err == nil || err.Error() != want {
			t.Errorf("SubPath(%q): %v, want %s", path, err, want)
		}
	}
	e.subPath(pod, got, 0, "inside/new")
	if _, err := os.Stat(dir + "/ok/new"); err != nil {
		t.Errorf("a link that stays inside was not followed: %v", err)
	}
	if names := shown(t, e.root+"/secret"); len(names) != 1 {
		t.Errorf("outside the volume are now %v", names)
	}
	for _, name := range []string{"", "..", "a/b"} {
		if _, err := e.SubPath(t.Context(), pod, name, 0, got, "x", false); err == nil {
			t.Errorf("container name %q was taken", name)
		}
	}
	e.tearDown(pod)
	e.wantFile(e.root+"/secret/file", "secret")
}

// A container that exchanges a directory for a symlink all the time must not
// get at what the symlink leads to.
func TestSubPathWinsRacesWithSymlinks(t *testing.T) {
	e := newEnv(t)
	pod := newPod(emptyDirOf("", ""))
	got := e.setUp(pod)["scratch"]
	dir := got.HostPath
	mustWrite(t, e.root+"/secret/sub/outside", "")
	mustWrite(t, dir+"/real/sub/inside", "")
	if err := os.Symlink(e.root+"/secret", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for !stop.Load() {
			if err := unix.Renameat2(unix.AT_FDCWD, dir+"/real", unix.AT_FDCWD, dir+"/link", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	var inside, refused int
	for i := range 400 {
		path := "real/sub"
		if i%4 == 3 {
			path = "real/sub/made/" + strings.Repeat("x", i)[:min(i, 200)]
		}
		target, err := e.SubPath(t.Context(), pod, "main", 0, got, path, false)
		if err != nil {
			refused++
			continue
		}
		inside++
		if _, err := os.Lstat(target + "/outside"); err == nil {
			t.Fatal("a directory outside the volume was pinned")
		}
	}
	stop.Store(true)
	swapping.Wait()
	t.Logf("%d inside, %d refused", inside, refused)
	if names := shown(t, e.root+"/secret/sub"); len(names) != 1 {
		t.Errorf("outside the volume are now %v", names)
	}
	e.tearDown(pod)
}

func TestSubPathOfAHostPathFileIsRefused(t *testing.T) {
	e := newEnv(t)
	mustWrite(t, e.root+"/file", "")
	pod := newPod(vol("h", v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: e.root + "/file"}}))
	_, err := e.SubPath(t.Context(), pod, "main", 0, e.setUp(pod)["h"], "x", false)
	want := `volume "h": subPath "x": open the volume ` + e.root + `/file: not a directory`
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	e.tearDown(pod)
}
