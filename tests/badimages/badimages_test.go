// Package badimages has a node pull images that no honest registry serves, and
// asserts the words it refuses them with and that nothing of them stays.
package badimages

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/registry"
)

func TestBadImagesAreRefusedAndNothingStays(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.StartNode(t, harness.Options{Amend: func(c *harness.Config) {
		c.Images.PullProgressTimeout = "6s"
	}})
	images := registry.BadImages()
	for name, img := range images {
		n.Registry.Replace("bad/"+name, img)
	}
	// What a good image leaves behind is what may be there: databases, empty
	// directories. Its data goes with it.
	n.MustCLI("image", "pull", harness.Busybox)
	n.MustCLI("image", "rm", harness.Busybox)
	before := n.ImageFiles()

	t.Run("pull", func(t *testing.T) {
		for name := range images {
			if _, ok := want[name]; !ok {
				t.Errorf("no words are expected for %s", name)
			}
		}
		for name, message := range want {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				ref := harness.Registry + "/bad/" + name + ":1"
				r := n.For(t).CLI("image", "pull", ref)
				if r.Code == 0 {
					t.Fatalf("it was pulled:\n%s", r.Stdout)
				}
				got := plain(strings.TrimSpace(r.Stderr))
				if got != message {
					t.Errorf("got:\n  %s\nwant:\n  %s", got, message)
				}
			})
		}
	})
	if list := n.MustCLI("image", "ls"); strings.Contains(list, "bad/") {
		t.Errorf("listed:\n%s", list)
	}
	// What came of a layer before the registry fell silent waits for the next
	// pull, which goes on from there.
	n.Registry.Replace("bad/layer-stalls", images["layer-stalls"].Mended())
	n.MustCLI("image", "pull", harness.Registry+"/bad/layer-stalls:1")
	n.MustCLI("image", "rm", harness.Registry+"/bad/layer-stalls:1")
	for _, path := range []string{"/tmp/berth-escaped", n.Dir + "/berth-escaped"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was written from a layer", path)
			os.Remove(path)
		}
	}
	harness.Eventually(t, harness.PodTimeout, "nothing stays", func() string {
		var left []string
		for path := range n.ImageFiles() {
			if !before[path] {
				left = append(left, path)
			}
		}
		return strings.Join(left, "\n")
	})
	n.CheckNothingLeft()
}

var (
	digest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)
	sizes  = regexp.MustCompile(`\d+ of its \d+ bytes`)
)

// plain takes out what depends on how gzip packs.
func plain(message string) string {
	return sizes.ReplaceAllString(digest.ReplaceAllString(message, "DIGEST"), "N of its N bytes")
}
