package main

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// repeats of the requests that change nothing, for each pod.
const (
	statusRepeats = 10
	execRepeats   = 3
)

// latency has the durations of each request, by side.
type latency struct {
	bare bare.Result
	rows []*row
}

type row struct {
	name string
	goal float64 // of the ratio; 0: none
	took [2]measure.Series
}

func (l *latency) add(side int, name string, ms ...float64) {
	for _, r := range l.rows {
		if r.name == name {
			r.took[side] = append(r.took[side], ms...)
			return
		}
	}
	panic("no such row: " + name)
}

func newLatency() *latency {
	return &latency{rows: []*row{
		{name: "RunPodSandbox"},
		{name: "CreateContainer"},
		{name: "StartContainer"},
		{name: "the three together", goal: 1.0 / 2},
		{name: "ContainerStatus"},
		{name: "ExecSync", goal: 1.0 / 3},
		{name: "StopContainer"},
		{name: "RemoveContainer"},
		{name: "StopPodSandbox"},
		{name: "RemovePodSandbox"},
		{name: "the four together"},
	}}
}

// measureLatency lets a pod live on each side in turns: whatever else the
// machine does disturbs both alike.
func measureLatency(t harness.TB, sides [2]*side, maker *bare.Maker, cycles int) *latency {
	l := newLatency()
	for i := range cycles + 1 {
		if i == 1 {
			*l = *newLatency() // the first made the bridges and warmed the caches
		}
		l.bare.Add(maker.Measure(t))
		for k := range sides {
			turn := (i + k) % 2
			l.cycle(t, turn, sides[turn])
		}
	}
	return l
}

func (l *latency) cycle(t harness.TB, side int, s *side) {
	p := s.newPod(t)
	id, start := p.run()
	l.add(side, "RunPodSandbox", start[0])
	l.add(side, "CreateContainer", start[1])
	l.add(side, "StartContainer", start[2])
	l.add(side, "the three together", start[0]+start[1]+start[2])
	for range statusRepeats {
		l.add(side, "ContainerStatus", p.timed("ContainerStatus", func(ctx context.Context) error {
			r, err := p.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			if err == nil && r.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				err = fmt.Errorf("the container is %v", r.Status.State)
			}
			return err
		}))
	}
	for range execRepeats {
		l.add(side, "ExecSync", p.timed("ExecSync", func(ctx context.Context) error {
			r, err := p.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "hello"}, Timeout: 60})
			if err == nil && string(r.Stdout) != "hello\n" {
				err = fmt.Errorf("it printed %q", r.Stdout)
			}
			return err
		}))
	}
	stop := p.timed("StopContainer", func(ctx context.Context) error {
		_, err := p.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
		return err
	})
	remove := p.timed("RemoveContainer", func(ctx context.Context) error {
		_, err := p.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
	end := p.stop()
	l.add(side, "StopContainer", stop)
	l.add(side, "RemoveContainer", remove)
	l.add(side, "StopPodSandbox", end[0])
	l.add(side, "RemovePodSandbox", end[1])
	l.add(side, "the four together", stop+remove+end[0]+end[1])
}

func (l *latency) print() {
	b := l.bare
	fmt.Printf("bare cost, p50 of %d: %.1f ms = network %.1f + overlay %.1f + runc run -d %.1f; runc exec %.1f ms\n\n", len(b.Total),
		b.Total.Percentile(50), b.Network.Percentile(50), b.Rootfs.Percentile(50), b.Runc.Percentile(50), b.Exec.Percentile(50))
	fmt.Printf("%-22s %19s   %19s\n", "milliseconds", "Berth", "containerd")
	fmt.Printf("%-22s %9s %9s   %9s %9s   %s\n", "", "p50", "p99", "p50", "p99", "ratio of p50")
	for _, r := range l.rows {
		ours, theirs := r.took[0], r.took[1]
		fmt.Printf("%-22s %9.1f %9.1f   %9.1f %9.1f   %s\n", r.name, ours.Percentile(50), ours.Percentile(99),
			theirs.Percentile(50), theirs.Percentile(99), ratio(ours.Percentile(50)/theirs.Percentile(50), r.goal))
	}
	fmt.Println()
}

// ratio prints Berth's share of containerd's, and the goal where there is one.
func ratio(r, goal float64) string {
	if goal == 0 {
		return fmt.Sprintf("%.2f", r)
	}
	verdict := "met"
	if r > goal {
		verdict = "missed"
	}
	return fmt.Sprintf("%.2f (goal ≤ %.2f: %s)", r, goal, verdict)
}
