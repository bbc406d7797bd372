package cri

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// TestStatisticsLeaveNothing: a kubelet asks for them 8640 times a day.
func TestStatisticsLeaveNothing(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	var pods []*runtimeapi.PodSandboxConfig
	var sandboxes []string
	for range 3 {
		pod := r.podConfig("asked")
		sandboxes, pods = append(sandboxes, r.runPod(pod)), append(pods, pod)
		r.run(sandboxes[len(sandboxes)-1], pod, r.containerConfig("main", "testbox", "pause"))
	}
	ask := func(times int) {
		for range times {
			_, err := r.ListPodSandboxStats(r.ctx(), &runtimeapi.ListPodSandboxStatsRequest{})
			must(t, err)
			_, err = r.ListPodSandboxMetrics(r.ctx(), &runtimeapi.ListPodSandboxMetricsRequest{})
			must(t, err)
			_, err = r.PodSandboxStats(r.ctx(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sandboxes[0]})
			must(t, err)
		}
	}
	ask(20)
	files, threads := r.OpenFiles(), processField(t, r.Pid(), "Threads")
	ask(200)
	harness.Eventually(t, callTimeout, "no more files are open than before", func() string {
		if now := r.OpenFiles(); now > files {
			return fmt.Sprintf("%d are, %d were", now, files)
		}
		return ""
	})
	// The Go runtime adds a thread now and then; 600 readings must not.
	if now := processField(t, r.Pid(), "Threads"); now > threads+10 {
		t.Errorf("%d threads have become %d", threads, now)
	}
	for i := range pods {
		r.removePod(sandboxes[i], pods[i])
	}
	r.CheckNothingLeft()
}

// processField reads a number from /proc/PID/status.
func processField(t testing.TB, pid int, name string) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			must(t, err)
			return n
		}
	}
	t.Fatalf("%s has no %s", data, name)
	return 0
}

// BenchmarkListPodSandboxStats asks a node with 100 pods of one container each
// for the statistics of all, and tells what a pod costs the daemon.
func BenchmarkListPodSandboxStats(b *testing.B) {
	const count = 100
	r := startRuntime(b, harness.Options{})
	var pods []*runtimeapi.PodSandboxConfig
	var sandboxes []string
	for range count {
		pod := r.podConfig("measured")
		sandboxes, pods = append(sandboxes, r.runPod(pod)), append(pods, pod)
		r.run(sandboxes[len(sandboxes)-1], pod, r.containerConfig("main", "testbox", "pause"))
	}
	for _, c := range []struct {
		name string
		ask  func() (int, error)
	}{
		{"stats", func() (int, error) {
			resp, err := r.ListPodSandboxStats(r.ctx(), &runtimeapi.ListPodSandboxStatsRequest{})
			return len(resp.GetStats()), err
		}},
		{"metrics", func() (int, error) {
			resp, err := r.ListPodSandboxMetrics(r.ctx(), &runtimeapi.ListPodSandboxMetricsRequest{})
			return len(resp.GetPodMetrics()), err
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			rss, cpu := processField(b, r.Pid(), "VmRSS"), cpuTicks(b, r.Pid())
			for b.Loop() {
				n, err := c.ask()
				must(b, err)
				equal(b, "pods", n, count)
			}
			perPod := float64(b.N) * count
			b.ReportMetric(float64(b.Elapsed().Microseconds())/perPod, "µs/pod")
			b.ReportMetric(float64(cpuTicks(b, r.Pid())-cpu)*10_000/perPod, "daemon-µs/pod")
			b.ReportMetric(float64(processField(b, r.Pid(), "VmRSS")-rss)/1024, "more-MB")
		})
	}
	for i := range pods {
		r.removePod(sandboxes[i], pods[i])
	}
}

// cpuTicks is the CPU time of a process in hundredths of a second.
func cpuTicks(t testing.TB, pid int) int {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(t, err)
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	must(t, err)
	system, err := strconv.Atoi(fields[12])
	must(t, err)
	return user + system
}
