package main

import (
	"fmt"
	"time"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// settle is how long what follows a start may take: garbage collection, memory
// given back.
const settle = 10 * time.Second

// measureMemory compares what the pods cost besides their own processes, with
// so many of them on each side.
func measureMemory(t harness.TB, n *harness.Node, sides [2]*side, count int) {
	if count == 0 {
		return
	}
	var pods []*pod
	for range count {
		for _, s := range sides {
			p := s.newPod(t)
			p.run()
			pods = append(pods, p)
		}
	}
	time.Sleep(settle)
	var perPod, daemon [2]float64 // MiB
	for i, s := range sides {
		for _, p := range n.Processes() {
			if s.perPod[p.Program] {
				perPod[i] += float64(measure.PSS(p.Pid)) / 1024 / float64(count)
			}
		}
		daemon[i] = float64(measure.RSS(s.daemon)) / 1024
	}
	fmt.Printf("%-36s %8s   %10s\n", fmt.Sprintf("MiB, with %d pods", count), "Berth", "containerd")
	fmt.Printf("%-36s %8.2f   %10.2f   %s\n", "shim and sandbox of a pod, PSS", perPod[0], perPod[1], ratio(perPod[0]/perPod[1], 1.0/5))
	fmt.Printf("%-36s %8.1f   %10.1f   %s\n\n", "the daemon, RSS", daemon[0], daemon[1], ratio(daemon[0]/daemon[1], 0))
	for _, p := range pods {
		p.stop()
	}
}
