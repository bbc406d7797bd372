package volume

import (
	"errors"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

func configMapOf(items ...v1.KeyToPath) v1.Volume {
	return vol("cfg", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "web"}, Items: items}})
}

func secretOf(items ...v1.KeyToPath) v1.Volume {
	return vol("cfg", v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "web", Items: items}})
}

// keyed sets the ConfigMap and the Secret that the volumes are made from.
func (e *env) keyed(pairs ...string) {
	text, data := map[string]string{}, map[string][]byte{}
	for i := 0; i < len(pairs); i += 2 {
		text[pairs[i]], data[pairs[i]] = pairs[i+1], []byte(pairs[i+1])
	}
	e.objects.configMaps["web"] = &v1.ConfigMap{Data: text}
	e.objects.secrets["web"] = &v1.Secret{Data: data}
}

// bothKinds runs a test on a configMap and a secret volume.
func bothKinds(t *testing.T, test func(*env, func(...v1.KeyToPath) v1.Volume)) {
	t.Run("configMap", func(t *testing.T) { test(newEnv(t), configMapOf) })
	t.Run("secret", func(t *testing.T) { test(newEnv(t), secretOf) })
}

// shown lists what a volume shows: no versions.
func shown(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), "..") {
			names = append(names, entry.Name())
		}
	}
	return names
}

