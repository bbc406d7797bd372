package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

const (
	largeTag    = "bulk:1"
	largeLayers = 8
)

// largeImage is what pulls are measured with.
type largeImage struct {
	packed, unpacked float64 // MiB
}

// pushImages adds to the node's registry what it does not have anyway.
func pushImages(n *harness.Node, mib int) (largeImage, error) {
	pause, err := n.Builder().Pause()
	if err != nil {
		return largeImage{}, err
	}
	if err := n.Registry.Push("pause:1", pause); err != nil {
		return largeImage{}, err
	}
	l := largeImage{unpacked: float64(mib)}
	if mib < largeLayers {
		return l, fmt.Errorf("-size: at least %d", largeLayers)
	}
	img, err := n.Builder().Bulk(largeLayers, mib/largeLayers, 1)
	if err != nil {
		return l, err
	}
	layers, err := img.Layers()
	if err != nil {
		return l, err
	}
	for _, layer := range layers {
		size, err := layer.Size()
		if err != nil {
			return l, err
		}
		l.packed += float64(size) / (1 << 20)
	}
	return l, n.Registry.Push(largeTag, img)
}

// measurePulls pulls and unpacks the large image in turns.
func measurePulls(t harness.TB, n *harness.Node, sides [2]*side, large largeImage, count int) {
	if count == 0 {
		return
	}
	var took, durable [2]measure.Series
	for i := range count {
		for k := range sides {
			turn := (i + k) % 2
			pulled, synced := measurePull(t, n, sides[turn])
			took[turn].Add(pulled)
			durable[turn].Add(synced)
		}
	}
	fmt.Printf("%-36s %8s   %10s\n", fmt.Sprintf("pull of %d layers, %.0f MiB, %.0f unpacked", largeLayers, large.packed, large.unpacked), "Berth", "containerd")
	for _, row := range []struct {
		name string
		took [2]measure.Series
		goal float64
	}{{"seconds, p50", took, 1}, {"seconds until it is on the disk", durable, 0}} {
		ours, theirs := row.took[0].Percentile(50), row.took[1].Percentile(50)
		fmt.Printf("%-36s %8.1f   %10.1f   %s\n", row.name, ours/1000, theirs/1000, ratio(ours/theirs, row.goal))
	}
	rate := func(i int) float64 { return large.unpacked / took[i].Percentile(50) * 1000 }
	fmt.Printf("%-36s %8.0f   %10.0f\n", "MiB unpacked a second", rate(0), rate(1))
}

// measurePull returns the milliseconds of one pull, and those until everything
// that it wrote has reached the disk: Berth waits for that before it answers,
// containerd does not. What was written before is on the disk when it begins.
func measurePull(t harness.TB, n *harness.Node, s *side) (pulled, durable float64) {
	t.Helper()
	const image = harness.Registry + "/" + largeTag
	unix.Sync()
	fetched := blobsFetched(n)
	start := time.Now()
	s.pull(t, image)
	pulled = measure.Milliseconds(time.Since(start))
	unix.Sync()
	durable = measure.Milliseconds(time.Since(start))
	if got := blobsFetched(n) - fetched; got < largeLayers {
		t.Fatalf("%s: the pull fetched %d blobs, want %d layers and more: something of the image was there before", s.name, got, largeLayers)
	}
	s.remove(t, image)
	return pulled, durable
}

func blobsFetched(n *harness.Node) int {
	count := 0
	for _, r := range n.Registry.Requests() {
		if strings.HasPrefix(r, "GET /v2/bulk/blobs/") {
			count++
		}
	}
	return count
}

// remove removes an image, with everything that only it needs.
func (s *side) remove(t harness.TB, image string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	if _, err := s.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Fatalf("%s: remove %s: %v", s.name, image, err)
	}
}
