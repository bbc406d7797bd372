package cri

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images"
	"github.com/berth-io/berth/tests/registry"
)

// onDisk puts a node's state on a file system of its own.
func onDisk(size string, more func(*harness.Node) error) func(*harness.Node) error {
	return func(n *harness.Node) error {
		if err := os.MkdirAll(n.Config.RootDir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("disk", n.Config.RootDir, "tmpfs", 0, "size="+size); err != nil {
			return err
		}
		return more(n)
	}
}

func (r *runtime) remount(flags uintptr, options string) {
	r.t.Helper()
	must(r.t, unix.Mount("disk", r.Config.RootDir, "tmpfs", unix.MS_REMOUNT|flags, options))
}

// used is how much of the node's disk is taken: bytes, in whole MiB.
func (r *runtime) used() uint64 {
	r.t.Helper()
	var st unix.Statfs_t
	must(r.t, unix.Statfs(r.Config.RootDir, &st))
	return (st.Blocks - st.Bfree) * uint64(st.Bsize) >> 20
}

// noise is what no compression makes smaller.
func noise(size int) string {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // never fails
	return string(b)
}

func (r *runtime) tryPull(ref string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	_, err := r.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

func (r *runtime) removeImage(ref string) {
	r.t.Helper()
	_, err := r.images.RemoveImage(r.ctx(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	must(r.t, err)
}

func TestAFullDiskFailsThePullAndNothingElse(t *testing.T) {
	r := startRuntime(t, harness.Options{MoreImages: onDisk("64m", func(n *harness.Node) error {
		for name, file := range map[string]string{
			"download:1": noise(80 << 20),              // does not even arrive
			"unpack:1":   noise(35 << 20),              // arrives, and there is no room for its files
			"zeros:1":    strings.Repeat("0", 100<<20), // arrives as next to nothing
		} {
			img, err := images.Data(map[string]string{"file": file}, nil)
			if err != nil {
				return err
			}
			if err := n.Registry.Push(name, img); err != nil {
				return err
			}
		}
		return nil
	})})
	pod := r.podConfig("neighbour")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	before := r.used()
	for _, name := range []string{"download", "unpack", "zeros"} {
		ref := harness.Registry + "/" + name + ":1"
		err := r.tryPull(ref)
		if err == nil || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "pull "+ref+": ") {
			t.Errorf("%s: %v, want it to say that there is no space left", name, err)
		}
		harness.Eventually(t, callTimeout, "the space of "+name, func() string {
			if now := r.used(); now > before+1 {
				return "more is in use than before"
			}
			return ""
		})
		equal(t, "the neighbour", r.exec(id, "echo", "well"), "well")
	}
	// Even a daemon that starts on a full disk gets by.
	filler := r.Config.RootDir + "/filler"
	if err := os.WriteFile(filler, []byte(noise(64<<20)), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	r.Kill()
	r.Start()
	equal(t, "the neighbour", r.exec(id, "echo", "well"), "well")
	if err := r.tryPull(harness.Busybox); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("a pull on a full disk: %v", err)
	}
	must(t, os.Remove(filler))
	r.remount(0, "size=400m")
	for _, name := range []string{"download", "unpack", "zeros"} {
		r.pull(harness.Registry + "/" + name + ":1")
		r.removeImage(harness.Registry + "/" + name + ":1")
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

func TestAReadOnlyStateDirectoryIsToldAndLeavesPodsAlone(t *testing.T) {
	r := startRuntime(t, harness.Options{MoreImages: onDisk("200m", func(*harness.Node) error { return nil })})
	pod := r.podConfig("neighbour")
	sandbox := r.runPod(pod)
	main := r.containerConfig("main", "testbox", "pause")
	id := r.run(sandbox, pod, main)
	pid := r.pid(id)
	r.Kill()
	r.remount(unix.MS_RDONLY, "")
	r.Launch()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := r.WaitExit(ctx); err != nil {
		t.Fatal(err)
	}
	if log := r.LogTail(5); !strings.Contains(log, "read-only file system") || !strings.Contains(log, r.Config.RootDir) {
		t.Errorf("the daemon's last words:\n%s", log)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the container's process: %v", err)
	}
	r.remount(0, "")
	r.Start()
	equal(t, "the container after it", r.exec(id, "echo", "well"), "well")
	r.pull(harness.Busybox)
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// noted remembers from where each blob is asked for.
type noted struct {
	http.Handler

	mu     sync.Mutex
	ranges []string
}

func (w *noted) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	if strings.Contains(req.URL.Path, "/blobs/") && req.Method == http.MethodGet {
		w.ranges = append(w.ranges, req.Header.Get("Range"))
	}
	w.mu.Unlock()
	w.Handler.ServeHTTP(rw, req)
}

func (w *noted) asked() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.ranges)
}

func TestAPullThatWasCutOffGoesOnWhereItWas(t *testing.T) {
	r := startRuntime(t, harness.Options{Amend: func(c *harness.Config) { c.Images.PullProgressTimeout = "5s" }})
	pod := r.podConfig("neighbour")
	sandbox := r.runPod(pod)
	id := r.run(sandbox, pod, r.containerConfig("main", "testbox", "pause"))
	for name, cut := range map[string]func(ref string){
		"by a registry that falls silent": func(ref string) {
			err := r.tryPull(ref)
			if err == nil || !strings.Contains(err.Error(), "127.0.0.1:5000 sent nothing for 5s, giving up") {
				t.Errorf("error %v", err)
			}
		},
		"by the daemon's death": func(ref string) {
			done := make(chan error, 1)
			go func() { done <- r.tryPull(ref) }()
			harness.Eventually(t, callTimeout, "the pull", func() string {
				for _, req := range r.Registry.Requests() {
					if strings.Contains(req, "/blobs/") && strings.Contains(req, "/killed/") {
						return ""
					}
				}
				return "no blob was asked for"
			})
			harness.Eventually(t, callTimeout, "the half that is sent", func() string {
				files, err := filepath.Glob(filepath.Join(r.Config.RootDir, "images/content/ingest/*/data"))
				if err != nil || len(files) != 1 {
					return fmt.Sprintf("%v, %v", files, err)
				}
				if st, err := os.Stat(files[0]); err != nil || st.Size() == 0 {
					return fmt.Sprint("nothing of it is on the disk yet: ", err)
				}
				return ""
			})
			r.Kill()
			if err := <-done; err == nil {
				t.Error("the pull went well")
			}
			r.Start()
		},
	} {
		t.Run(name, func(t *testing.T) {
			repo, bad := "silent", registry.BadImages()["layer-stalls"]
			if strings.Contains(name, "death") {
				// Of other content, or the node would have its layer.
				repo, bad = "killed", registry.BadImages()["layer-truncated"]
				bad.Stall, bad.Truncate = bad.Truncate, ""
			}
			w := &noted{Handler: bad}
			r.Registry.Replace(repo, w)
			ref := harness.Registry + "/" + repo + ":1"
			cut(ref)
			equal(t, "the neighbour", r.exec(id, "echo", "well"), "well")
			mended := &noted{Handler: bad.Mended()}
			r.Registry.Replace(repo, mended)
			r.pull(ref)
			if asked := mended.asked(); len(asked) != 1 || !strings.HasPrefix(asked[0], "bytes=") || asked[0] == "bytes=0-" {
				t.Errorf("asked for %q, want the rest of the layer and nothing else", asked)
			}
			r.removeImage(ref)
		})
	}
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}
