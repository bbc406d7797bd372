package image

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
)

func TestPulledImageIsListedUnpackedAndThereAfterARestart(t *testing.T) {
	reg := newTestRegistry(t)
	ref := reg.push(t, "app/web:1", small(t, "web"))
	config := testConfig(t)
	s := open(t, config)
	img := mustPull(t, s, ref)

	if len(img.Layers) != 2 {
		t.Fatalf("layers: %v", img.Layers)
	}
	if b, err := os.ReadFile(filepath.Join(img.Layers[0], "bin/run")); err != nil || string(b) != "#!web" {
		t.Errorf("top layer: %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(img.Layers[1], "etc/what")); err != nil || string(b) != "web" {
		t.Errorf("bottom layer: %q, %v", b, err)
	}
	if img.User != "7:8" || img.Config.Cmd[0] != "/bin/run" || img.Size == 0 {
		t.Errorf("image: %+v", img)
	}
	if len(img.RepoTags) != 1 || img.RepoTags[0] != ref || len(img.RepoDigests) != 1 {
		t.Errorf("names: %v %v", img.RepoTags, img.RepoDigests)
	}
	for _, by := range []string{ref, img.ID, strings.TrimPrefix(img.ID, "sha256:"), img.ID[7:19], img.RepoDigests[0], ref + "@" + strings.SplitN(img.RepoDigests[0], "@", 2)[1]} {
		if got, ok := s.Get(by); !ok || got.ID != img.ID {
			t.Errorf("Get(%q): %v %v", by, got.ID, ok)
		}
	}
	before, used := holdings(t, s), mustUsage(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, config)
	again, ok := s.Get(ref)
	if !ok || again.ID != img.ID || again.Size != img.Size || strings.Join(again.Layers, ":") != strings.Join(img.Layers, ":") {
		t.Errorf("after the restart: %+v\nbefore: %+v", again, img)
	}
	if after := holdings(t, s); after != before {
		t.Errorf("holdings before:\n%safter:\n%s", before, after)
	}
	if u := mustUsage(t, s); u.Bytes != used.Bytes || u.Inodes != used.Inodes || u.Bytes == 0 {
		t.Errorf("usage before %+v, after %+v", used, u)
	}
}

func TestASnapshotWhoseRecordAKillPreventedIsNotInTheWay(t *testing.T) {
	config := testConfig(t)
	for range 2 { // a store that never had a snapshot, then one that had
		for i := range 20 { // whatever number comes next
			if err := os.MkdirAll(filepath.Join(config.Root, "snapshots", strconv.Itoa(i), "fs", "x"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		s := open(t, config)
		if left := holdings(t, s); left != "" {
			t.Errorf("holdings:\n%s", left)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASweepThatWasKilledDoesNotKeepTheNextFromOpening(t *testing.T) {
	config := testConfig(t)
	s := open(t, config)
	w, err := s.content.Writer(s.context(t.Context()), content.WithRef(sweepRef))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half a sweep")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	open(t, config)
}

func mustUsage(t *testing.T, s *Store) Usage {
	t.Helper()
	u, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u
}
