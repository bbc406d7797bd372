package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// oneByOne has what pods took while there was no other.
type oneByOne struct {
	bare        bare.Result
	ready, gone [2]measure.Series
	timeline    string // of Berth's pod with the median time
}

// measureOneByOne makes a bare container and a pod on each node in turns:
// whatever else the machine does disturbs all alike.
func measureOneByOne(t harness.TB, sides [2]*side, maker *bare.Maker, count int) oneByOne {
	var r oneByOne
	timelines := map[float64]string{}
	for i := range count {
		r.bare.Add(maker.Measure(t))
		for k := range sides {
			turn := (i + k) % 2
			l := sides[turn].live()
			r.ready[turn].Add(l.ready)
			r.gone[turn].Add(l.gone)
			if l.timeline != "" {
				timelines[l.ready] = l.timeline
			}
		}
	}
	r.timeline = timelines[r.ready[0].Percentile(50)]
	return r
}

func (r *oneByOne) print() {
	b := r.bare
	fmt.Printf("bare cost of a pod, p50 of %d: %.1f ms (p90 %.1f) = network %.1f + overlay %.1f + runc run -d %.1f\n\n", len(b.Total),
		b.Total.Percentile(50), b.Total.Percentile(90), b.Network.Percentile(50), b.Rootfs.Percentile(50), b.Runc.Percentile(50))
	fmt.Printf("%-50s %10s %10s %7s\n", "", "Berth", "stock", "ratio")
	printSeries(fmt.Sprintf("created → Ready, %d one at a time, ms", len(r.ready[0])), r.ready,
		times(r.ready[0].Percentile(50)/b.Total.Percentile(50), 2, "bare"))
	printSeries("deleted → gone, grace 1 s, ends on SIGTERM, ms", r.gone, atMost(r.gone[0].Percentile(50), 100, "ms"))
}

func printSeries(what string, took [2]measure.Series, goal string) {
	for _, p := range []int{50, 90, 99} {
		printRow(fmt.Sprintf("%s, p%d", what, p), "%.1f", float64(took[0].Percentile(p)), float64(took[1].Percentile(p)), goal)
		what, goal = fmt.Sprintf("%*s", len("created"), ""), ""
	}
}

// printRow prints Berth's figure, the stock node's, and their ratio.
func printRow(what, format string, ours, theirs float64, goal string) {
	ratio := ""
	if theirs > 0 {
		ratio = fmt.Sprintf("%.2f", ours/theirs)
	}
	fmt.Printf("%-50s %10s %10s %7s  %s\n", what, fmt.Sprintf(format, ours), fmt.Sprintf(format, theirs), ratio, goal)
}

func atMost(figure, goal float64, unit string) string {
	return fmt.Sprintf("goal ≤ %g %s: %s", goal, unit, verdict(figure <= goal))
}

func times(figure, goal float64, of string) string {
	return fmt.Sprintf("%.2f × %s, goal ≤ %.2f: %s", figure, of, goal, verdict(figure <= goal))
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

// resizes has what it took until a pod's status said that its container has
// other limits.
type resizes struct{ took [2]measure.Series }

func measureResizes(t harness.TB, sides [2]*side, count int) resizes {
	var r resizes
	for turn, s := range sides {
		ctx, cancel := within()
		w := s.watch(ctx)
		p, _ := s.started(ctx, w)
		for i := range count {
			cpu := resource.NewMilliQuantity(int64(200+100*(i%2)), resource.DecimalSI)
			patch := fmt.Appendf(nil, `{"spec":{"containers":[{"name":"main","resources":{"limits":{"cpu":%q}}}]}}`, cpu)
			r.took[turn].Add(s.timed(func() {
				if _, err := s.pods.Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "resize"); err != nil {
					t.Fatalf("%s: resize pod %s: %v", s.name, p.Name, err)
				}
				s.await(ctx, w, "pod resized", func(_ watch.EventType, p *corev1.Pod) bool { return hasCPU(p, cpu) })
			}))
		}
		s.ended(ctx, w, p)
		w.Stop()
		cancel()
	}
	return r
}

// hasCPU tells whether the container runs with the limit.
func hasCPU(p *corev1.Pod, limit *resource.Quantity) bool {
	if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].Resources == nil {
		return false
	}
	cpu, ok := p.Status.ContainerStatuses[0].Resources.Limits[corev1.ResourceCPU]
	return ok && cpu.Cmp(*limit) == 0
}

func (r resizes) print() {
	printSeries(fmt.Sprintf("resized → in the status, %d times, ms", len(r.took[0])), r.took, "")
}
