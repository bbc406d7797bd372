package cri

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

func TestCheckpoints(t *testing.T) {
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("criu is not here, or does not work with this kernel: %v\n%s", err, out)
	}
	r := startRuntime(t, harness.Options{})
	t.Run("a container goes on after its checkpoint, and where it was from an archive", func(t *testing.T) { restoredArchive(t, r.on(t)) })
	t.Run("and from an image of the archive", func(t *testing.T) { restoredImage(t, r.on(t)) })
	t.Run("what is no checkpoint is refused", func(t *testing.T) { badCheckpoints(t, r.on(t)) })
	r.CheckNothingLeft()
}

func TestCheckpointsWithoutCRIU(t *testing.T) {
	r := startRuntime(t, harness.Options{Env: []string{"PATH=" + pathWith(t, "")}})
	pod, sandbox, id := r.counter("none")
	archive := filepath.Join(t.TempDir(), "archive.tar")
	_, err := r.CheckpointContainer(r.ctx(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive})
	equal(t, "code", status.Code(err), codes.FailedPrecondition)
	if err == nil || !strings.Contains(err.Error(), "install the package criu") {
		t.Errorf("the checkpoint says: %v", err)
	}
	_, err = r.CheckpointContainer(r.ctx(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: "archive.tar"})
	equal(t, "code of a relative location", status.Code(err), codes.InvalidArgument)
	r.counts(id)
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// A criu that hangs is killed when the request's time is over.
func TestCheckpointsWithHungCRIU(t *testing.T) {
	r := startRuntime(t, harness.Options{Env: []string{"PATH=" + pathWith(t, "#!/bin/sh\nsleep 4244\n")}})
	pod, sandbox, id := r.counter("hung")
	dir := t.TempDir()
	_, err := r.CheckpointContainer(r.ctx(), &runtimeapi.CheckpointContainerRequest{
		ContainerId: id, Location: filepath.Join(dir, "archive.tar"), Timeout: 2,
	})
	equal(t, "code", status.Code(err), codes.DeadlineExceeded)
	if err == nil || !strings.Contains(err.Error(), "not within 2s") {
		t.Errorf("the checkpoint says: %v", err)
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	equal(t, "files of the archive", len(left), 0)
	r.counts(id)
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// pathWith is a PATH with all programs of this one but criu, for which there
// is a script if it is not empty.
func pathWith(t *testing.T, criu string) string {
	dir := t.TempDir()
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue // many have one that is not there
		}
		for _, e := range entries {
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrExist) {
				t.Fatal(err)
			}
		}
	}
	path := filepath.Join(dir, "criu")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if criu != "" {
		must(t, os.WriteFile(path, []byte(criu), 0o755))
	}
	return dir
}

// counter runs a container that counts in its memory, says so in /count, and
// has changed its root file system.
func (r *runtime) counter(name string) (pod *runtimeapi.PodSandboxConfig, sandbox, id string) {
	r.t.Helper()
	pod = r.podConfig(name)
	sandbox = r.runPod(pod)
	id = r.run(sandbox, pod, r.counterConfig())
	r.counts(id)
	return pod, sandbox, id
}

func (r *runtime) counterConfig() *runtimeapi.ContainerConfig {
	return r.containerConfig("counter", "sh", "-c",
		"mkdir /made; echo mine >/made/file; rm /bin/vi; i=0; while :; do i=$((i+1)); echo $i >/count.new; mv /count.new /count; echo at $i; sleep 0.05; done")
}

func (r *runtime) count(id string) int {
	r.t.Helper()
	n, err := strconv.Atoi(r.exec(id, "cat", "/count"))
	must(r.t, err)
	return n
}

// counts waits until a container has gone on counting.
func (r *runtime) counts(id string) {
	r.t.Helper()
	var from int
	harness.Eventually(r.t, callTimeout, "counting", func() string {
		resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", "/count"}, Timeout: 30})
		must(r.t, err)
		n, err := strconv.Atoi(strings.TrimSpace(string(resp.Stdout)))
		if err != nil {
			return err.Error()
		}
		if from == 0 {
			from = n
		}
		if n == from {
			return fmt.Sprint(n)
		}
		return ""
	})
}

// checkpoint makes an archive of a counter that has counted for a while.
func (r *runtime) checkpoint(id string) (archive string, at int) {
	r.t.Helper()
	harness.Eventually(r.t, callTimeout, "counting to 40", func() string {
		if n := r.count(id); n < 40 {
			return fmt.Sprint(n)
		}
		return ""
	})
	at = r.count(id)
	archive = filepath.Join(r.t.(*testing.T).TempDir(), "archive.tar")
	_, err := r.CheckpointContainer(r.ctx(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive, Timeout: 60})
	must(r.t, err)
	return archive, at
}