func versions(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(dir + "/..2*")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestKeysBecomeFilesWithTheirModes(t *testing.T) {
	bothKinds(t, func(e *env, volume func(...v1.KeyToPath) v1.Volume) {
		defer unix.Umask(unix.Umask(0o077))
		e.keyed("a", "1", "b", "2", "unused", "3")
		spec := volume(v1.KeyToPath{Key: "a", Path: "x/y/a"}, v1.KeyToPath{Key: "b", Path: "b.conf", Mode: ptr[int32](0o400)}, v1.KeyToPath{Key: "a", Path: "again"})
		pod := newPod(spec)
		got := e.setUp(pod)["cfg"]
		if !got.ReadOnly {
			e.t.Error("containers may write it")
		}
		if names := shown(e.t, got.HostPath); !slices.Equal(names, []string{"again", "b.conf", "x"}) {
			e.t.Errorf("shown are %v", names)
		}
		e.wantFile(got.HostPath+"/x/y/a", "1")
		e.wantFile(got.HostPath+"/again", "1")
		e.wantMode(got.HostPath+"/x/y/a", 0o644, 0)
		e.wantMode(got.HostPath+"/x/y", 0o755, 0)
		e.wantMode(got.HostPath+"/b.conf", 0o400, 0)
		e.tearDown(pod)
	})
}

func TestAllKeysAreShownWithoutItems(t *testing.T) {
	e := newEnv(t)
	e.objects.configMaps["web"] = &v1.ConfigMap{Data: map[string]string{"a": "1", ".hidden": ""}, BinaryData: map[string][]byte{"bin": {0, 0xff}}}
	spec := configMapOf()
	spec.ConfigMap.DefaultMode = ptr[int32](0o555)
	pod := newPod(spec)
	dir := e.setUp(pod)["cfg"].HostPath
	if names := shown(t, dir); !slices.Equal(names, []string{".hidden", "a", "bin"}) {
		t.Errorf("shown are %v", names)
	}
	e.wantFile(dir+"/bin", "\x00\xff")
	e.wantFile(dir+"/.hidden", "")
	e.wantMode(dir+"/a", 0o555, 0)
	e.tearDown(pod)
}

func TestFSGroupMayReadWhatIsWrittenForIt(t *testing.T) {
	bothKinds(t, func(e *env, volume func(...v1.KeyToPath) v1.Volume) {
		e.keyed("a", "1")
		pod := e.withFSGroup(newPod(volume(v1.KeyToPath{Key: "a", Path: "x/a", Mode: ptr[int32](0o400)})), 4321)
		dir := e.setUp(pod)["cfg"].HostPath
		e.wantMode(dir+"/x/a", 0o440, 4321)
		e.wantMode(dir+"/x", 0o2755, 4321)
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil || st.Gid != 4321 || st.Mode&0o2777 != 0o2777 {
			e.t.Errorf("the volume has group %d and mode %o, %v", st.Gid, st.Mode, err)
		}
		e.tearDown(pod)
	})
}

func TestOnlySecretsAreInMemory(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1")
	pod := newPod(secretOf())
	dir := e.setUp(pod)["cfg"].HostPath
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC {
		t.Errorf("file system type %#x, %v; want a tmpfs", fs.Type, err)
	}
	e.tearDown(pod)
	pod = newPod(configMapOf())
	e.setUp(pod)
	if n := len(mountsBelow(t, e.root)); n != 0 {
		t.Errorf("%d mounts for a configMap", n)
	}
	e.tearDown(pod)
}

func TestMissingObjectsAndKeys(t *testing.T) {
	e := newEnv(t)
	cm, sec := configMapOf(), secretOf()
	e.fails(newPod(cm), `volume "cfg": configmap "web" not found`)
	e.fails(newPod(sec), `volume "cfg": secret "web" not found`)
	e.keyed("a", "1")
	item := v1.KeyToPath{Key: "no", Path: "no"}
	cm, sec = configMapOf(item, v1.KeyToPath{Key: "a", Path: "a"}), secretOf(item, v1.KeyToPath{Key: "a", Path: "a"})
	e.fails(newPod(cm), `volume "cfg": configmap references non-existent config key: no`)
	e.fails(newPod(sec), `volume "cfg": references non-existent secret key: no`)

	cm.ConfigMap.Optional, sec.Secret.Optional = ptr(true), ptr(true)
	for _, volume := range []v1.Volume{cm, sec} {
		pod := newPod(volume)
		dir := e.setUp(pod)["cfg"].HostPath
		if names := shown(t, dir); !slices.Equal(names, []string{"a"}) {
			t.Errorf("shown are %v, want what is there", names)
		}
		e.tearDown(pod)
	}
	clear(e.objects.configMaps)
	clear(e.objects.secrets)
	for _, volume := range []v1.Volume{cm, sec} {
		pod := newPod(volume)
		dir := e.setUp(pod)["cfg"].HostPath
		if names := shown(t, dir); len(names) > 0 {
			t.Errorf("shown are %v, want none", names)
		}
		e.keyed("a", "late")
		e.setUp(pod)
		e.wantFile(dir+"/a", "late")
		e.tearDown(pod)
		clear(e.objects.configMaps)
		clear(e.objects.secrets)
	}
}

func TestPathsThatLeadElsewhereAreRefused(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1")
	for path, problem := range map[string]string{
		"../up":                  `path "../up" must not start with '..'`,
		"/abs":                   `path "/abs" must be relative`,
		"x/../../up":             `path "x/../../up" must not start with '..'`,
		"x/../up":                `path "x/../up" must not contain '..'`,
		"..data":                 `path "..data" must not start with '..'`,
		"./..data/a":             `path "./..data/a" must not start with '..'`,
		"":                       "the file's path is empty",
		".":                      "the file's path is empty",
		"a\x00b":                 `path "a\x00b" has a NUL byte`,
		strings.Repeat("x", 256): `path "` + strings.Repeat("x", 256) + `" has an element longer than 255 bytes`,
	} {
		e.fails(newPod(configMapOf(v1.KeyToPath{Key: "a", Path: path})), `volume "cfg": configmap "web": key "a": `+problem)
	}
	e.fails(newPod(configMapOf(v1.KeyToPath{Key: "a", Path: "x"}, v1.KeyToPath{Key: "a", Path: "x/y"})),
		`volume "cfg": path "x/y" needs "x" as a directory, but that is a file`)
}

func TestNothingIsWrittenWhenNothingChanged(t *testing.T) {
	bothKinds(t, func(e *env, volume func(...v1.KeyToPath) v1.Volume) {
		e.keyed("a", "1")
		pod := newPod(volume())
		dir := e.setUp(pod)["cfg"].HostPath
		before := inodes(e.t, dir)
		e.setUp(pod)
		if after := inodes(e.t, dir); !maps.Equal(before, after) {
			e.t.Errorf("the volume was %v and is %v", before, after)
		}
		e.tearDown(pod)
	})
}

// inodes is what is below a directory, with change times.
func inodes(t *testing.T, dir string) map[string]unix.Timespec {
	t.Helper()
	found := map[string]unix.Timespec{}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(path, &st)
		found[path+" "+strconv.FormatUint(st.Ino, 10)] = st.Ctim
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestChangedAndVanishedKeysAreFollowed(t *testing.T) {
	bothKinds(t, func(e *env, volume func(...v1.KeyToPath) v1.Volume) {
		e.keyed("a", "1", "b", "1")
		pod := newPod(volume())
		dir := e.setUp(pod)["cfg"].HostPath
		for i, step := range []struct {
			keys []string
			want []string
		}{
			{[]string{"a", "2", "b", "1"}, []string{"a", "b"}},
			{[]string{"a", "2"}, []string{"a"}},
			{[]string{"a", "2", "c", "1"}, []string{"a", "c"}},
			{nil, nil},
			{[]string{"b", "9"}, []string{"b"}},
		} {
			e.keyed(step.keys...)
			e.setUp(pod)
			if names := shown(e.t, dir); !slices.Equal(names, step.want) {
				e.t.Errorf("step %d: shown are %v, want %v", i, names, step.want)
			}
			for j := 0; j < len(step.keys); j += 2 {
				e.wantFile(dir+"/"+step.keys[j], step.keys[j+1])
			}
		}
		// The version before is for who is on the way into it, until the next set-up.
		if n := len(versions(e.t, dir)); n != 2 {
			e.t.Errorf("%d versions after an update", n)
		}
		e.setUp(pod)
		if n := len(versions(e.t, dir)); n != 1 {
			e.t.Errorf("%d versions after a set-up that changed nothing", n)
		}
		e.tearDown(pod)
	})
}

func TestReadersNeverSeeAMixOrMissAFile(t *testing.T) {
	bothKinds(t, func(e *env, volume func(...v1.KeyToPath) v1.Volume) {
		e.keyed("a", "0", "b", "0")
		pod := newPod(volume(v1.KeyToPath{Key: "a", Path: "a"}, v1.KeyToPath{Key: "b", Path: "sub/b"}))
		dir := e.setUp(pod)["cfg"].HostPath
		stop, trouble := make(chan struct{}), make(chan error, 2)
		reads := []chan struct{}{make(chan struct{}), make(chan struct{})}
		for _, read := range reads {
			go func() {
				for {
					if err := readPair(dir); err != nil {
						trouble <- err
						return
					}
					select {
					case read <- struct{}{}:
					case <-stop:
						trouble <- nil
						return
					default:
					}
				}
			}()
		}
		// An update may come at any moment of a read. A second one in the same
		// read is not for a volume to bear, so each waits for a read to end.
		for i := range 60 {
			value := strings.Repeat(strconv.Itoa(i), 1000)
			e.keyed("a", value, "b", value)
			e.setUp(pod)
			for _, read := range reads {
				select {
				case <-read:
				case err := <-trouble:
					e.t.Fatal(err)
				}
			}
		}
		close(stop)
		for range reads {
			if err := <-trouble; err != nil {
				e.t.Error(err)
			}
		}
		e.tearDown(pod)
	})
}

// readPair reads a file by its shown name, and both files of one version.
func readPair(dir string) error {
	if _, err := os.ReadFile(dir + "/sub/b"); err != nil {
		return err
	}
	version, err := unix.Open(dir+"/..data", unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(version)
	at := "/proc/self/fd/" + strconv.Itoa(version)
	a, errA := os.ReadFile(at + "/a")
	b, errB := os.ReadFile(at + "/sub/b")
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	if string(a) != string(b) {
		return errors.New("a and b are of different versions")
	}
	return nil
}

func TestLeftoversOfACrashAreReplaced(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1")
	pod := newPod(configMapOf())
	dir := e.setUp(pod)["cfg"].HostPath
	for name, damage := range map[string]func() error{
		"a version half written":    func() error { return os.MkdirAll(dir+"/..2020_01_01_00_00_00.1/x", 0o700) },
		"a link not yet renamed":    func() error { return os.Symlink("..2020_01_01_00_00_00.1", dir+"/..data_tmp") },
		"..data that leads nowhere": func() error { return errors.Join(os.Remove(dir+"/..data"), os.Symlink("..2020", dir+"/..data")) },
		"..data that leads out":     func() error { return errors.Join(os.Remove(dir+"/..data"), os.Symlink("/etc", dir+"/..data")) },
		"no ..data":                 func() error { return os.Remove(dir + "/..data") },
		"no link to a file":         func() error { return os.Remove(dir + "/a") },
		"a link to a vanished file": func() error { return os.Symlink("..data/gone", dir+"/gone") },
		"a directory in the way":    func() error { return errors.Join(os.Remove(dir+"/a"), os.Mkdir(dir+"/a", 0o700)) },
		"a staged directory":        func() error { return os.Mkdir(filepath.Dir(dir)+"/..new-cfg", 0o700) },
		"a file too many":           func() error { return os.WriteFile(dir+"/..data/more", nil, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			e.t = t
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			e.setUp(pod)
			e.setUp(pod)
			e.wantFile(dir+"/a", "1")
			entries, err := os.ReadDir(dir)
			if err != nil || len(entries) != 3 {
				t.Errorf("the volume holds %v, %v; want a, ..data and one version", entries, err)
			}
		})
	}
	e.t = t
	e.tearDown(pod)
}

func TestMountPointsInsideAReadOnlyVolumeAreMade(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1", "file", "1")
	pod := newPod(configMapOf())
	pod.Spec.Containers = []v1.Container{{VolumeMounts: []v1.VolumeMount{
		{Name: "cfg", MountPath: "/etc/app"},
		{Name: "x", MountPath: "/etc/app/one/two/"},
		{Name: "y", MountPath: "/etc/app/one/two/three"},
		{Name: "z", MountPath: "/etc/app/late"},
		{Name: "f", MountPath: "/etc/app/file", SubPath: "f"},
		{Name: "n", MountPath: "/etc/apple"},
	}}}
	dir := e.setUp(pod)["cfg"].HostPath
	if names := shown(t, dir); !slices.Equal(names, []string{"a", "file", "late", "one"}) {
		t.Errorf("shown are %v", names)
	}
	if names := shown(t, dir+"/one"); !slices.Equal(names, []string{"two"}) || len(shown(t, dir+"/one/two")) > 0 {
		t.Errorf("in one are %v", names)
	}
	e.wantFile(dir+"/file", "1")
	// A key of a mount point's name does not take the mount point away.
	e.keyed("late", "1")
	e.setUp(pod)
	if st, err := os.Lstat(dir + "/late"); err != nil || !st.IsDir() {
		t.Errorf("the mount point is %v, %v", st, err)
	}
	e.tearDown(pod)
}

func FuzzPayloadPaths(f *testing.F) {
	for _, seed := range []string{"a", "a/b", "../a", "/a", "a//b", "./a", "..data", "a/./b/", "a/../b", "", ".", "...", "a\x00"} {
		f.Add(seed)
	}
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, name string) {
		files := payload{}
		if files.add(name, payloadFile{data: []byte("data"), mode: 0o644}) != nil {
			if len(files) > 0 {
				t.Fatalf("%q was refused and added", name)
			}
			return
		}
		for clean := range files {
			if !filepath.IsLocal(clean) || strings.HasPrefix(clean, "..") || path.Clean(clean) != clean {
				t.Fatalf("%q was taken as %q", name, clean)
			}
		}
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := (writer{dir: dir}).write(t.Context(), files); err != nil {
			t.Fatalf("%q was taken but not written: %v", name, err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != "data" {
			t.Fatalf("%q holds %q, %v", name, data, err)
		}
		if n := len(shown(t, dir)); n != 1 {
			t.Fatalf("%q shows %d names", name, n)
		}
	})
}
