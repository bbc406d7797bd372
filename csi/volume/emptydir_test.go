package volume

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func emptyDirOf(medium v1.StorageMedium, limit string) v1.Volume {
	source := &v1.EmptyDirVolumeSource{Medium: medium}
	if limit != "" {
		source.SizeLimit = ptr(resource.MustParse(limit))
	}
	return vol("scratch", v1.VolumeSource{EmptyDir: source})
}

func TestEmptyDirIsOpenToAllUsersWhateverTheUmask(t *testing.T) {
	e := newEnv(t)
	defer unix.Umask(unix.Umask(0o077))
	pod := newPod(emptyDirOf("", ""))
	got := e.setUp(pod)["scratch"]
	want := Mounted{Name: "scratch", HostPath: e.root + "/kubelet/pods/uid-1/volumes/kubernetes.io~empty-dir/scratch"}
	if got != want {
		t.Errorf("mounted %+v, want %+v", got, want)
	}
	e.wantMode(got.HostPath, 0o777, 0)
	e.tearDown(pod)
}

func TestEmptyDirBelongsToFSGroup(t *testing.T) {
	e := newEnv(t)
	pod := e.withFSGroup(newPod(emptyDirOf("", "")), 4321)
	e.wantMode(e.setUp(pod)["scratch"].HostPath, 0o2777, 4321)
	e.tearDown(pod)
}

func TestEmptyDirKeepsContentAndModeThroughRefresh(t *testing.T) {
	e := newEnv(t)
	for _, medium := range []v1.StorageMedium{"", v1.StorageMediumMemory} {
		pod := newPod(emptyDirOf(medium, ""))
		dir := e.setUp(pod)["scratch"].HostPath
		mustWrite(t, dir+"/kept", "kept")
		if err := unix.Chmod(dir, 0o1711); err != nil {
			t.Fatal(err)
		}
		e.setUp(pod)
		e.wantFile(dir+"/kept", "kept")
		e.wantMode(dir, 0o1711, 0)
		if n := len(mountsBelow(t, e.root)); (n == 1) != (medium == v1.StorageMediumMemory) || n > 1 {
			t.Errorf("medium %q: %d mounts", medium, n)
		}
		e.tearDown(pod)
	}
}

func TestSourcelessVolumeIsAnEmptyDir(t *testing.T) {
	e := newEnv(t)
	pod := newPod(vol("scratch", v1.VolumeSource{}))
	e.wantMode(e.setUp(pod)["scratch"].HostPath, 0o777, 0)
	e.tearDown(pod)
}

func TestMemoryMediumIsBoundedByTheSmallestLimit(t *testing.T) {
	e := newEnv(t)
	limited := func(memory string) v1.Container {
		return v1.Container{Resources: v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse(memory)}}}
	}
	allocatable := v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")}
	for _, test := range []struct {
		name       string
		limit      string
		containers []v1.Container
		podLimit   string
		node       v1.ResourceList
		want       int64
	}{
		{"its own limit", "1Mi", []v1.Container{limited("8Mi")}, "", allocatable, 1 << 20},
		{"the containers' limits together", "", []v1.Container{limited("8Mi"), limited("4Mi")}, "", allocatable, 12 << 20},
		{"its own limit above the containers'", "1Gi", []v1.Container{limited("8Mi")}, "", allocatable, 8 << 20},
		{"a container without a limit leaves the node", "", []v1.Container{limited("8Mi"), {}}, "", allocatable, 64 << 20},
		{"the pod's own limit", "", []v1.Container{{}}, "16Mi", allocatable, 16 << 20},
		{"its own limit above the node's", "1Gi", nil, "", allocatable, 64 << 20},
		{"a limit of zero is none", "0", nil, "", allocatable, 64 << 20},
		{"its own limit where the node's is unknown", "2Mi", nil, "", nil, 2 << 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := newPod(emptyDirOf(v1.StorageMediumMemory, test.limit))
			pod.Spec.Containers, pod.Allocatable = test.containers, test.node
			if test.podLimit != "" {
				pod.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceMemory: resource.MustParse(test.podLimit)}}
			}
			dir := e.setUp(pod)["scratch"].HostPath
			var fs unix.Statfs_t
			if err := unix.Statfs(dir, &fs); err != nil {
				t.Fatal(err)
			}
			if fs.Type != unix.TMPFS_MAGIC {
				t.Errorf("file system type %#x, want a tmpfs", fs.Type)
			}
			if size := int64(fs.Blocks) * fs.Bsize; size != test.want {
				t.Errorf("size %d, want %d", size, test.want)
			}
			e.wantMode(dir, 0o1777, 0)
			e.tearDown(pod)
		})
	}
}

func TestMemoryMediumBelongsToFSGroup(t *testing.T) {
	e := newEnv(t)
	pod := e.withFSGroup(newPod(emptyDirOf(v1.StorageMediumMemory, "1Mi")), 4321)
	dir := e.setUp(pod)["scratch"].HostPath
	e.wantMode(dir, 0o3777, 4321)
	mustWrite(t, dir+"/new", "")
	e.wantMode(dir+"/new", 0o644, 4321)
	e.tearDown(pod)
}

