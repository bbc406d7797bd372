package main

import (
	"fmt"
	"os"
	"time"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// footprint is what the node costs while its pods do nothing.
type footprint struct {
	shims     int
	shimPSS   int // KiB, all shims together
	daemonRSS int // KiB
	daemonPSS int
	cpu       float64 // seconds, daemon and shims
	daemonCPU float64
	files     int // open files of the daemon
}

func measureFootprint(n *harness.Node, idle time.Duration) footprint {
	// Let what follows a start settle: garbage collection, memory returned.
	time.Sleep(10 * time.Second)
	all0, daemon0 := cpuSeconds(n)
	time.Sleep(idle)
	all1, daemon1 := cpuSeconds(n)
	f := footprint{cpu: all1 - all0, daemonCPU: daemon1 - daemon0}
	for _, p := range n.Processes() {
		switch p.Program {
		case "berth-shim":
			f.shims++
			f.shimPSS += measure.PSS(p.Pid)
		case "berth":
			f.daemonRSS += measure.RSS(p.Pid)
			f.daemonPSS += measure.PSS(p.Pid)
			if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.Pid)); err == nil {
				f.files += len(fds)
			}
		}
	}
	return f
}

func (f footprint) print(pods int, idle time.Duration) {
	fmt.Printf("%-44s %8.2f MB  of %d (goal ≤ 1.50)\n", "a shim, PSS", float64(f.shimPSS)/1024/float64(max(f.shims, 1)), f.shims)
	fmt.Printf("%-44s %8.1f MB  PSS %.1f, %d open files (goal ≤ 60)\n", fmt.Sprintf("the daemon at %d pods, RSS", pods), float64(f.daemonRSS)/1024, float64(f.daemonPSS)/1024, f.files)
	minute := time.Minute.Seconds() / idle.Seconds()
	fmt.Printf("%-44s %8.3f s   daemon %.3f, shims %.3f (goal ≤ 1.30)\n", fmt.Sprintf("CPU in a quiet minute at %d pods", pods),
		f.cpu*minute, f.daemonCPU*minute, (f.cpu-f.daemonCPU)*minute)
}

// cpuSeconds sums the CPU time of daemon and shims.
func cpuSeconds(n *harness.Node) (all, daemon float64) {
	for _, p := range n.Processes() {
		switch p.Program {
		case "berth":
			seconds := measure.CPU(p.Pid)
			all, daemon = all+seconds, daemon+seconds
		case "berth-shim":
			all += measure.CPU(p.Pid)
		}
	}
	return all, daemon
}
