package pods

import (
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/berth-io/berth/tests/harness"
)

// saveBusybox writes what docker save would, for image load.
func saveBusybox(t *testing.T, n *harness.Node, path string) {
	t.Helper()
	img, err := n.Builder().Busybox()
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag("registry.test/loaded:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, ref, img); err != nil {
		t.Fatal(err)
	}
}
