package cri

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
)

// TestMetricStatistics is also run on a pure cgroup v2 host by tests/vm.
func TestMetricStatistics(t *testing.T) {
	r := startRuntime(t, harness.Options{})
	pod := r.podConfig("metrics")
	sandbox := r.runPod(pod)
	config := r.containerConfig("main", "testbox", "burn", "--cpu", "2s")
	config.Linux.Resources.MemoryLimitInBytes = 64 << 20
	config.Linux.Resources.CpuPeriod, config.Linux.Resources.CpuQuota = 100_000, 150_000
	id := r.run(sandbox, pod, config)
	r.waitLog(pod, config, "burnt")
	r.exec(id, "testbox", "datagram", "--to", gateway(r, id)+":9", "--n", "100", "--size", "1000")

	described := map[string][]string{}
	descriptors, err := r.ListMetricDescriptors(r.ctx(), &runtimeapi.ListMetricDescriptorsRequest{})
	must(t, err)
	for _, d := range descriptors.Descriptors {
		described[d.Name] = d.LabelKeys
	}
	resp, err := r.ListPodSandboxMetrics(r.ctx(), &runtimeapi.ListPodSandboxMetricsRequest{})
	must(t, err)
	equal(t, "pods", len(resp.PodMetrics), 1)
	got := resp.PodMetrics[0]
	equal(t, "sandbox", got.PodSandboxId, sandbox)
	equal(t, "containers", len(got.ContainerMetrics), 1)
	equal(t, "container", got.ContainerMetrics[0].ContainerId, id)

	ofPod := labelled(t, described, got.Metrics)
	ofContainer := labelled(t, described, got.ContainerMetrics[0].Metrics)
	for _, m := range got.ContainerMetrics[0].Metrics {
		// The kubelet refuses the whole answer when a line is there twice.
		for _, other := range got.Metrics {
			if m.Name == other.Name && strings.Join(m.LabelValues, "|") == strings.Join(other.LabelValues, "|") {
				t.Errorf("pod and container have %v", m)
			}
		}
	}
	now := uint64(time.Now().Unix())
	for _, want := range []struct {
		name        string
		least, most uint64
	}{
		{"container_cpu_usage_seconds_total|cpu=total", 1, 2},
		{"container_cpu_cfs_periods_total", 1, 10_000},
		{"container_memory_rss", 100_000, 64 << 20},
		{"container_memory_working_set_bytes", 100_000, 64 << 20},
		{"container_memory_failures_total|failure_type=pgfault|scope=container", 10, noLimit},
		{"container_oom_events_total", 0, 0},
		{"container_processes", 1, 1},
		{"container_threads", 2, 100},
		{"container_file_descriptors", 3, 100},
		{"container_sockets", 0, 10},
		{"container_ulimits_soft|ulimit=max_open_files", 1, noLimit},
		{"container_spec_cpu_quota", 150_000, 150_000},
		{"container_spec_cpu_period", 100_000, 100_000},
		{"container_spec_cpu_shares", 100, 100},
		{"container_spec_memory_limit_bytes", 64 << 20, 64 << 20},
		{"container_start_time_seconds", now - 300, now},
		{"container_last_seen", now - 60, now + 1},
	} {
		v, ok := ofContainer[want.name]
		if !ok || v < want.least || v > want.most {
			t.Errorf("%s is %d, %v; want %d to %d", want.name, v, ok, want.least, want.most)
		}
	}
	if sent := ofPod["container_network_transmit_bytes_total|interface=eth0"]; sent < 100*1042 || sent > 100*1042+20_000 {
		t.Errorf("the pod has sent %d bytes", sent)
	}
	if packets := ofPod["container_network_transmit_packets_total|interface=eth0"]; packets < 100 || packets > 200 {
		t.Errorf("the pod has sent %d packets", packets)
	}
	equal(t, "processes of the pod", ofPod["container_processes"], 1)
	r.removePod(sandbox, pod)
	r.CheckNothingLeft()
}

// labelled checks metrics against their descriptors, and returns the values by
// name and the labels that not every metric has.
func labelled(t *testing.T, described map[string][]string, list []*runtimeapi.Metric) map[string]uint64 {
	t.Helper()
	values := map[string]uint64{}
	for _, m := range list {
		keys := described[m.Name]
		if len(keys) == 0 || len(keys) != len(m.LabelValues) {
			t.Errorf("%s has labels %q, described are %q", m.Name, m.LabelValues, keys)
			continue
		}
		name := m.Name
		for i, key := range keys {
			switch key {
			case "namespace", "pod":
				equal(t, m.Name+" label "+key, m.LabelValues[i], map[string]string{"namespace": "default", "pod": "metrics"}[key])
			case "container", "id", "image", "name":
			default:
				name += "|" + key + "=" + m.LabelValues[i]
			}
		}
		if _, twice := values[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		values[name] = m.Value.Value
	}
	return values
}
