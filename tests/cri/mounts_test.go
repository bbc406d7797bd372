package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestMounts(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("mounts")
	sandbox := r.runPod(pod)
	m := &mounts{runtime: r, pod: pod, sandbox: sandbox}
	for name, run := range map[string]func(*mounts){
		"a missing source becomes a directory":                        missingSource,
		"a source is found through symbolic links":                    linkedSource,
		"read-only, and read-only all the way down":                   readOnlyMounts,
		"propagation to the container, both ways, and none":           propagation,
		"propagation needs a shared mount":                            propagationNeedsSharing,
		"a symbolic link of the image leads nowhere outside":          linkOutside,
		"a file does not take the place of a directory":               fileOverDirectory,
		"nothing is mounted over /proc":                               overProc,
		"the status has the mounts of the request":                    echoed,
		"a mount of the request goes before the pod's at the place":   overHosts,
		"parents are mounted before children, whatever their order":   sorted,
		"a working directory that is not there is made":               workingDirectory,
		"what the validation refuses, it refuses before it starts it": refusedMounts,
	} {
		t.Run(name, func(t *testing.T) { m := *m; m.runtime = r.on(t); run(&m) })
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// mounts is a pod to make containers with mounts in.
type mounts struct {
	*runtime
	pod     *runtimeapi.PodSandboxConfig
	sandbox string
}

func (m *mounts) config(list ...*runtimeapi.Mount) *runtimeapi.ContainerConfig {
	c := m.containerConfig("main", "testbox", "pause")
	c.Metadata.Name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return -1
	}, m.t.(*testing.T).Name())
	c.LogPath = c.Metadata.Name + "/0.log"
	c.Mounts = list
	return c
}

// with runs a container with mounts, and removes it when the test ends.
func (m *mounts) with(c *runtimeapi.ContainerConfig) (id string, done func()) {
	m.t.Helper()
	id = m.run(m.sandbox, m.pod, c)
	return id, func() { m.remove(id) }
}

func (m *mounts) remove(id string) {
	m.t.Helper()
	_, err := m.RemoveContainer(m.ctx(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
	must(m.t, err)
}

func missingSource(m *mounts) {
	source := filepath.Join(m.t.(*testing.T).TempDir(), "not", "there")
	id, done := m.with(m.config(&runtimeapi.Mount{HostPath: source, ContainerPath: "/made/below"}))
	defer done()
	m.exec(id, "touch", "/made/below/x")
	if !exists(filepath.Join(source, "x")) {
		m.t.Error("what the container made is not on the host")
	}
}

func linkedSource(m *mounts) {
	dir := m.t.(*testing.T).TempDir()
	must(m.t, os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644))
	must(m.t, os.Symlink("file", filepath.Join(dir, "link")))
	id, done := m.with(m.config(&runtimeapi.Mount{HostPath: filepath.Join(dir, "link"), ContainerPath: "/file"}))
	defer done()
	equal(m.t, "content", m.exec(id, "cat", "/file"), "content")
}

func readOnlyMounts(m *mounts) {
	below, unmount := mounted(m.t)
	defer unmount()
	dir := filepath.Dir(below)
	id, done := m.with(m.config(
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/rw"},
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/ro", Readonly: true},
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
	))
	defer done()
	m.exec(id, "touch", "/rw/x", "/rw/below/x", "/ro/below/x")
	for _, path := range []string{"/ro/x", "/rro/x", "/rro/below/x"} {
		if out := m.fails(id, "touch", path); !strings.Contains(out, "Read-only") {
			m.t.Errorf("touch %s: %s", path, out)
		}
	}
}

// mounted is a shared mount below a directory of the test.
func mounted(t testing.TB) (path string, unmount func()) {
	t.Helper()
	path = filepath.Join(t.(*testing.T).TempDir(), "below")
	must(t, os.Mkdir(path, 0o755))
	must(t, unix.Mount("tmpfs", path, "tmpfs", 0, "size=1m"))
	must(t, unix.Mount("", path, "", unix.MS_SHARED, ""))
	return path, func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) }
}

func propagation(m *mounts) {
	shared, unmount := mounted(m.t)
	defer unmount()
	for _, dir := range []string{"from-host", "from-container"} {
		must(m.t, os.Mkdir(filepath.Join(shared, dir), 0o755))
	}
	at := func(path string, p runtimeapi.MountPropagation) *runtimeapi.Mount {
		return &runtimeapi.Mount{HostPath: shared, ContainerPath: path, Propagation: p}
	}
	c := m.config(at("/private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE),
		at("/slave", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER),
		at("/both", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL))
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
	id, done := m.with(c)
	defer done()
	host := filepath.Join(shared, "from-host")
	must(m.t, unix.Mount("tmpfs", host, "tmpfs", 0, "size=1m"))
	defer unix.Unmount(host, unix.MNT_DETACH) // before what it is on
	must(m.t, os.WriteFile(filepath.Join(host, "x"), nil, 0o644))
	m.exec(id, "sh", "-c", "test -e /slave/from-host/x && test -e /both/from-host/x && ! test -e /private/from-host/x")
	m.exec(id, "sh", "-c", "mount -t tmpfs tmpfs /slave/from-container && touch /slave/from-container/x")
	equal(m.t, "a mount below a slave is seen by the host", exists(filepath.Join(shared, "from-container", "x")), false)
	m.exec(id, "sh", "-c", "mount -t tmpfs tmpfs /both/from-container && touch /both/from-container/y")
	equal(m.t, "a mount below a shared one is seen by the host", exists(filepath.Join(shared, "from-container", "y")), true)
	m.exec(id, "umount", "/both/from-container")
}

func propagationNeedsSharing(m *mounts) {
	private, unmount := mounted(m.t)
	defer unmount()
	must(m.t, unix.Mount("", private, "", unix.MS_PRIVATE, ""))
	for p, text := range map[runtimeapi.MountPropagation]string{
		runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "bidirectional needs a shared mount, and " + private + " is not on one",
		runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "host-to-container needs a shared or slave mount, and " + private + " is not on one",
	} {
		m.refuses(&runtimeapi.Mount{HostPath: private, ContainerPath: "/x", Propagation: p}, text)
	}
}

func (m *mounts) refuses(mount *runtimeapi.Mount, text string) {
	m.t.Helper()
	_, err := m.CreateContainer(m.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: m.sandbox, Config: m.config(mount), SandboxConfig: m.pod})
	m.refused(err, codes.InvalidArgument, text)
}

