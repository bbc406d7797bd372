// Command benchcri measures a CRI runtime as the kubelet uses it: Berth's and
// containerd's, in turns, on the same machine in the same run, with the same
// requests. Absolute figures differ from machine to machine and from hour to
// hour; the ratio is what counts.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
	"github.com/berth-io/berth/tests/stock"
)

// callTimeout bounds each request; the kubelet waits two minutes.
const callTimeout = 2 * time.Minute

// pauseImage is what containerd keeps each pod's namespaces with.
const pauseImage = harness.Registry + "/pause:1"

func main() {
	var (
		cycles  = flag.Int("cycles", 30, "pods that live from RunPodSandbox to RemovePodSandbox, on each side")
		density = flag.Int("density", 20, "pods that memory is measured with, on each side")
		pulls   = flag.Int("pulls", 3, "pulls of the large image, on each side")
		size    = flag.Int("size", 256, "MiB of the large image's files")
		seccomp = flag.Bool("seccomp", true, "with the seccomp profile RuntimeDefault")
	)
	flag.Parse()
	os.Exit(harness.Main("bench-cri", func(t harness.TB) {
		var large largeImage
		n := harness.StartNode(t, harness.Options{
			Amend: func(c *harness.Config) { c.Roles, c.LogLevel = []string{"cri", "network"}, "info" },
			MoreImages: func(n *harness.Node) (err error) {
				large, err = pushImages(n, *size)
				return err
			},
		})
		sides := startSides(t, n, *seccomp)
		fmt.Printf("machine: %s\n", measure.Machine())
		fmt.Printf("Berth %s, %s\n\n", sides[0].version(t), sides[1].version(t))
		maker := bare.NewMaker(t, bare.HostOf(n))
		maker.Seccomp = *seccomp
		lat := measureLatency(t, sides, maker, *cycles)
		maker.Close(t)
		lat.print()
		measureMemory(t, n, sides, *density)
		measurePulls(t, n, sides, large, *pulls)
		n.Stop()
	}))
}

// side is one of the runtimes.
type side struct {
	harness.CRI
	name    string
	node    *harness.Node
	seccomp bool
	daemon  int             // pid
	perPod  map[string]bool // programs that there is one of for each pod
	made    int             // pods so far
}

// startSides returns Berth's and containerd's, with the image of the pods.
func startSides(t harness.TB, n *harness.Node, seccomp bool) [2]*side {
	t.Helper()
	c := stock.StartContainerd(t, n, filepath.Join(n.Bin, "peers"), pauseImage)
	sides := [2]*side{
		{name: "berth", node: n, seccomp: seccomp, daemon: n.Pid(), CRI: harness.DialCRI(t, n.Config.CRISocket),
			perPod: map[string]bool{"berth-shim": true}},
		{name: "containerd", node: n, seccomp: seccomp, daemon: c.Pid(), CRI: harness.DialCRI(t, c.Socket),
			perPod: map[string]bool{"containerd-shim-runc-v2": true, "pause": true}},
	}
	for _, s := range sides {
		s.pull(t, harness.Busybox)
	}
	return sides
}

func (s *side) version(t harness.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	v, err := s.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		t.Fatalf("version of %s: %v", s.name, err)
	}
	return v.RuntimeName + " " + v.RuntimeVersion
}

func (s *side) pull(t harness.TB, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := s.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Fatalf("%s: pull %s: %v", s.name, image, err)
	}
}
