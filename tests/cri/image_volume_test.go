package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images"
)

const (
	dataImage  = harness.Registry + "/data:1"
	modelImage = harness.Registry + "/model:1"
)

func TestImageVolumes(t *testing.T) {
	r := startRuntime(t, harness.Options{MoreImages: func(n *harness.Node) error {
		data, err := images.Data(
			map[string]string{"etc/conf.d/a": "alpha", "etc/conf.d/b": "beta", "top": "level"},
			map[string]string{"inside": "etc/conf.d", "outside": "/etc", "above": "../../../etc"},
		)
		if err != nil {
			return err
		}
		if err := n.Registry.Push("data:1", data); err != nil {
			return err
		}
		model, err := images.Artifact(map[string]string{"weights/model.bin": "numbers", "readme.txt": "read me"})
		if err != nil {
			return err
		}
		return n.Registry.Push("model:1", model)
	}})
	r.pull(dataImage)
	r.pull(modelImage)
	t.Run("show an image's files read-only", func(t *testing.T) { imageVolumeIsReadOnly(t, r.on(t)) })
	t.Run("can be part of an image", func(t *testing.T) { imageVolumeSubPath(t, r.on(t)) })
	t.Run("that cannot be mounted are named", func(t *testing.T) { imageVolumeRefusals(t, r.on(t)) })
	t.Run("can be artifacts, which cannot be run", func(t *testing.T) { artifactVolume(t, r.on(t)) })
	t.Run("have their owners in a user namespace", func(t *testing.T) { imageVolumeMapped(t, r.on(t)) })
	t.Run("outlive their image and a killed daemon", func(t *testing.T) { imageVolumeOutlives(t, r.on(t)) })
	r.CheckNothingLeft()
}

// mountingImage is a request for a container with images mounted into it.
func (r *runtime) mountingImage(mounts ...*runtimeapi.Mount) *runtimeapi.ContainerConfig {
	config := r.containerConfig("main", "testbox", "pause")
	config.Mounts = mounts
	return config
}

func imageMount(path, ref, sub string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: path, Image: &runtimeapi.ImageSpec{Image: ref}, ImageSubPath: sub, Readonly: true}
}

func imageVolumeIsReadOnly(t *testing.T, r *runtime) {
	pod := r.podConfig("volume")
	sandbox := r.runPod(pod)
	// One image of a single layer, one of two, and one of them twice.
	id := r.run(sandbox, pod, r.mountingImage(imageMount("/data", dataImage, ""), imageMount("/box", harness.Box, ""), imageMount("/again", dataImage, "")))
	equal(t, "file", r.exec(id, "cat", "/data/top", "/again/etc/conf.d/a"), "levelalpha")
	equal(t, "program from the volume", r.exec(id, "/box/bin/busybox", "echo", "runs"), "runs")
	for _, dir := range []string{"/data", "/box", "/again"} {
		resp, err := r.ExecSync(r.ctx(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"touch", dir + "/new"}, Timeout: 30})
		must(t, err)
		if resp.ExitCode == 0 || !strings.Contains(string(resp.Stderr), "Read-only file system") {
			t.Errorf("write to %s: exit %d, %s", dir, resp.ExitCode, resp.Stderr)
		}
	}
	mounts := r.status(id).GetMounts()
	if len(mounts) != 3 || mounts[0].GetImage().GetImage() != dataImage {
		t.Errorf("mounts in the status: %v", mounts)
	}
	r.removePod(sandbox, pod)
}

func imageVolumeSubPath(t *testing.T, r *runtime) {
	pod := r.podConfig("part")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.mountingImage(imageMount("/a", dataImage, "etc/conf.d"), imageMount("/b", dataImage, "inside")))
	equal(t, "directory", r.exec(id, "ls", "/a"), "a\nb")
	equal(t, "directory behind a link", r.exec(id, "cat", "/b/b"), "beta")
	r.removePod(sandbox, pod)
}

func imageVolumeRefusals(t *testing.T, r *runtime) {
	pod := r.podConfig("refused")
	sandbox := r.runPod(pod)
	for name, c := range map[string]struct {
		mount *runtimeapi.Mount
		code  codes.Code
		want  string
	}{
		"missing image":    {imageMount("/v", "registry.test/none:1", ""), codes.NotFound, `ImageVolumeMountFailed: image "registry.test/none:1" for /v is not on this node: pull it first`},
		"missing sub path": {imageMount("/v", dataImage, "no/such"), codes.InvalidArgument, `ImageVolumeMountFailed: image_sub_path "no/such" of image "registry.test/data:1": the image has no such directory`},
		"a file":           {imageMount("/v", dataImage, "top"), codes.InvalidArgument, `ImageVolumeMountFailed: image_sub_path "top" of image "registry.test/data:1": it is not a directory`},
		"out by a link":    {imageMount("/v", dataImage, "outside"), codes.InvalidArgument, `ImageVolumeMountFailed: image_sub_path "outside" of image "registry.test/data:1": path escapes from parent`},
		"out by a climb":   {imageMount("/v", dataImage, "above"), codes.InvalidArgument, `ImageVolumeMountFailed: image_sub_path "above" of image "registry.test/data:1": path escapes from parent`},
		"out by dots":      {imageMount("/v", dataImage, "../x"), codes.InvalidArgument, `ImageVolumeMountFailed: image_sub_path "../x" of image "registry.test/data:1": path escapes from parent`},
		"writable":         {&runtimeapi.Mount{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: dataImage}}, codes.InvalidArgument, `config.mounts[/v].readonly: an image can be mounted read-only only`},
	} {
		_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: r.mountingImage(c.mount), SandboxConfig: pod})
		if got := status.Convert(err); got.Code() != c.code || got.Message() != c.want {
			t.Errorf("%s:\n got %v: %s\nwant %v: %s", name, got.Code(), got.Message(), c.code, c.want)
		}
	}
	// Nothing of those is in the way of a good one.
	r.run(sandbox, pod, r.mountingImage(imageMount("/v", dataImage, "")))
	r.removePod(sandbox, pod)
}