// linkOutside has the image's /etc/link point out of the container, with the
// help of a container that writes into a volume: a link in the path of a mount
// is resolved inside the container, whatever it says.
func linkOutside(m *mounts) {
	dir, outside := m.t.(*testing.T).TempDir(), m.t.(*testing.T).TempDir()
	must(m.t, os.Symlink("../../../../../../../../.."+outside, filepath.Join(dir, "link")))
	source := m.t.(*testing.T).TempDir()
	must(m.t, os.WriteFile(filepath.Join(source, "x"), nil, 0o644))
	id, done := m.with(m.config(
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/volume"},
		&runtimeapi.Mount{HostPath: source, ContainerPath: "/volume/link/inside"},
	))
	defer done()
	m.exec(id, "test", "-e", outside+"/inside/x")
	if exists(filepath.Join(outside, "inside")) {
		m.t.Errorf("%s was made on the host", filepath.Join(outside, "inside"))
	}
}

func fileOverDirectory(m *mounts) {
	file := filepath.Join(m.t.(*testing.T).TempDir(), "file")
	must(m.t, os.WriteFile(file, nil, 0o644))
	m.doesNotStart(m.config(&runtimeapi.Mount{HostPath: file, ContainerPath: "/etc"}), "/etc", "ot a directory")
	m.doesNotStart(m.config(&runtimeapi.Mount{HostPath: filepath.Dir(file), ContainerPath: "/bin/testbox"}), "/bin/testbox", "ot a directory")
}

// doesNotStart: the OCI runtime refuses it, and its words are in the answer and
// in the status.
func (m *mounts) doesNotStart(c *runtimeapi.ContainerConfig, texts ...string) {
	m.t.Helper()
	id := m.create(m.sandbox, m.pod, c)
	_, err := m.StartContainer(m.ctx(), &runtimeapi.StartContainerRequest{ContainerId: id})
	st := m.status(id)
	for _, text := range texts {
		if err == nil || !strings.Contains(status.Convert(err).Message(), text) || !strings.Contains(st.Message, text) {
			m.t.Errorf("start: %v; status: %s; want %s", err, st.Message, text)
		}
	}
	equal(m.t, "state", st.State, runtimeapi.ContainerState_CONTAINER_EXITED)
	equal(m.t, "reason", st.Reason, "StartError")
	m.remove(id)
}

func overProc(m *mounts) {
	m.doesNotStart(m.config(&runtimeapi.Mount{HostPath: m.t.(*testing.T).TempDir(), ContainerPath: "/proc/sys"}), "/proc")
}

func echoed(m *mounts) {
	asked := &runtimeapi.Mount{HostPath: m.t.(*testing.T).TempDir(), ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true}
	id, done := m.with(m.config(asked))
	defer done()
	got := m.status(id).Mounts
	if len(got) != 1 || got[0].String() != asked.String() {
		m.t.Errorf("mounts in the status: %v", got)
	}
}

func overHosts(m *mounts) {
	hosts := filepath.Join(m.t.(*testing.T).TempDir(), "hosts")
	must(m.t, os.WriteFile(hosts, []byte("mine"), 0o644))
	id, done := m.with(m.config(&runtimeapi.Mount{HostPath: hosts, ContainerPath: "/etc/hosts"}))
	defer done()
	equal(m.t, "/etc/hosts", m.exec(id, "cat", "/etc/hosts"), "mine")
}

func sorted(m *mounts) {
	parent, child := m.t.(*testing.T).TempDir(), m.t.(*testing.T).TempDir()
	must(m.t, os.WriteFile(filepath.Join(child, "x"), nil, 0o644))
	id, done := m.with(m.config(
		&runtimeapi.Mount{HostPath: child, ContainerPath: "/a/b/c/"},
		&runtimeapi.Mount{HostPath: parent, ContainerPath: "/a/"},
	))
	defer done()
	m.exec(id, "test", "-e", "/a/b/c/x")
}

func workingDirectory(m *mounts) {
	c := m.config()
	c.WorkingDir = "/made/for/it"
	id, done := m.with(c)
	defer done()
	equal(m.t, "working directory of an exec", m.exec(id, "pwd"), "/made/for/it")
}

func refusedMounts(m *mounts) {
	dir := m.t.(*testing.T).TempDir()
	m.refuses(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/"}, "config.mounts")
	m.refuses(&runtimeapi.Mount{HostPath: dir, ContainerPath: "x"}, "config.mounts")
	m.refuses(&runtimeapi.Mount{HostPath: "x", ContainerPath: "/x"}, "config.mounts[/x].host_path")
	m.refuses(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/x", RecursiveReadOnly: true}, "recursive_read_only: it needs readonly")
	m.refuses(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "")
}
