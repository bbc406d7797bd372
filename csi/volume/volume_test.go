package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// objects is Objects in memory, by name.
type objects struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
	claims     map[string]string
	tokens     map[string]string // by audience
	bundles    map[string]string
	readOnly   bool // of claims
}

func (o *objects) ConfigMap(_ context.Context, _ *v1.Pod, name string) (*v1.ConfigMap, error) {
	return found(o.configMaps, "configmap", name)
}

func (o *objects) Secret(_ context.Context, _ *v1.Pod, name string) (*v1.Secret, error) {
	return found(o.secrets, "secret", name)
}

func (o *objects) Claim(_ context.Context, _ *v1.Pod, name string) (string, bool, error) {
	path, err := found(o.claims, "persistentvolumeclaim", name)
	return path, o.readOnly, err
}

func (o *objects) Token(_ context.Context, _ *v1.Pod, want *v1.ServiceAccountTokenProjection) (string, error) {
	return found(o.tokens, "token", want.Audience)
}

func (o *objects) TrustBundle(_ context.Context, _ *v1.Pod, want *v1.ClusterTrustBundleProjection) ([]byte, error) {
	bundle, err := found(o.bundles, "clustertrustbundle", *want.Name)
	if errors.Is(err, ErrNotFound) && want.Optional != nil && *want.Optional {
		err = nil
	}
	return []byte(bundle), err
}

func found[T any](in map[string]T, kind, name string) (T, error) {
	object, there := in[name]
	if !there {
		return object, NotFound(kind, name)
	}
	return object, nil
}

func newObjects() *objects {
	return &objects{configMaps: map[string]*v1.ConfigMap{}, secrets: map[string]*v1.Secret{}, claims: map[string]string{}, tokens: map[string]string{}, bundles: map[string]string{}}
}

// env is a manager on a kubelet directory of its own. What is left mounted
// below it at the end fails the test.
type env struct {
	*Manager
	t       *testing.T
	objects *objects
	root    string
}

func newEnv(t *testing.T) *env {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: volumes are mounts")
	}
	root := t.TempDir()
	o := newObjects()
	m, err := New(Config{KubeletDir: root + "/kubelet", ClaimsDir: root + "/claims"}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, point := range slices.Backward(mountsBelow(t, root)) {
			t.Errorf("left mounted: %s", point)
			if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	return &env{m, t, o, root}
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, info := range list {
		points = append(points, info.Mountpoint)
	}
	return points
}

func newPod(volumes ...v1.Volume) Pod {
	return Pod{Pod: &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: types.UID("uid-1")},
		Spec:       v1.PodSpec{Volumes: volumes},
	}}
}

func vol(name string, source v1.VolumeSource) v1.Volume {
	return v1.Volume{Name: name, VolumeSource: source}
}

func (e *env) withFSGroup(pod Pod, group int64) Pod {
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: &group}
	return pod
}

func (e *env) setUp(pod Pod) map[string]Mounted {
	e.t.Helper()
	mounted, err := e.SetUp(context.Background(), pod)
	if err != nil {
		e.t.Fatalf("SetUp: %v", err)
	}
	return mounted
}

// fails sets up volumes and wants exactly this error.
func (e *env) fails(pod Pod, want string) {
	e.t.Helper()
	_, err := e.SetUp(context.Background(), pod)
	if err == nil || err.Error() != strings.ReplaceAll(want, "ROOT", e.root) {
		e.t.Errorf("SetUp: error is\n%v\nwant\n%s", err, want)
	}
}

// tearDown tears down and wants nothing of the pod to be left.
func (e *env) tearDown(pod Pod) {
	e.t.Helper()
	if err := e.TearDown(context.Background(), string(pod.UID)); err != nil {
		e.t.Fatalf("TearDown: %v", err)
	}
	if _, err := os.Lstat(e.podDir(string(pod.UID))); !os.IsNotExist(err) {
		e.t.Errorf("the pod's directory is still there: %v", err)
	}
	if orphans, err := e.Orphans(); err != nil || len(orphans) > 0 {
		e.t.Errorf("Orphans() = %v, %v; want none", orphans, err)
	}
}

func (e *env) wantFile(path, want string) {
	e.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != want {
		e.t.Errorf("%s holds %q, %v; want %q", path, data, err, want)
	}
}

// wantMode wants the kernel's mode bits, and the group.
func (e *env) wantMode(path string, mode uint32, group uint32) {
	e.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		e.t.Errorf("stat %s: %v", path, err)
	} else if st.Mode&0o7777 != mode || st.Gid != group {
		e.t.Errorf("%s has mode %04o and group %d, want %04o and %d", path, st.Mode&0o7777, st.Gid, mode, group)
	}
}

func mustWrite(t *testing.T, path, data string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }
