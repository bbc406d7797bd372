// Package pods has a node run pods from its manifest directory and asks from
// inside their containers whether they got what the manifests say.
package pods

import (
	"os"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/harness"
)

// scenario is one manifest and what must come of it.
type scenario struct {
	name string // a sentence
	pod  string // name of the pod, unique on the node
	// yaml is the manifest after metadata.name, so that it can go on with
	// labels, and more documents. $BOX and the other names of expand are
	// replaced.
	yaml  string
	check func(t *testing.T, p *harness.Pod)
}

// run plays scenarios in parallel on one node and looks for leaks after the
// last of their pods is gone.
func run(t *testing.T, scenarios []scenario) {
	t.Helper()
	n := startNode(t, harness.Options{})
	t.Run("on one node", func(t *testing.T) {
		for _, sc := range scenarios {
			t.Run(sc.name, func(t *testing.T) {
				t.Parallel()
				p := n.Apply(t, sc.pod, manifest(n, sc.pod, sc.yaml))
				sc.check(t, p)
				if _, there, err := p.Get(); there || err != nil {
					p.Delete()
				}
			})
		}
	})
	n.RemoveAll()
	n.CheckNothingLeft()
}

// startNode skips without root, so that `go test ./...` works for everyone;
// make test refuses to run without.
func startNode(t *testing.T, o harness.Options) *harness.Node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	if o.CgroupDriver == "" {
		o.CgroupDriver = os.Getenv("BERTH_TEST_CGROUP_DRIVER")
	}
	return harness.StartNode(t, o)
}

func manifest(n *harness.Node, pod, yaml string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: " + pod + expand(n, yaml)
}

// expand replaces what a manifest cannot know.
func expand(n *harness.Node, yaml string) string {
	return strings.NewReplacer(
		"$BOX", harness.Box,
		"$CONFIGURED", harness.Configured,
		"$BUSYBOX", harness.Busybox,
		"$NODE", n.Name,
		"$DIR", n.Dir,
	).Replace(yaml)
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func contains(t *testing.T, what, text, part string) {
	t.Helper()
	if !strings.Contains(text, part) {
		t.Errorf("%s: got %q, want it to contain %q", what, text, part)
	}
}

// fields compares text up to white space at the ends.
func trimmed(t *testing.T, what, got, want string) {
	t.Helper()
	equal(t, what, strings.TrimSpace(got), strings.TrimSpace(want))
}