func artifactVolume(t *testing.T, r *runtime) {
	pod := r.podConfig("artifact")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.mountingImage(imageMount("/m", modelImage, ""), imageMount("/w", modelImage, "weights")))
	equal(t, "files", r.exec(id, "cat", "/m/readme.txt", "/m/weights/model.bin", "/w/model.bin"), "read menumbersnumbers")
	config := r.containerConfig("never", "x")
	config.Image.Image = modelImage
	_, err := r.CreateContainer(r.ctx(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: config, SandboxConfig: pod})
	equal(t, "an artifact as a container", status.Convert(err).Message(), `image "registry.test/model:1" is an artifact: it can be mounted as an image volume, not run`)
	r.removePod(sandbox, pod)
}

func imageVolumeMapped(t *testing.T, r *runtime) {
	pod, config := usernsPod(r, "mapped", "testbox", "pause")
	for _, m := range []*runtimeapi.Mount{imageMount("/data", dataImage, ""), imageMount("/box", harness.Box, "bin")} {
		m.UidMappings, m.GidMappings = mapping(), mapping()
		config.Mounts = append(config.Mounts, m)
	}
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, config)
	equal(t, "owner of one layer's file", r.exec(id, "stat", "-c", "%u:%g", "/data/top"), "0:0")
	equal(t, "owner of a file of several layers", r.exec(id, "stat", "-c", "%u:%g", "/box/testbox"), "0:0")
	r.removePod(sandbox, pod)
}

func imageVolumeOutlives(t *testing.T, r *runtime) {
	pod := r.podConfig("outlives")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.mountingImage(imageMount("/data", dataImage, ""), imageMount("/m", modelImage, "")))
	remove := func(ref string) {
		_, err := r.images.RemoveImage(r.ctx(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		must(t, err)
	}
	remove(dataImage)
	remove(modelImage)
	for range 2 {
		r.Kill()
		r.Start()
		equal(t, "files", r.exec(id, "cat", "/data/top", "/m/readme.txt"), "levelread me")
	}
	if left := imageMountsOf(t, r); left != 2 {
		t.Errorf("%d image mounts, want 2", left)
	}
	r.removePod(sandbox, pod)
	if left := imageMountsOf(t, r); left != 0 {
		t.Errorf("%d image mounts are left", left)
	}
	r.pull(dataImage)
	r.pull(modelImage)
}

// imageMountsOf counts the mounts of images below the runtime's directory.
func imageMountsOf(t *testing.T, r *runtime) int {
	t.Helper()
	b, err := os.ReadFile("/proc/mounts")
	must(t, err)
	n := 0
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[1], r.Config.RunDir+"/containers/") && filepath.Base(filepath.Dir(f[1])) == "images" {
			n++
		}
	}
	return n
}

func TestAnImageOfManyLayersRuns(t *testing.T) {
	const layers = 120
	ref := harness.Registry + "/layered:1"
	r := startRuntime(t, harness.Options{MoreImages: func(n *harness.Node) error {
		box, err := n.Builder().Box()
		if err != nil {
			return err
		}
		img, err := images.Layered(box, layers)
		if err != nil {
			return err
		}
		return n.Registry.Push("layered:1", img)
	}})
	r.pull(ref)
	pod := r.podConfig("layered")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "pause")
	config.Image.Image = ref
	config.Mounts = []*runtimeapi.Mount{imageMount("/volume", ref, "layers")}
	id := r.run(sandbox, pod, config)
	for _, dir := range []string{"/layers", "/volume"} {
		equal(t, "files in "+dir, r.exec(id, "sh", "-c", fmt.Sprintf("cat %s/* | wc -c; ls %s | wc -l", dir, dir)), "250\n120")
	}
	r.exec(id, "sh", "-c", "echo new > /layers/0 && rm /layers/1 && touch /layers/more")
	r.Kill()
	r.Start()
	equal(t, "files after writing", r.exec(id, "sh", "-c", "ls /layers | wc -l; cat /layers/0"), fmt.Sprintf("%d\nnew", layers))
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}
