package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// fullPod has a volume of each kind that leaves something on the host.
func (e *env) fullPod() Pod {
	e.keyed("a", "1")
	e.objects.claims["data"] = e.root + "/claims/default/data"
	tls := secretOf()
	tls.Name = "tls"
	memory := emptyDirOf(v1.StorageMediumMemory, "1Mi")
	memory.Name = "memory"
	return newPod(emptyDirOf("", ""), memory, configMapOf(), tls, claimOf(false))
}

func TestTearDownOfNothingIsNoError(t *testing.T) {
	e := newEnv(t)
	for range 2 {
		e.tearDown(newPod())
	}
}

func TestTearDownLeavesTheRestOfThePodsDirectory(t *testing.T) {
	e := newEnv(t)
	pod := e.fullPod()
	e.setUp(pod)
	mustWrite(t, e.podDir("uid-1")+"/etc-hosts", "hosts")
	if orphans, err := e.Orphans(); err != nil || !slices.Equal(orphans, []string{"uid-1"}) {
		t.Errorf("Orphans() = %v, %v", orphans, err)
	}
	for range 2 {
		if err := e.TearDown(t.Context(), "uid-1"); err != nil {
			t.Fatal(err)
		}
	}
	if names := shown(t, e.podDir("uid-1")); !slices.Equal(names, []string{"etc-hosts"}) {
		t.Errorf("left are %v", names)
	}
	if orphans, err := e.Orphans(); err != nil || len(orphans) > 0 {
		t.Errorf("Orphans() = %v, %v; want none", orphans, err)
	}
}

// What somebody else mounted inside a pod's directory, and what is in it, is
// not ours to remove.
func TestRemovalNeverEntersWhatSomebodyElseMounted(t *testing.T) {
	e := newEnv(t)
	pod := newPod(emptyDirOf("", ""))
	dir := e.setUp(pod)["scratch"].HostPath
	mustWrite(t, e.root+"/precious/file", "precious")
	mustWrite(t, dir+"/a/mnt/covered", "")
	mustWrite(t, dir+"/b", "")
	if err := os.Symlink(e.root+"/precious", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(e.root+"/precious", dir+"/a/mnt", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := e.TearDown(t.Context(), "uid-1")
	if !errors.Is(err, ErrMounted) || !strings.Contains(err.Error(), dir+"/a/mnt: ") {
		t.Errorf("TearDown: %v; want ErrMounted that names the mount", err)
	}
	e.wantFile(e.root+"/precious/file", "precious")
	if err := unix.Unmount(dir+"/a/mnt", 0); err != nil {
		t.Fatal(err)
	}
	e.tearDown(pod)
	e.wantFile(e.root+"/precious/file", "precious")
}

func TestTearDownSaysWhyAVolumeIsBusy(t *testing.T) {
	e := newEnv(t)
	pod := e.fullPod()
	dir := e.setUp(pod)["memory"].HostPath
	open, err := os.Create(dir + "/open")
	if err != nil {
		t.Fatal(err)
	}
	err = e.TearDown(t.Context(), "uid-1")
	want := "unmount " + dir + ": device or resource busy: a process of this mount namespace has a file open or its working directory there"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("TearDown: %v, want %s", err, want)
	}
	if left := mountsBelow(t, e.root); !slices.Equal(left, []string{dir}) {
		t.Errorf("mounted are %v, want only what is busy", left)
	}
	if err := open.Close(); err != nil {
		t.Fatal(err)
	}
	e.tearDown(pod)
}

func TestTearDownUndoesWhatACrashLeft(t *testing.T) {
	volumes := "/volumes/kubernetes.io~"
	for name, half := range map[string]func(t *testing.T, pod string){
		"a journal entry without a mount": func(t *testing.T, pod string) {
			mustWrite(t, pod+"/berth-mounts/volumes%2Fkubernetes.io~secret%2Fx", "")
		},
		"an empty journal": func(t *testing.T, pod string) {
			mustWrite(t, pod+"/berth-mounts/x", "")
			if err := os.Remove(pod + "/berth-mounts/x"); err != nil {
				t.Fatal(err)
			}
		},
		"a staged directory": func(t *testing.T, pod string) {
			mustWrite(t, pod+volumes+"empty-dir/..new-x/f", "")
		},
		"a half-written version": func(t *testing.T, pod string) {
			mustWrite(t, pod+volumes+"configmap/x/..2026_01_01_00_00_00.1/a", "")
		},
		"two mounts on top of each other": func(t *testing.T, pod string) {
			mustWrite(t, pod+"/berth-mounts/volumes%2Fkubernetes.io~secret%2Fx", "")
			dir := pod + volumes + "secret/x"
			if err := os.MkdirAll(dir, 0o750); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
					t.Fatal(err)
				}
			}
		},
		"an unmounted volume that is still in the journal": func(t *testing.T, pod string) {
			mustWrite(t, pod+"/berth-mounts/volumes%2Fkubernetes.io~secret%2Fx", "")
			mustWrite(t, pod+volumes+"secret/x/f", "")
		},
		"a pinned file without its journal's other entries": func(t *testing.T, pod string) {
			target := pod + "/volume-subpaths/v/main/0"
			mustWrite(t, pod+"/berth-mounts/volume-subpaths%2Fv%2Fmain%2F0", "")
			mustWrite(t, target, "")
			if err := unix.Mount("/etc/hostname", target, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			half(t, e.podDir("uid-1"))
			if orphans, err := e.Orphans(); err != nil || !slices.Equal(orphans, []string{"uid-1"}) {
				t.Errorf("Orphans() = %v, %v", orphans, err)
			}
			e.tearDown(newPod())
		})
	}
}

