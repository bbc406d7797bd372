// Command benchnode measures what pods of a cluster cost on a Berth node and on
// a stock one (kubelet, containerd and the CNI plugins), both in one cluster
// and in one run, as a client of the API server sees it, beside the bare cost
// of a pod's parts. Absolute figures differ from machine to machine and from
// hour to hour; the ratios are what counts.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/images"
	"github.com/berth-io/berth/tests/measure"
)

func main() {
	var (
		sequential = flag.Int("sequential", 40, "pods created one at a time, on each side")
		resizes    = flag.Int("resizes", 20, "resizes of a running pod, on each side")
		burst      = flag.Int("burst", 100, "pods created together, on each side; a node takes 110")
		idle       = flag.Duration("idle", time.Minute, "how long to watch the idle nodes")
	)
	flag.Parse()
	os.Exit(harness.Main("bench-node", func(t harness.TB) {
		c := cluster.New(t, cluster.Config{NoDNS: true, Nodes: []cluster.NodeConfig{{Kind: cluster.Berth, LogLevel: "info"}, {Kind: cluster.Stock}}})
		fmt.Printf("machine: %s\n", measure.Machine())
		sides := startSides(t, c)
		maker := bare.NewMaker(t, bareHost(c, sides[0].node))
		one := measureOneByOne(t, sides, maker, *sequential)
		one.print()
		measureResizes(t, sides, *resizes).print()
		bursts := measureBursts(t, sides, *burst)
		bursts.print()
		measureFootprint(t, sides, *idle).print(*burst, *idle)
		measureEnd(t, sides).print()
		measureFloor(t, c, maker, *burst).print(*burst)
		maker.Close(t)
		c.CheckNothingLeft(t)
		fmt.Printf("\nBerth's pod of the median, by the node's own account:\n\n%s\n", one.timeline)
	}))
}

// bareHost is where the bare containers are made: on Berth's node.
func bareHost(c *cluster.Cluster, n *cluster.Node) bare.Host {
	b := &images.Builder{Bin: filepath.Join(c.Config.Bin, "tests")}
	return bare.Host{
		Dir: n.Dir, Runtime: filepath.Join(c.Config.Bin, "runc"), CgroupRoot: n.CgroupRoot(),
		Inside: n.Inside, Busybox: b.Busybox,
	}
}

// timeout bounds everything that is waited for.
const timeout = 3 * time.Minute

func within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), timeout)
}