func TestUnsupportedMediumIsRefusedByName(t *testing.T) {
	e := newEnv(t)
	e.fails(newPod(emptyDirOf("Tape", "")), `volume "scratch": emptyDir: unknown storage medium "Tape": use Memory, HugePages, HugePages-<size> or leave it out`)
	if left, err := filepath.Glob(e.root + "/kubelet/pods/*"); err != nil || len(left) > 0 {
		t.Errorf("a refused volume left %v, %v", left, err)
	}
}

func TestUnsupportedKindIsRefusedByName(t *testing.T) {
	e := newEnv(t)
	e.fails(newPod(vol("share", v1.VolumeSource{NFS: &v1.NFSVolumeSource{}})), `volume "share": nfs volumes are not supported`)
}

func TestVolumeNamesCannotLeadElsewhere(t *testing.T) {
	e := newEnv(t)
	for _, name := range []string{"", ".", "..", "../up", "a/b", "..data"} {
		pod := newPod(vol(name, v1.VolumeSource{}))
		if _, err := e.SetUp(t.Context(), pod); err == nil {
			t.Errorf("volume name %q was taken", name)
		}
		pod.UID = "ok"
		if err := e.TearDown(t.Context(), name); err == nil {
			t.Errorf("pod UID %q was taken", name)
		}
	}
	if _, err := os.Lstat(e.root + "/kubelet"); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
}

func TestVolumesThatWorkAreReadyAlthoughOthersFail(t *testing.T) {
	e := newEnv(t)
	pod := newPod(
		vol("bad", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "no"}}}),
		vol("worse", v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "no"}}),
		emptyDirOf("", ""),
	)
	e.fails(pod, "volume \"bad\": configmap \"no\" not found\nvolume \"worse\": secret \"no\" not found")
	e.wantMode(e.podDir("uid-1")+"/volumes/kubernetes.io~empty-dir/scratch", 0o777, 0)
	if n := len(mountsBelow(t, e.root)); n != 0 {
		t.Errorf("%d mounts for a secret that is not there", n)
	}
	e.tearDown(pod)
}

// withHugePages gives the pod containers that request huge pages.
func withHugePages(pod Pod, sizes ...string) Pod {
	for i, size := range sizes {
		name := v1.ResourceName(v1.ResourceHugePagesPrefix + size)
		pod.Spec.Containers = append(pod.Spec.Containers, v1.Container{Name: "c" + strconv.Itoa(i), Resources: v1.ResourceRequirements{
			Requests: v1.ResourceList{name: resource.MustParse(size)}}})
	}
	return pod
}

func TestHugePagesAreMountedWithTheSizeThatIsMeant(t *testing.T) {
	for _, test := range []struct {
		medium v1.StorageMedium
		has    []string
		size   int64 // of a page
		group  *int64
	}{
		{v1.StorageMediumHugePages, []string{"2Mi"}, 2 << 20, nil},
		{v1.StorageMediumHugePages, []string{"2Mi", "2Mi"}, 2 << 20, ptr[int64](4321)},
		{"HugePages-2Mi", []string{"1Gi", "2Mi"}, 2 << 20, nil},
	} {
		t.Run(string(test.medium), func(t *testing.T) {
			if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
				t.Skip("this kernel has no huge pages of 2 MiB")
			}
			e := newEnv(t)
			pod := withHugePages(newPod(emptyDirOf(test.medium, "")), test.has...)
			mode, group := uint32(0o1777), uint32(0)
			if test.group != nil {
				pod = e.withFSGroup(pod, *test.group)
				mode, group = 0o3777, uint32(*test.group)
			}
			for range 2 {
				dir := e.setUp(pod)["scratch"].HostPath
				var fs unix.Statfs_t
				if err := unix.Statfs(dir, &fs); err != nil || fs.Type != unix.HUGETLBFS_MAGIC || fs.Bsize != test.size {
					t.Errorf("file system type %#x with blocks of %d, %v", fs.Type, fs.Bsize, err)
				}
				e.wantMode(dir, mode, group)
			}
			if n := len(mountsBelow(t, e.root)); n != 1 {
				t.Errorf("%d mounts, want one", n)
			}
			e.tearDown(pod)
		})
	}
}

func TestHugePagesThatThePodHasNotAreRefused(t *testing.T) {
	for _, test := range []struct {
		medium v1.StorageMedium
		has    []string
		want   string
	}{
		{v1.StorageMediumHugePages, nil, "medium HugePages: hugePages storage requested, but there is no resource request for huge pages"},
		{"HugePages-1Gi", []string{"2Mi"}, "medium HugePages-1Gi: hugePages storage requested, but there is no resource request for huge pages"},
		{v1.StorageMediumHugePages, []string{"2Mi", "1Gi"}, "medium: HugePages can't be used if container requests multiple huge page sizes"},
		{"HugePages-many", []string{"2Mi"}, `medium HugePages-many: "many" is no page size`},
		{"HugePagesX", []string{"2Mi"}, `unknown storage medium "HugePagesX": use Memory, HugePages, HugePages-<size> or leave it out`},
	} {
		e := newEnv(t)
		e.fails(withHugePages(newPod(emptyDirOf(test.medium, "")), test.has...), `volume "scratch": emptyDir: `+test.want)
	}
}
