package volume

import (
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestHostPathTypes(t *testing.T) {
	e := newEnv(t)
	dir := e.root + "/host"
	mustWrite(t, dir+"/file", "")
	if err := os.Symlink("file", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", dir+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for name, mode := range map[string]uint32{"char": unix.S_IFCHR, "block": unix.S_IFBLK, "fifo": unix.S_IFIFO} {
		dev := 0
		if mode == unix.S_IFCHR {
			dev = int(unix.Mkdev(1, 3))
		}
		if err := unix.Mknod(dir+"/"+name, mode|0o600, dev); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		path    string
		typ     v1.HostPathType
		problem string
	}{
		{"", v1.HostPathDirectory, ""},
		{"", v1.HostPathDirectoryOrCreate, ""},
		{"/file", v1.HostPathFile, ""},
		{"/file", v1.HostPathFileOrCreate, ""},
		{"/link", v1.HostPathFile, ""},
		{"/socket", v1.HostPathSocket, ""},
		{"/char", v1.HostPathCharDev, ""},
		{"/block", v1.HostPathBlockDev, ""},
		{"/missing", v1.HostPathUnset, ""},
		{"/new/deep", v1.HostPathDirectoryOrCreate, ""},
		{"/new/file", v1.HostPathFileOrCreate, ""},
		{"/file", v1.HostPathDirectory, "is not a directory: it is a file"},
		{"/file", v1.HostPathDirectoryOrCreate, "is not a directory: it is a file"},
		{"", v1.HostPathFile, "is not a file: it is a directory"},
		{"", v1.HostPathFileOrCreate, "is not a file: it is a directory"},
		{"/fifo", v1.HostPathFile, "is not a file: it is a FIFO"},
		{"/char", v1.HostPathBlockDev, "is not a block device: it is a character device"},
		{"/block", v1.HostPathCharDev, "is not a character device: it is a block device"},
		{"/file", v1.HostPathSocket, "is not a socket file: it is a file"},
		{"/missing", v1.HostPathDirectory, "is not a directory: it does not exist"},
		{"/missing", v1.HostPathFile, "is not a file: it does not exist"},
		{"/missing/file", v1.HostPathFileOrCreate, "open ROOT/host/missing/file: no such file or directory"},
	} {
		t.Run(test.path+" "+string(test.typ), func(t *testing.T) {
			e.t = t
			path := dir + test.path
			pod := newPod(vol("h", v1.VolumeSource{HostPath: &v1.HostPathVolumeSource{Path: path, Type: &test.typ}}))
			if test.problem != "" {
				if strings.HasPrefix(test.problem, "is not") {
					test.problem = "hostPath type check failed: " + path + " " + test.problem
				}
				e.fails(pod, `volume "h": `+test.problem)
				return
			}
			if got := e.setUp(pod)["h"]; got != (Mounted{Name: "h", HostPath: path}) {
				t.Errorf("mounted %+v", got)
			}
		})
	}
	e.t = t
	e.wantMode(dir+"/new/deep", 0o755, 0)
	e.wantMode(dir+"/new/file", 0o644, 0)
	e.tearDown(newPod())
	e.wantFile(dir+"/file", "")
}

func claimOf(readOnly bool) v1.Volume {
	return vol("data", v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data", ReadOnly: readOnly}})
}

func TestClaimIsBoundToItsDirectoryAndOutlivesThePod(t *testing.T) {
	e := newEnv(t)
	dir := e.root + "/claims/default/data"
	e.objects.claims["data"] = dir
	pod := newPod(claimOf(false))
	for range 2 {
		got := e.setUp(pod)["data"]
		if want := e.podDir("uid-1") + "/volumes/kubernetes.io~local-volume/data"; got.HostPath != want || got.ReadOnly {
			t.Errorf("mounted %+v, want at %s", got, want)
		}
		if n := len(mountsBelow(t, e.root)); n != 1 {
			t.Errorf("%d mounts, want one", n)
		}
		mustWrite(t, got.HostPath+"/sub/kept", "kept")
	}
	e.wantMode(dir, 0o777, 0)
	e.tearDown(pod)
	e.wantFile(dir+"/sub/kept", "kept")
}

func TestReadOnlyClaimCannotBeWritten(t *testing.T) {
	for name, readOnly := range map[string]struct{ claim, pod bool }{"the claim says so": {claim: true}, "the pod says so": {pod: true}} {
		t.Run(name, func(t *testing.T) {
			e := newEnv(t)
			e.objects.claims["data"], e.objects.readOnly = e.root+"/claims/data", readOnly.claim
			pod := e.withFSGroup(newPod(claimOf(readOnly.pod)), 4321)
			got := e.setUp(pod)["data"]
			if !got.ReadOnly {
				t.Errorf("mounted %+v, want it read-only", got)
			}
			if err := os.WriteFile(got.HostPath+"/x", nil, 0o600); err == nil {
				t.Error("a file could be made")
			}
			e.wantMode(e.root+"/claims/data", 0o777, 0)
			e.tearDown(pod)
		})
	}
}

func TestClaimErrorsNameWhatIsMissing(t *testing.T) {
	e := newEnv(t)
	pod := newPod(claimOf(false))
	e.fails(pod, `volume "data": persistentvolumeclaim "data" not found`)
	e.objects.claims["data"] = e.root + "/disk/data"
	e.fails(pod, `volume "data": persistentvolumeclaim "data": ROOT/disk/data, which it is bound to, does not exist: make the directory or mount its disk`)
	mustWrite(t, e.root+"/disk/data", "")
	e.fails(pod, `volume "data": persistentvolumeclaim "data": open ROOT/disk/data, which it is bound to: not a directory`)
	e.tearDown(pod)
}

func TestPodsThatShareANewClaimFindOneDirectory(t *testing.T) {
	e := newEnv(t)
	e.objects.claims["data"] = e.root + "/claims/default/data"
	const pods = 16
	var all sync.WaitGroup
	for i := range pods {
		all.Go(func() {
			pod := newPod(claimOf(false))
			pod.UID = types.UID("uid-" + strconv.Itoa(i))
			mounted, err := e.SetUp(t.Context(), pod)
			if err != nil {
				t.Error(err)
				return
			}
			if err := os.WriteFile(mounted["data"].HostPath+"/"+string(pod.UID), nil, 0o600); err != nil {
				t.Error(err)
			}
			if err := e.TearDown(t.Context(), string(pod.UID)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if names := shown(t, e.root+"/claims/default/data"); len(names) != pods {
		t.Errorf("in the claim are %v", names)
	}
	if entries, err := os.ReadDir(e.root + "/claims/default"); err != nil || len(entries) != 1 {
		t.Errorf("beside the claim are %v, %v", entries, err)
	}
}

// claimTree makes a claim's directory with files, links and a mount in it.
func claimTree(e *env) string {
	dir := e.root + "/claims/data"
	e.objects.claims["data"] = dir
	mustWrite(e.t, dir+"/deep/er/file", "")
	mustWrite(e.t, dir+"/suid", "")
	mustWrite(e.t, dir+"/mnt/file", "")
	mustWrite(e.t, e.root+"/outside/file", "")
	steps := []error{
		unix.Chmod(dir, 0o755),
		unix.Chmod(dir+"/suid", 0o4711),
		os.Symlink(e.root+"/outside/file", dir+"/link"),
		os.Symlink(e.root+"/outside", dir+"/dirlink"),
		os.Mkdir(dir+"/bound", 0o700),
		unix.Mount(e.root+"/outside", dir+"/bound", "", unix.MS_BIND, ""),
	}
	for _, err := range steps {
		if err != nil {
			e.t.Fatal(err)
		}
	}
	e.t.Cleanup(func() {
		if err := unix.Unmount(dir+"/bound", 0); err != nil {
			e.t.Error(err)
		}
	})
	return dir
}

func TestClaimIsGivenToFSGroupWithAllInItAndNothingElse(t *testing.T) {
	e := newEnv(t)
	dir := claimTree(e)
	pod := e.withFSGroup(newPod(claimOf(false)), 4321)
	e.setUp(pod)
	e.wantMode(dir, 0o2775, 4321)
	e.wantMode(dir+"/deep/er", 0o2775, 4321)
	e.wantMode(dir+"/deep/er/file", 0o664, 4321)
	e.wantMode(dir+"/suid", 0o4771, 4321)
	e.wantMode(e.root+"/outside", 0o755, 0)
	e.wantMode(e.root+"/outside/file", 0o644, 0)
	// Once mounted, what the pod does to its files is the pod's matter.
	if err := unix.Chmod(dir+"/deep", 0o700); err != nil {
		t.Fatal(err)
	}
	e.setUp(pod)
	e.wantMode(dir+"/deep", 0o700, 4321)
	e.tearDown(pod)
}

func TestOnRootMismatchLooksAtTheRootOnly(t *testing.T) {
	e := newEnv(t)
	dir := claimTree(e)
	pod := e.withFSGroup(newPod(claimOf(false)), 4321)
	pod.Spec.SecurityContext.FSGroupChangePolicy = ptr(v1.FSGroupChangeOnRootMismatch)
	if err := os.Chown(dir, 0, 4321); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(dir, 0o2770); err != nil {
		t.Fatal(err)
	}
	e.setUp(pod)
	e.wantMode(dir+"/deep", 0o755, 0)
	e.tearDown(pod)
	if err := unix.Chmod(dir, 0o770); err != nil { // no setgid bit: not finished
		t.Fatal(err)
	}
	e.setUp(pod)
	e.wantMode(dir+"/deep", 0o2775, 4321)
	e.wantMode(dir, 0o2770, 4321)
	e.tearDown(pod)
}