func TestAForeignFileInTheJournalIsReported(t *testing.T) {
	e := newEnv(t)
	mustWrite(t, e.podDir("uid-1")+"/berth-mounts/..%2F..%2Fetc", "")
	err := e.TearDown(t.Context(), "uid-1")
	if err == nil || !strings.Contains(err.Error(), "is no path below the pod: remove that file") {
		t.Errorf("TearDown: %v", err)
	}
}

func TestVolumesDeeperThanADescriptorTableAreRemoved(t *testing.T) {
	e := newEnv(t)
	pod := newPod(emptyDirOf("", ""))
	dir, err := unix.Open(e.setUp(pod)["scratch"].HostPath, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if err := unix.Mkdirat(dir, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(dir, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(dir)
		if err != nil {
			t.Fatal(err)
		}
		dir = next
	}
	unix.Close(dir)
	e.tearDown(pod)
}

// stuckObjects does not answer until it is released, as a hung file server.
type stuckObjects struct {
	objects
	release chan struct{}
}

func (o *stuckObjects) ConfigMap(ctx context.Context, pod *v1.Pod, name string) (*v1.ConfigMap, error) {
	<-o.release
	return o.objects.ConfigMap(ctx, pod, name)
}

func TestAStuckVolumeBlocksItsOwnPodOnlyAndSaysWhere(t *testing.T) {
	e := newEnv(t)
	e.keyed("a", "1")
	stuck := &stuckObjects{*e.objects, make(chan struct{})}
	e.Manager.objects = stuck
	pod := newPod(configMapOf())
	call := func(work func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		return work(ctx)
	}
	err := call(func(ctx context.Context) error { _, err := e.SetUp(ctx, pod); return err })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), `set up volume "cfg": has not returned for `) {
		t.Errorf("SetUp: %v", err)
	}
	err = call(func(ctx context.Context) error { return e.TearDown(ctx, "uid-1") })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), `wait for an earlier call: set up volume "cfg": has not returned for `) {
		t.Errorf("TearDown: %v", err)
	}
	other := newPod(emptyDirOf("", ""))
	other.UID = "uid-2"
	e.setUp(other)
	if err := e.TearDown(t.Context(), "uid-2"); err != nil {
		t.Fatal(err)
	}
	close(stuck.release)
	e.tearDown(pod)
}

func TestNoDescriptorIsLeftOpen(t *testing.T) {
	e := newEnv(t)
	pod := e.withFSGroup(e.fullPod(), 4321)
	round := func() int {
		mounted := e.setUp(pod)
		e.subPath(pod, mounted["scratch"], 0, "a/b")
		e.subPath(pod, mounted["cfg"], 1, "a")
		if _, err := e.SubPath(t.Context(), pod, "main", 2, mounted["scratch"], "..", false); err == nil {
			t.Error("'..' was taken")
		}
		e.tearDown(pod)
		open, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	before := round()
	for range 5 {
		round()
	}
	if after := round(); after > before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

func BenchmarkSetUpAndTearDown(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: volumes are mounts")
	}
	o := &objects{
		configMaps: map[string]*v1.ConfigMap{"web": {Data: map[string]string{"a": "1", "b": "2"}}},
		secrets:    map[string]*v1.Secret{"web": {Data: map[string][]byte{"a": []byte("1")}}},
	}
	m, err := New(Config{KubeletDir: b.TempDir()}, o)
	if err != nil {
		b.Fatal(err)
	}
	for name, volumes := range map[string][]v1.Volume{
		"emptyDir+configMap": {emptyDirOf("", ""), configMapOf()},
		"secret":             {secretOf()},
	} {
		pod := newPod(volumes...)
		b.Run(name+"/setUp", func(b *testing.B) {
			for range b.N {
				if _, err := m.SetUp(b.Context(), pod); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := m.TearDown(b.Context(), string(pod.UID)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
		b.Run(name+"/refresh", func(b *testing.B) {
			for range b.N {
				if _, err := m.SetUp(b.Context(), pod); err != nil {
					b.Fatal(err)
				}
			}
			if err := m.TearDown(b.Context(), string(pod.UID)); err != nil {
				b.Fatal(err)
			}
		})
		b.Run(name+"/tearDown", func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				if _, err := m.SetUp(b.Context(), pod); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := m.TearDown(b.Context(), string(pod.UID)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
