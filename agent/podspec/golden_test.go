package podspec

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/csi/volume"
)

var update = flag.Bool("update", false, "write the golden files")

var testNode = Node{
	Name:          "node-1",
	HostIPs:       []string{"192.0.2.1", "2001:db8::1"},
	ClusterDNS:    []string{"10.96.0.10"},
	ClusterDomain: "cluster.local",
	HostResolv:    []byte("# comment\nnameserver 9.9.9.9\nsearch example.com. lan\noptions ndots:1 rotate\n"),
	PodLogsDir:    "/var/log/pods",
	KubeletDir:    "/var/lib/kubelet",
	SeccompDir:    "/var/lib/kubelet/seccomp",
	Allocatable: v1.ResourceList{
		v1.ResourceCPU:    resource.MustParse("1500m"),
		v1.ResourceMemory: resource.MustParse("8Gi"),
	},
	MaskedPaths: []string{"/sys/devices/system/cpu/cpu0/thermal_throttle"},
}

func TestCompleteConfigurationsAreTheKubelets(t *testing.T) {
	for _, name := range []string{"everything", "hostpod"} {
		t.Run(name, func(t *testing.T) {
			pod := loadPod(t, name)
			sandbox, err := Sandbox(pod, 2, testNode, "/kubepods/burstable/pod1", nil)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".sandbox.json", sandbox)

			c := Container{
				Pod:       pod,
				Container: &pod.Spec.Containers[0],
				Attempt:   3,
				PodIPs:    []string{"10.1.0.7"},
				Image:     &runtimeapi.Image{Uid: &runtimeapi.Int64Value{Value: 33}},
				ImageRef:  "sha256:abc",
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: 2},
				Backoff:   "20s",
			}
			env, err := Env(t.Context(), c, testNode, objects{})
			if err != nil {
				t.Fatal(err)
			}
			c.Mounts, err = VolumeMounts(c.Container, env, MountSources{
				Volumes: map[string]volume.Mounted{
					"data": {Name: "data", HostPath: "/vol/data"},
					"conf": {Name: "conf", HostPath: "/vol/conf", ReadOnly: true},
				},
				SubPath: func(index int, vol volume.Mounted, subPath string, readOnly bool) (string, error) {
					return filepath.Join("/pinned", vol.Name, subPath), nil
				},
				HostsFile:         "/pod/etc-hosts",
				TerminationLog:    "/pod/containers/app/0000abcd",
				RecursiveReadOnly: true,
			})
			if err != nil {
				t.Fatal(err)
			}
			container, err := ContainerConfig(t.Context(), c, testNode, objects{})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".container.json", container)
		})
	}
}

// objects is a volume.Objects of what the tests declare, by namespace/name.
type objects struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
	err        error
}

func (o objects) ConfigMap(_ context.Context, pod *v1.Pod, name string) (*v1.ConfigMap, error) {
	return get(o, o.configMaps, "configmap", pod, name)
}

func (o objects) Secret(_ context.Context, pod *v1.Pod, name string) (*v1.Secret, error) {
	return get(o, o.secrets, "secret", pod, name)
}

func get[T any](o objects, in map[string]*T, kind string, pod *v1.Pod, name string) (*T, error) {
	if o.err != nil {
		return nil, o.err
	}
	if object := in[pod.Namespace+"/"+name]; object != nil {
		return object, nil
	}
	return nil, volume.NotFound(kind, name)
}

func (objects) Claim(context.Context, *v1.Pod, string) (string, bool, error) {
	panic("an environment has no claims")
}

func (objects) Token(context.Context, *v1.Pod, *v1.ServiceAccountTokenProjection) (string, error) {
	panic("an environment has no tokens")
}

func (objects) TrustBundle(context.Context, *v1.Pod, *v1.ClusterTrustBundleProjection) ([]byte, error) {
	panic("an environment has no trust bundles")
}

func loadPod(t *testing.T, name string) *v1.Pod {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict(raw, pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

// golden compares a message with a file. protojson varies its white space on
// purpose, so the text is indented anew.
func golden(t *testing.T, name string, m proto.Message) {
	t.Helper()
	raw, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	got.WriteByte('\n')
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", file, got.Bytes())
	}
}
