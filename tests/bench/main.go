// Command bench measures what a pod costs on this machine: the bare cost of
// its parts first, then the same through a Berth node, one pod at a time and
// in a burst, and what a hundred pods cost while nothing happens. Both are
// measured in one run, since absolute figures differ from machine to machine
// and from hour to hour.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

func main() {
	var (
		sequential = flag.Int("sequential", 50, "pods created one at a time")
		burst      = flag.Int("burst", 100, "pods created together")
		idle       = flag.Duration("idle", time.Minute, "how long to watch the idle node")
	)
	flag.Parse()
	os.Exit(harness.Main("bench", func(t harness.TB) {
		n := harness.StartNode(t, harness.Options{Amend: func(c *harness.Config) { c.LogLevel = "info" }})
		fmt.Printf("machine: %s\n\n", measure.Machine())
		n.MustCLI("image", "pull", harness.Busybox)
		maker := bare.NewMaker(t, bare.HostOf(n))
		one := measureSequential(t, n, maker, *sequential)
		maker.Close(t)
		one.print()
		measureBurst(t, n, *burst).print()
		measureFootprint(n, *idle).print(*burst, *idle)
		start := time.Now()
		n.RemoveAll()
		fmt.Printf("%-44s %8.2f s\n", fmt.Sprintf("%d pods deleted → gone", *burst), time.Since(start).Seconds())
		n.Stop()
		n.CheckNothingLeft()
		fmt.Printf("\nthe pod of the median, by its own account:\n\n%s\n", one.timeline)
	}))
}

type sequentialResult struct {
	bare        bare.Result
	ready, gone measure.Series
	timeline    string // of the pod with the median time
}

// measureSequential makes a bare container and a pod in turns: whatever else
// the machine does disturbs both alike.
func measureSequential(t harness.TB, n *harness.Node, maker *bare.Maker, count int) sequentialResult {
	var r sequentialResult
	timelines := map[float64]string{}
	for i := range count + 1 {
		cost := maker.Measure(t)
		name := fmt.Sprintf("one-%d", i)
		start := time.Now()
		n.WriteManifest(name+".yaml", pod(name))
		waitReady(t, n, 1, 2*time.Millisecond)
		ready := measure.Milliseconds(time.Since(start))
		timeline := n.Explain("default", name)
		start = time.Now()
		n.RemoveManifest(name + ".yaml")
		waitReady(t, n, 0, 2*time.Millisecond)
		gone := measure.Milliseconds(time.Since(start))
		if i == 0 {
			continue // makes the bridge and warms the caches
		}
		r.bare.Add(cost)
		r.ready.Add(ready)
		r.gone.Add(gone)
		timelines[ready] = timeline
	}
	r.timeline = timelines[r.ready.Percentile(50)]
	return r
}

func (r *sequentialResult) print() {
	b := r.bare
	fmt.Printf("%-44s %8.1f ms  p90 %.1f  = network %.1f + overlay %.1f + runc run -d %.1f\n", fmt.Sprintf("bare cost of a pod, %d one at a time, p50", len(b.Total)),
		b.Total.Percentile(50), b.Total.Percentile(90), b.Network.Percentile(50), b.Rootfs.Percentile(50), b.Runc.Percentile(50))
	p50 := r.ready.Percentile(50)
	fmt.Printf("%-44s %8.1f ms  p90 %.1f  p99 %.1f  = %.2f × bare (goal ≤ 2.00)\n",
		fmt.Sprintf("pod created → Ready, %d one at a time, p50", len(r.ready)), p50, r.ready.Percentile(90), r.ready.Percentile(99), p50/r.bare.Total.Percentile(50))
	fmt.Printf("%-44s %8.1f ms  p90 %.1f  p99 %.1f  (goal ≤ 100)\n", "pod deleted → gone, p50",
		r.gone.Percentile(50), r.gone.Percentile(90), r.gone.Percentile(99))
}

type burstResult struct {
	count   int
	seconds float64
}

func measureBurst(t harness.TB, n *harness.Node, count int) burstResult {
	start := time.Now()
	n.WriteManifest("burst.yaml", deployment("burst", count))
	waitReady(t, n, count, 20*time.Millisecond)
	return burstResult{count, time.Since(start).Seconds()}
}

func (r burstResult) print() {
	fmt.Printf("%-44s %8.2f s   %.1f pods/s (goal ≤ 4.00 s for 100)\n", fmt.Sprintf("burst of %d pods, all Ready", r.count), r.seconds, float64(r.count)/r.seconds)
}

// waitReady polls, since a file has no resource version to watch from. The
// interval is part of what is measured.
func waitReady(t harness.TB, n *harness.Node, want int, interval time.Duration) {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		pods, err := n.TryPods()
		if err != nil {
			t.Fatalf("%v", err)
		}
		ready := 0
		for _, p := range pods {
			if harness.Ready(p) {
				ready++
			}
		}
		if ready == want && len(pods) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d pods, %d of them ready, want %d; %s", len(pods), ready, want, first(pods))
		}
		time.Sleep(interval)
	}
}

func first(pods []corev1.Pod) string {
	for _, p := range pods {
		if !harness.Ready(p) {
			return harness.Summary(p)
		}
	}
	return ""
}

func pod(name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 5\n  containers:\n  - {name: main, image: %s, command: %s}\n",
		name, harness.Busybox, quoted())
}

func deployment(name string, replicas int) string {
	return fmt.Sprintf("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: %[1]s}\nspec:\n  replicas: %[2]d\n  selector: {matchLabels: {app: %[1]s}}\n"+
		"  template:\n    metadata: {labels: {app: %[1]s}}\n    spec:\n      terminationGracePeriodSeconds: 5\n      containers:\n      - {name: main, image: %[3]s, command: %[4]s}\n",
		name, replicas, harness.Busybox, quoted())
}

func quoted() string {
	var parts []string
	for _, c := range bare.Command {
		parts = append(parts, "'"+c+"'")
	}
	return "[" + strings.Join(parts, ", ") + "]"
}
