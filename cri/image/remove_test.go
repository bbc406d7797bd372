package image

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// collectNow does what Run does when something was removed.
func collectNow(t *testing.T, s *Store) {
	t.Helper()
	select {
	case <-s.collect:
	default:
		t.Fatal("nothing asked for a collection")
	}
	if err := s.garbageCollect(s.context(context.Background())); err != nil {
		t.Fatal(err)
	}
}

func mustRemove(t *testing.T, s *Store, ref string) {
	t.Helper()
	if err := s.Remove(context.Background(), ref); err != nil {
		t.Fatal(err)
	}
}

func TestRemovingByAnyNameRemovesAllAndFreesEverything(t *testing.T) {
	for _, by := range []string{"tag", "digest", "ID"} {
		t.Run(by, func(t *testing.T) {
			reg := newTestRegistry(t)
			s := open(t, testConfig(t))
			img := small(t, "app")
			one := reg.push(t, "app:1", img)
			mustPull(t, s, one)
			pulled := mustPull(t, s, reg.push(t, "other/app:2", img))
			if len(pulled.RepoTags) != 2 || len(pulled.RepoDigests) != 2 {
				t.Fatalf("names: %v %v", pulled.RepoTags, pulled.RepoDigests)
			}
			mustRemove(t, s, map[string]string{"tag": one, "digest": pulled.RepoDigests[1], "ID": pulled.ID}[by])
			if len(s.List()) != 0 {
				t.Errorf("images: %v", s.List())
			}
			collectNow(t, s)
			if left := holdings(t, s); left != "" {
				t.Errorf("holdings:\n%s", left)
			}
			if u := mustUsage(t, s); u.Bytes != 0 || u.Inodes != 0 {
				t.Errorf("usage: %+v", u)
			}
			mustRemove(t, s, one) // again
		})
	}
}

func TestRunCollectsWhatWasRemoved(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	img := mustPull(t, s, reg.push(t, "app:1", small(t, "app")))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	mustRemove(t, s, img.ID)
	for {
		if _, err := os.Stat(img.Layers[0]); os.IsNotExist(err) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestLayersInUseStayUntilReleaseAlsoOverARestart(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	s := open(t, config)
	img := mustPull(t, s, reg.push(t, "app:1", small(t, "app")))
	for _, container := range []string{"one", "two"} {
		if err := s.Retain(img.ChainID, container); err != nil {
			t.Fatal(err)
		}
	}
	mustRemove(t, s, img.ID)
	collectNow(t, s)
	there := func() bool {
		_, err := os.Stat(filepath.Join(img.Layers[0], "bin/run"))
		return err == nil
	}
	if !there() {
		t.Fatal("the layers of a running container are gone")
	}
	if strings.Contains(holdings(t, s), "blob") {
		t.Errorf("the packed layers are still there:\n%s", holdings(t, s))
	}
	if err := s.Release(context.Background(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, config)
	if !there() {
		t.Fatal("a restart took the layers of a running container")
	}
	if err := s.Retain(img.ChainID, "two"); err != nil {
		t.Fatalf("retain after the restart: %v", err)
	}
	if err := s.releaseUnused(s.context(context.Background())); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(context.Background(), "two"); err != nil {
		t.Fatal(err)
	}
	collectNow(t, s)
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
	if err := s.Retain(img.ChainID, "late"); !errdefs.IsNotFound(err) {
		t.Errorf("retain of a chain that is gone: %v", err)
	}
}

func TestAChainNobodyRetainsAfterARestartIsLetGo(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	s := open(t, config)
	img := mustPull(t, s, reg.push(t, "app:1", small(t, "app")))
	if err := s.Retain(img.ChainID, "c"); err != nil {
		t.Fatal(err)
	}
	mustRemove(t, s, img.ID)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, config)
	if err := s.releaseUnused(s.context(context.Background())); err != nil {
		t.Fatal(err)
	}
	collectNow(t, s)
	if left := holdings(t, s); left != "" {
		t.Errorf("holdings:\n%s", left)
	}
}

func TestAnImagePulledAgainWhileItsLayersAreInUseKeepsThem(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	ref := reg.push(t, "app:1", small(t, "app"))
	img := mustPull(t, s, ref)
	if err := s.Retain(img.ChainID, "c"); err != nil {
		t.Fatal(err)
	}
	mustRemove(t, s, ref)
	collectNow(t, s)
	if again := mustPull(t, s, ref); again.Layers[0] != img.Layers[0] {
		t.Errorf("unpacked again: %v, then %v", img.Layers, again.Layers)
	}
	if err := s.Release(context.Background(), "c"); err != nil {
		t.Fatal(err)
	}
	collectNow(t, s)
	if _, err := os.Stat(img.Layers[0]); err != nil {
		t.Error(err)
	}
	if strings.Contains(holdings(t, s), "lease") {
		t.Errorf("holdings:\n%s", holdings(t, s))
	}
}

func TestATagThatMovesLeavesTheOldImageByItsDigest(t *testing.T) {
	reg := newTestRegistry(t)
	s := open(t, testConfig(t))
	old := mustPull(t, s, reg.push(t, "app:1", small(t, "old")))
	now := mustPull(t, s, reg.push(t, "app:1", small(t, "new")))
	if old.ID == now.ID {
		t.Fatal("the tag did not move")
	}
	if got, ok := s.Get(old.ID); !ok || len(got.RepoTags) != 0 || len(got.RepoDigests) != 1 {
		t.Errorf("old image: %v %v %v", ok, got.RepoTags, got.RepoDigests)
	}
}

func TestPinnedImagesAreMarked(t *testing.T) {
	reg := newTestRegistry(t)
	config := testConfig(t)
	ref := reg.push(t, "app:1", small(t, "app"))
	config.PinnedImages = []string{ref}
	s := open(t, config)
	if img := mustPull(t, s, ref); !img.Pinned {
		t.Error("not pinned")
	}
	if img := mustPull(t, s, reg.push(t, "other:1", small(t, "other"))); img.Pinned {
		t.Error("another image is pinned")
	}
}

func TestADamagedImageIsDroppedAtOpenAndCanBePulledAgain(t *testing.T) {
	for _, what := range []string{"content/blobs/*/*", "snapshots/*"} {
		t.Run(what, func(t *testing.T) {
			reg := newTestRegistry(t)
			config := testConfig(t)
			s := open(t, config)
			ref := reg.push(t, "app:1", small(t, "app"))
			mustPull(t, s, ref)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			names, err := filepath.Glob(filepath.Join(config.Root, what))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if err := os.RemoveAll(name); err != nil {
					t.Fatal(err)
				}
			}
			s = open(t, config)
			if len(s.List()) != 0 {
				t.Errorf("images: %v", s.List())
			}
			if left := holdings(t, s); left != "" {
				t.Errorf("holdings:\n%s", left)
			}
			img := mustPull(t, s, ref)
			if _, err := os.Stat(filepath.Join(img.Layers[0], "bin/run")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestASecondStoreOnOneRootIsRefused(t *testing.T) {
	config := testConfig(t)
	open(t, config)
	_, err := Open(context.Background(), config)
	if want := "open image store " + config.Root + ": another process has it open"; err == nil || err.Error() != want {
		t.Errorf("error\n got: %v\nwant: %s", err, want)
	}
}