func (r *runtime) checkRestored(id string, at int) {
	r.t.Helper()
	if n := r.count(id); n < at || n > at+1000 {
		r.t.Errorf("it counts at %d, and was checkpointed at %d", n, at)
	}
	r.counts(id)
	equal(r.t, "file", r.exec(id, "cat", "/made/file"), "mine")
	equal(r.t, "removed file", r.exec(id, "sh", "-c", "ls /bin/vi 2>/dev/null || echo gone"), "gone")
}

func restoredArchive(t *testing.T, r *runtime) {
	pod, sandbox, id := r.counter("archive")
	archive, at := r.checkpoint(id)
	r.counts(id)
	equal(t, "state after the checkpoint", r.status(id).State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	names := members(t, archive)
	for _, want := range []string{"config.dump", "spec.dump", "status.dump", "status", "rootfs-diff.tar", "container.log", "dump.log", "checkpoint/inventory.img"} {
		if !slices.Contains(names, want) {
			t.Errorf("the archive has no %s: %v", want, names)
		}
	}
	second := r.podConfig("restored")
	secondSandbox := r.runPod(second)
	config := r.counterConfig()
	config.Image.Image = archive
	restored := r.create(secondSandbox, second, config)
	must(t, os.Remove(archive)) // it is not needed any more
	r.Kill()
	r.Start()
	r.start(restored)
	r.checkRestored(restored, at)
	equal(t, "image", r.status(restored).ImageRef, r.status(id).ImageRef)
	r.waitLog(second, config, "at "+fmt.Sprint(r.count(restored)))
	_, err := r.StopContainer(r.ctx(), &runtimeapi.StopContainerRequest{ContainerId: restored, Timeout: 1})
	must(t, err)
	equal(t, "exit code", r.waitExit(restored).ExitCode, 137)
	r.removePod(secondSandbox, second)
	r.removePod(sandbox, pod)
}

func restoredImage(t *testing.T, r *runtime) {
	pod, sandbox, id := r.counter("image")
	archive, at := r.checkpoint(id)
	r.removePod(sandbox, pod)
	layer, err := tarball.LayerFromFile(archive)
	must(t, err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	must(t, err)
	config, err := img.ConfigFile()
	must(t, err)
	config.Architecture, config.OS = "amd64", "linux"
	img, err = mutate.ConfigFile(img, config)
	must(t, err)
	must(t, r.Registry.Push("checkpoint:1", img))
	r.pull(harness.Registry + "/checkpoint:1")
	pod = r.podConfig("image-restored")
	sandbox = r.runPod(pod)
	request := r.counterConfig()
	request.Image.Image = harness.Registry + "/checkpoint:1"
	restored := r.run(sandbox, pod, request)
	r.checkRestored(restored, at)
	r.removePod(sandbox, pod)
	_, err = r.images.RemoveImage(r.ctx(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: harness.Registry + "/checkpoint:1"}})
	must(t, err)
}

func members(t *testing.T, archive string) []string {
	t.Helper()
	f, err := os.Open(archive)
	must(t, err)
	defer f.Close()
	var names []string
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		must(t, err)
		names = append(names, h.Name)
	}
}

func badCheckpoints(t *testing.T, r *runtime) {
	pod := r.podConfig("bad")
	sandbox := r.runPod(pod)
	dir := t.TempDir()
	var unknown bytes.Buffer
	w := tar.NewWriter(&unknown)
	body := []byte(`{"id":"x","name":"x","rootfsImageRef":"` + harness.Registry + `/nowhere@sha256:` + strings.Repeat("0", 64) + `"}`)
	must(t, w.WriteHeader(&tar.Header{Name: "config.dump", Mode: 0o600, Size: int64(len(body)), Typeflag: tar.TypeReg}))
	_, err := w.Write(body)
	must(t, err)
	must(t, w.Close())
	for name, c := range map[string]struct {
		content []byte
		code    codes.Code
		text    string
	}{
		"text.tar":    {[]byte("no tar at all, but long enough to look at it for a header of one"), codes.InvalidArgument, "text.tar"},
		"empty.tar":   {make([]byte, 1024), codes.InvalidArgument, "config.dump is missing"},
		"unknown.tar": {unknown.Bytes(), codes.NotFound, "nowhere@sha256"},
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), c.content, 0o600))
		config := r.counterConfig()
		config.Image.Image = filepath.Join(dir, name)
		_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
		if status.Code(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.removePod(sandbox, pod)
}
