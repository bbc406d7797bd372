// Package workloads asserts with kubectl what users do on a cluster of Berth
// nodes: the workload controllers, what pods are given, what is done to running
// pods, and what nodes refuse. One cluster serves all of its tests, each of
// which has a namespace of its own, or several where it needs them.
package workloads

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
)

// shared is the cluster of all tests, or nil where there is none.
var shared *cluster.Cluster

// without says why there is no cluster.
var without string

func TestMain(m *testing.M) {
	flag.Parse()
	listed := flag.Lookup("test.list").Value.String() != ""
	required := strings.Contains(os.Getenv("BERTH_TEST_REQUIRE"), "cluster")
	os.Exit(harness.Main("workloads", func(t harness.TB) {
		switch err := cluster.Missing(harness.Bin(t), cluster.Berth); {
		case listed: // tests are only named
		case err != nil && required:
			t.Fatalf("%v", err)
		case err != nil:
			without = err.Error()
		case os.Getuid() != 0:
			without = "needs root, for namespaces, mounts and cgroups"
		default:
			shared = cluster.New(t, cluster.Config{Nodes: []cluster.NodeConfig{
				{Kind: cluster.Berth}, {Kind: cluster.Berth},
			}})
		}
		if m.Run() != 0 {
			t.Fatalf("tests failed")
		}
		if shared != nil {
			shared.CheckNothingLeft(t)
		}
	}))
}
