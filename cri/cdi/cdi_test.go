package cdi

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const vendor = `
cdiVersion: 0.6.0
kind: example.com/box
containerEdits:
  env: [BOX=all]
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/box, hostPath: /dev/zero, permissions: rw}]
    mounts: [{hostPath: /usr, containerPath: /box, options: [ro, bind]}]
- name: two
  containerEdits: {env: [BOX_TWO=yes]}
`

func spec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func TestDevicesAreInjected(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "vendor.yaml"), []byte(vendor), 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec()
	if err := Inject(s, []string{"example.com/box=one"}, []string{"/nonexistent", dir}); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(s.Process.Env, "BOX=all") || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/box" || s.Linux.Devices[0].Minor != 5 ||
		len(s.Linux.Resources.Devices) != 1 || s.Linux.Resources.Devices[0].Access != "rw" || len(s.Mounts) != 1 {
		t.Errorf("got %+v %+v %+v %+v", s.Process, s.Linux.Devices, s.Linux.Resources.Devices, s.Mounts)
	}
	before := spec()
	if err := Inject(before, nil, nil); err != nil || len(before.Process.Env) > 0 {
		t.Errorf("no devices: %v %+v", err, before)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.yaml"), []byte("kind: x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Inject(spec(), []string{"example.com/box=two"}, []string{dir}); err != nil {
		t.Errorf("a broken file of another vendor: %v", err)
	}
	for _, c := range []struct {
		dirs []string
		want string
	}{
		{[]string{dir}, "no file in " + dir + " describes example.com/box=three (not usable: "},
		{nil, "cdiSpecDirs is empty"},
	} {
		err := Inject(spec(), []string{"example.com/box=three"}, c.dirs)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

func TestDevicesAreNamedInTheFieldAndInAnnotations(t *testing.T) {
	c := &runtimeapi.ContainerConfig{
		CDIDevices:  []*runtimeapi.CDIDevice{{Name: "a.com/x=1"}, {Name: "a.com/x=2"}},
		Annotations: map[string]string{"cdi.k8s.io/plugin_2": "a.com/x=2,b.com/y=1", "cdi.k8s.io/plugin_1": "a.com/x=3", "other": "c.com/z=1"},
	}
	names, err := Names(c)
	if err != nil || !slices.Equal(names, []string{"a.com/x=1", "a.com/x=2", "a.com/x=3", "b.com/y=1"}) {
		t.Errorf("got %v, %v", names, err)
	}
	c.CDIDevices[0].Name = "gpu0"
	if _, err := Names(c); err == nil || !strings.Contains(err.Error(), `config.CDI_devices: "gpu0"`) {
		t.Errorf("an unqualified name: %v", err)
	}
	if _, err := Names(&runtimeapi.ContainerConfig{Annotations: map[string]string{"cdi.k8s.io/p": "gpu0"}}); err == nil || !strings.Contains(err.Error(), "config.annotations: ") {
		t.Errorf("an unqualified name in an annotation: %v", err)
	}
}
