package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berth-io/berth/tests/harness"
)

// startTimeout bounds the start of a test's cluster.
const startTimeout = 6 * time.Minute

// New is Start for a test: whatever goes wrong fails the test, and the cluster
// goes with it. Bin and Name have defaults. Clusters of test processes that
// were killed are removed first.
func New(t harness.TB, cfg Config) *Cluster {
	t.Helper()
	sweepStale(t)
	if cfg.Name == "" {
		id := make([]byte, 3)
		_, _ = rand.Read(id) // never fails
		cfg.Name = testPrefix + hex.EncodeToString(id)
	}
	if cfg.Bin == "" {
		cfg.Bin = harness.Bin(t)
	}
	cfg.owned = true
	t.Cleanup(func() { destroy(t, cfg.Name) })
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	c, err := Start(ctx, cfg)
	if c != nil {
		t.Cleanup(func() { c.closeReg() })
		t.Cleanup(func() { c.logTails(t) })
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	if err := c.remember(); err != nil {
		t.Fatalf("leak check: %v", err)
	}
	return c
}

func destroy(t harness.TB, name string) {
	if os.Getenv("BERTH_TEST_KEEP") != "" {
		t.Logf("kept: cluster %s (make cluster-down NAME=%s removes it)", name, name)
		return
	}
	if err := Down(name); err != nil {
		t.Errorf("remove cluster %s: %v", name, err)
	}
}

// logTails shows what the nodes of a failed test said last.
func (c *Cluster) logTails(t harness.TB) {
	if !t.Failed() {
		return
	}
	for _, n := range c.Nodes {
		if c.part(n.agent()) != nil {
			t.Logf("end of the log of %s:\n%s", n.agent(), tail(n.LogFile(), 40))
		}
	}
}

// testPrefix begins the names of tests' clusters.
const testPrefix = "t"

var sweepStaleOnce sync.Once

// sweepStale removes the clusters of test processes that are gone.
func sweepStale(t harness.TB) {
	sweepStaleOnce.Do(func() {
		all, err := names()
		if err != nil {
			t.Fatalf("%v", err)
		}
		for _, name := range all {
			if !strings.HasPrefix(name, testPrefix) || harness.Owned(filepath.Join(dirsDir, namePrefix+name)) {
				continue
			}
			t.Logf("removing cluster %s, which a test that is gone left behind", name)
			if err := Down(name); err != nil {
				t.Logf("remove cluster %s: %v", name, err)
			}
		}
	})
}
