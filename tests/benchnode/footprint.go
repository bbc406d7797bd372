package main

import (
	"fmt"
	"time"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// Programs of the nodes. Berth's network is not there yet: what routes services
// to pods is kube-proxy on both, which counts as a daemon of the stock node
// alone.
var (
	daemons = [2][]string{{"berth"}, {"kubelet", "containerd", serviceProxy}}
	perPod  = [2][]string{{"berth-shim"}, {"containerd-shim-runc-v2", "pause"}}
)

const serviceProxy = "kube-proxy"

// settle is how long what follows a start may take: garbage collection, memory
// given back.
const settle = 15 * time.Second

// footprint is what the nodes cost while their pods do nothing.
type footprint struct {
	rss, pss, cpu [2]float64 // MB, MB and seconds
	daemonCPU     [2]float64
	each          [2][]string // daemons with their RSS, for people
	shims         int
	proxyRSS      float64 // of the kube-proxy beside Berth
}

// measureFootprint looks at both nodes in the same time.
func measureFootprint(t harness.TB, sides [2]*side, idle time.Duration) footprint {
	time.Sleep(settle)
	var f footprint
	var before, daemonBefore [2]float64
	for i, s := range sides {
		before[i], daemonBefore[i] = s.cpu(i)
	}
	time.Sleep(idle)
	for i, s := range sides {
		all, daemon := s.cpu(i)
		f.cpu[i], f.daemonCPU[i] = all-before[i], daemon-daemonBefore[i]
		pids := s.processes()
		f.rss[i] = float64(sum(pids, measure.RSS, daemons[i]...)) / 1024
		f.pss[i] = float64(sum(pids, measure.PSS, perPod[i]...)) / 1024
		for _, program := range daemons[i] {
			f.each[i] = append(f.each[i], fmt.Sprintf("%s %.1f", program, float64(sum(pids, measure.RSS, program))/1024))
			if len(pids[program]) != 1 {
				t.Errorf("%s: %d processes of %s", s.name, len(pids[program]), program)
			}
		}
		if i == 0 {
			f.shims, f.proxyRSS = len(pids[perPod[0][0]]), float64(sum(pids, measure.RSS, serviceProxy))/1024
		}
	}
	return f
}

// cpu is that of daemons and what there is of them for each pod, in seconds.
func (s *side) cpu(i int) (all, daemon float64) {
	pids := s.processes()
	daemon = sum(pids, measure.CPU, daemons[i]...)
	return daemon + sum(pids, measure.CPU, perPod[i]...), daemon
}

func (f footprint) print(pods int, idle time.Duration) {
	printRow(fmt.Sprintf("daemons at %d pods, RSS, MB", pods), "%.1f", f.rss[0], f.rss[1], atMost(f.rss[0], 70, "MB"))
	fmt.Printf("    %v; %v; beside Berth, not counted: %s %.1f\n", f.each[0], f.each[1], serviceProxy, f.proxyRSS)
	printRow(fmt.Sprintf("shims and pause containers at %d pods, PSS, MB", pods), "%.1f", f.pss[0], f.pss[1],
		fmt.Sprintf("%s (%.2f a shim)", atMost(f.pss[0], 150, "MB"), f.pss[0]/float64(max(f.shims, 1))))
	minute := time.Minute.Seconds() / idle.Seconds()
	printRow(fmt.Sprintf("CPU in a quiet minute at %d pods, s", pods), "%.2f", f.cpu[0]*minute, f.cpu[1]*minute,
		fmt.Sprintf("%s (daemons %.2f and %.2f)", atMost(f.cpu[0]*minute, 1.3, "s"), f.daemonCPU[0]*minute, f.daemonCPU[1]*minute))
}
