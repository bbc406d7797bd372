package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

const vendor = `
cdiVersion: 0.6.0
kind: example.com/box
containerEdits:
  env: [BOX=all]
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/box, hostPath: /dev/full}]
    mounts: [{hostPath: MOUNTED, containerPath: /box, options: [ro, bind]}]
- name: two
  containerEdits: {env: [BOX_TWO=yes]}
`

func TestCDIDevices(t *testing.T) {
	dir := t.TempDir()
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) { c.CDISpecDirs = []string{dir} }})
	pod, c := r.podConfig("cdi"), r.containerConfig("main", "testbox", "pause")
	sandbox := r.runPod(pod)
	c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "example.com/box=one"}}
	c.Annotations = map[string]string{"cdi.k8s.io/plugin": "example.com/box=two,example.com/box=one"}
	_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: pod})
	r.refused(err, codes.InvalidArgument, "config.CDI_devices: no file in "+dir+" describes example.com/box=one, example.com/box=two")

	// The driver comes, without a restart.
	mounted := t.TempDir()
	must(t, os.WriteFile(filepath.Join(mounted, "file"), nil, 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "box.yaml"), []byte(strings.ReplaceAll(vendor, "MOUNTED", mounted)), 0o644))
	id := r.run(sandbox, pod, c)
	equal(t, "environment", r.exec(id, "sh", "-c", "echo $BOX $BOX_TWO"), "all yes")
	r.exec(id, "sh", "-c", "test -c /dev/box && test -e /box/file && ! touch /box/new")
	c.CDIDevices[0].Name, c.Metadata.Name = "box", "unqualified"
	_, err = r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: c, SandboxConfig: pod})
	r.refused(err, codes.InvalidArgument, `config.CDI_devices: "box" is not a name such as vendor.com/class=device`)
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// numbers of a device.
func numbers(t *testing.T, path string) (major, minor uint32) {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return unix.Major(st.Rdev), unix.Minor(st.Rdev)
}
