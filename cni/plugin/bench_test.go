package plugin_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-io/berth/cni/internal/netnstest"
)

// reportPercentiles adds the p50 and p90 of durations to the results.
func reportPercentiles(b *testing.B, name string, durations []time.Duration) {
	slices.Sort(durations)
	for _, p := range []int{50, 90} {
		at := durations[len(durations)*p/100]
		b.ReportMetric(float64(at.Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", name, p))
	}
}

func BenchmarkAddDel(b *testing.B) {
	l := newLab(b, "10.88.0.0/16")
	var adds, dels []time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		pod := netnstest.New(b)
		b.StartTimer()
		start := time.Now()
		l.add(containerID(i), pod, l.conf)
		added := time.Now()
		l.must("DEL", containerID(i), pod.Path, l.conf)
		adds = append(adds, added.Sub(start))
		dels = append(dels, time.Since(added))
		b.StopTimer()
		pod.Close()
		b.StartTimer()
	}
	reportPercentiles(b, "add", adds)
	reportPercentiles(b, "del", dels)
}

func Benchmark100AtOnce(b *testing.B) {
	const pods = 100
	l := newLab(b, "10.88.0.0/16")
	l.add("first", netnstest.New(b), l.conf)
	for b.Loop() {
		b.StopTimer()
		var namespaces []*netnstest.NS
		for range pods {
			namespaces = append(namespaces, netnstest.New(b))
		}
		b.StartTimer()
		for _, command := range []string{"ADD", "DEL"} {
			start := time.Now()
			var all sync.WaitGroup
			for i, pod := range namespaces {
				all.Go(func() { l.must(command, containerID(i), pod.Path, l.conf) })
			}
			all.Wait()
			b.ReportMetric(float64(time.Since(start).Microseconds())/1000, command+"-100-ms")
		}
		b.StopTimer()
		for _, pod := range namespaces {
			pod.Close()
		}
		b.StartTimer()
	}
}

func BenchmarkAddDelByExec(b *testing.B) {
	binary := buildPlugin(b, "")
	l := newLab(b, "10.88.0.0/16")
	var adds, dels []time.Duration
	for i := 0; b.Loop(); i++ {
		pod := netnstest.New(b)
		start := time.Now()
		if out, err := l.exec(binary, "ADD", containerID(i), pod.Path, l.conf); err != nil {
			b.Fatalf("ADD: %v: %s", err, out)
		}
		added := time.Now()
		if out, err := l.exec(binary, "DEL", containerID(i), pod.Path, l.conf); err != nil {
			b.Fatalf("DEL: %v: %s", err, out)
		}
		adds = append(adds, added.Sub(start))
		dels = append(dels, time.Since(added))
		pod.Close()
	}
	reportPercentiles(b, "add", adds)
	reportPercentiles(b, "del", dels)
}
