package metrics

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protodelim"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/metrics"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden files")

var when = metav1.NewTime(time.Unix(1764288000, 0))

type fakeRuntime struct{ err error }

func (f *fakeRuntime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: []*runtimeapi.PodSandboxStats{{
		Attributes: &runtimeapi.PodSandboxAttributes{Id: "sb"},
		Linux: &runtimeapi.LinuxPodSandboxStats{Containers: []*runtimeapi.ContainerStats{{
			Attributes: &runtimeapi.ContainerAttributes{Id: "c1"},
			Cpu:        &runtimeapi.CpuUsage{Timestamp: when.Add(time.Second).UnixNano(), UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: 7_250_000_000}},
		}}},
	}}}, f.err
}

func (f *fakeRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	m := &runtimeapi.PodSandboxMetadata{Uid: "u1"}
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		{Metadata: m}, {Metadata: m}, {Metadata: &runtimeapi.PodSandboxMetadata{Uid: "u2"}, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY},
	}}, f.err
}

func (f *fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest, ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{
		{State: runtimeapi.ContainerState_CONTAINER_RUNNING}, {State: runtimeapi.ContainerState_CONTAINER_RUNNING}, {State: runtimeapi.ContainerState_CONTAINER_EXITED},
	}}, f.err
}

func (f *fakeRuntime) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest, ...grpc.CallOption) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: []*runtimeapi.MetricDescriptor{
		{Name: "container_cpu_usage_seconds_total", Help: "CPU time used, in seconds.", LabelKeys: []string{"container", "id", "image", "name", "namespace", "pod", "cpu"}},
	}}, f.err
}

func (f *fakeRuntime) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	m := func(name string, n uint64, labels ...string) *runtimeapi.Metric {
		return &runtimeapi.Metric{Name: name, LabelValues: labels, Value: &runtimeapi.UInt64Value{Value: n}, Timestamp: when.UnixNano()}
	}
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: []*runtimeapi.PodSandboxMetrics{{
		Metrics: []*runtimeapi.Metric{
			m("container_cpu_usage_seconds_total", 9, "", "/kubepods/podu1", "", "sb", "default", "web", "total"),
			m("container_cpu_usage_seconds_total", 9, "too", "few"), m("not_described", 1),
		},
		ContainerMetrics: []*runtimeapi.ContainerMetrics{{Metrics: []*runtimeapi.Metric{
			m("container_cpu_usage_seconds_total", 7, "app", "/kubepods/podu1/c1", "nginx", "c1", "default", "web", "total"),
		}}},
	}}}, f.err
}

type fakeStats struct{ err error }

func n(i uint64) *uint64 { return &i }

func (f *fakeStats) summary() *statsapi.Summary {
	cpu := &statsapi.CPUStats{Time: when, UsageCoreNanoSeconds: n(2_500_000_000)}
	memory := &statsapi.MemoryStats{Time: when, WorkingSetBytes: n(1 << 20)}
	swap := &statsapi.SwapStats{Time: when, SwapUsageBytes: n(3), SwapAvailableBytes: n(4)}
	return &statsapi.Summary{
		Node: statsapi.NodeStats{CPU: cpu, Memory: memory, Swap: swap},
		Pods: []statsapi.PodStats{{
			PodRef: statsapi.PodReference{Name: "web", Namespace: "default", UID: "u1"}, CPU: cpu, Memory: memory, Swap: swap,
			Containers: []statsapi.ContainerStats{
				{Name: "app", StartTime: when, CPU: cpu, Memory: memory, Swap: swap, Logs: &statsapi.FsStats{UsedBytes: n(4096)}},
				{Name: "new", CPU: &statsapi.CPUStats{Time: when}},
			},
			VolumeStats: []statsapi.VolumeStats{
				{Name: "scratch", FsStats: statsapi.FsStats{UsedBytes: n(1)}},
				{Name: "data", PVCRef: &statsapi.PVCReference{Namespace: "default", Name: "db"}, VolumeHealthStats: &statsapi.VolumeHealthStats{Abnormal: true},
					FsStats: statsapi.FsStats{CapacityBytes: n(10), AvailableBytes: n(9), UsedBytes: n(1), Inodes: n(8), InodesFree: n(7), InodesUsed: n(1)}},
				{Name: "same", PVCRef: &statsapi.PVCReference{Namespace: "default", Name: "db"}},
			},
		}},
	}
}

func (f *fakeStats) Summary(context.Context) (*statsapi.Summary, error) { return f.summary(), f.err }
func (f *fakeStats) CPUAndMemory(context.Context) (*statsapi.Summary, error) {
	return f.summary(), f.err
}

type podSet []*v1.Pod

func (p podSet) Pods() []*v1.Pod { return p }

func newMetrics(t *testing.T, runtimeErr, statsErr error) *Metrics {
	resizing := testPod()
	resizing.UID, resizing.Spec.EphemeralContainers = "u3", make([]v1.EphemeralContainer, 2)
	resizing.Status.Conditions = []v1.PodCondition{{Type: v1.PodResizePending, Reason: v1.PodReasonDeferred}, {Type: v1.PodResizeInProgress}}
	static := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"kubernetes.io/config.source": "file"}}}
	done := &v1.Pod{Status: v1.PodStatus{Phase: v1.PodSucceeded}}
	return New(&fakeRuntime{err: runtimeErr}, &fakeStats{statsErr}, podSet{testPod(), static, done, resizing}, Config{
		NodeName: "n1", Version: "v1.36.3", Commit: "abc", CgroupVersion: 2, MachineID: "m", SystemUUID: "s", BootID: "b",
		CPUs: func() (int, int) { return 3, 1 }, CPUsByNode: func() map[int]int { return map[int]int{1: 1} }, Gates: []Gate{{Name: "MemoryQoS", Stage: "ALPHA"}, {Name: "SidecarContainers", On: true}},
		ClientExpiry: func() time.Time { return time.Now().Add(time.Hour) }, ServerExpiry: func() time.Time { return time.Time{} },
		Records: func() (int, int, error) { return 1, 2, nil },
		Working: func() map[Working]int { return map[Working]int{{Lifecycle: "sync", Config: "desired"}: 3} },
		Log:     slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
}

func testPod() *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u1", Annotations: map[string]string{"kubernetes.io/config.source": "api"}}}
}

// scrape returns the text of a path.
func scrape(t *testing.T, m *Metrics, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handlers()[path].ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	if w.Code != 200 {
		t.Fatalf("%s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// tell tells everything that happens once.
func tell(m *Metrics) {
	m.called("RunPodSandbox", &runtimeapi.RunPodSandboxRequest{RuntimeHandler: "runc"}, time.Second, nil)
	m.called("RunPodSandbox", &runtimeapi.RunPodSandboxRequest{}, time.Second, errors.New("no"))
	m.called("ListContainers", &runtimeapi.ListContainersRequest{}, time.Millisecond, nil)
	m.called("Unheard", nil, time.Millisecond, nil)
	m.Serving("GET", "pods", "readwrite", false)()
	m.WebSocket("exec")
	m.Checked("ping", true)
	m.Checked("syncloop", false)
	m.Probed(testPod(), "app", "Readiness", "successful", 20*time.Millisecond)
	m.Probed(testPod(), "app", "Liveness", "failed", time.Second)
	tellOfPods(m)
	tellOfTheNode(m)
}

// ran is a pod that runs, whose init container has.
func ran() *v1.Pod {
	pod := testPod()
	pod.CreationTimestamp = metav1.NewTime(time.Now().Add(-10 * time.Second))
	pod.Spec.InitContainers, pod.Spec.Containers = []v1.Container{{Name: "first"}}, []v1.Container{{Name: "app"}}
	pod.Status.Phase = v1.PodRunning
	began := metav1.NewTime(time.Now().Add(-8 * time.Second))
	pod.Status.InitContainerStatuses = []v1.ContainerStatus{{Name: "first", State: v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
		Reason: "Completed", StartedAt: began, FinishedAt: metav1.NewTime(began.Add(3 * time.Second)),
	}}}}
	return pod
}

func tellOfPods(m *Metrics) {
	pod := ran()
	m.PodBegun(pod, time.Now())
	m.PodChanged(&v1.Pod{Status: v1.PodStatus{Phase: v1.PodPending}}, pod, time.Now())
	m.PodChanged(pod, pod, time.Now())
	m.ContainerEnded("init_container", pod.Status.InitContainerStatuses[0].State.Terminated)
	m.PodNotStarted(&v1.Pod{Spec: v1.PodSpec{HostUsers: new(bool)}})
	m.PodNotStarted(pod)
	m.PodSynced("create", time.Second)
	m.ContainerStarted(pod, "app", "")
	m.ContainerStarted(pod, "first", "RunContainerError")
	m.StatusWritten(time.Millisecond)
	m.PodStarted(pod, 2*time.Second)
	m.ImagePulled(2*time.Second, 20<<20)
	m.ImageVolumes(2, true)
	m.ImageVolumes(1, false)
	larger := ran()
	larger.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}
	m.ResizeRequested(pod, larger)
	m.ResizeRequested(larger, larger)
	m.PodResized(20*time.Millisecond, true)
	m.ResizeInfeasible("swap_limitation")
	m.ResizeAccepted("pod_resized")
	m.HTTPFallback()
	m.SleepCut()
	m.PodRestarted(true)
	m.OrphanFound()
	m.ImageEnsured(v1.PullIfNotPresent, "true", "unknown")
	m.ImageVerified("mustAuthenticate")
	m.PluginRan("acr", time.Second, errors.New("no"))
	m.PluginsConfigured("sha256:0a")
}

func tellOfTheNode(m *Metrics) {
	m.Relisted(time.Millisecond, 0)
	m.Relisted(time.Millisecond, time.Minute)
	m.PodRelisted(time.Millisecond)
	m.Following(nil)
	m.Following(errors.New("no"))
	m.RuntimeTold(time.Millisecond)
	m.Evicted("memory.available")
	m.EvictionMeasured("memory.available", time.Second)
	m.Preempted("cpu")
	m.Rejected("OutOfcpu")
	m.ImageCollected("age")
	m.DevicePluginRegistered("e.org/gpu")
	m.DevicesAllocated("e.org/gpu", time.Second)
	m.Aligned(time.Second, true)
	m.MemoryProtected(2, 1)
	m.Bounded("pod", "numa_node", true)
	m.Bounded("container", "physical_cpu", false)
	m.CPUsPinned(nil)
	m.CPUsPinned(errors.New("no"))
	m.MemoryPinned(errors.New("no"))
	m.CgroupChanged("create", time.Millisecond)
	for _, method := range []string{"List", "Get", "GetAllocatableResources"} {
		m.PodResourcesAsked(method, errors.New("no"))
	}
	m.NodeReady() // before it registered: another's
	m.NodeRegistering()
	m.NodeRegistered()
	m.NodeReady()
}

// names are the lines that say what a metric is: name, type and, from its
// samples, its labels.
func names(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "# HELP") || strings.Contains(line, "go_") || strings.Contains(line, "process_") && !strings.Contains(line, "process_start") || strings.Contains(line, "promhttp_") {
			continue
		}
		if strings.HasPrefix(line, "# TYPE ") {
			out = append(out, strings.TrimPrefix(line, "# TYPE "))
			continue
		}
		name, _, _ := strings.Cut(line, " ")
		if series, labels, ok := strings.Cut(name, "{"); ok {
			var keys []string
			for _, l := range strings.Split(strings.TrimSuffix(labels, "}"), ",") {
				if key, _, ok := strings.Cut(l, "="); ok && key != "le" {
					keys = append(keys, key)
				}
			}
			if len(keys) > 0 {
				out = append(out, series+"{"+strings.Join(keys, ",")+"}")
			}
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), "\n") + "\n"
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Error(diff)
	}
}

func TestNamesOfMetrics(t *testing.T) {
	m := newMetrics(t, nil, nil)
	tell(m)
	golden(t, "metrics.txt", names(scrape(t, m, "/metrics")))
	golden(t, "cadvisor.txt", names(scrape(t, m, "/metrics/cadvisor")))
	golden(t, "probes.txt", names(scrape(t, m, "/metrics/probes")))
	golden(t, "slis.txt", names(scrape(t, m, "/metrics/slis")))
	golden(t, "resource.prom", scrape(t, m, "/metrics/resource")) // all of it: metrics-server reads it
}

func has(t *testing.T, text string, lines ...string) {
	t.Helper()
	all := strings.Split(text, "\n")
	for _, line := range lines {
		if !slices.Contains(all, line) {
			t.Errorf("there is no line %s", line)
		}
	}
}

func TestValuesOfMetrics(t *testing.T) {
	m := newMetrics(t, nil, nil)
	tell(m)
	has(t, scrape(t, m, "/metrics"),
		`kubelet_pod_start_duration_seconds_count 1`, `kubelet_terminated_containers_total{container_type="init_container",exit_code="0",reason="Completed"} 1`,
		`kubelet_started_containers_total{container_type="init_container"} 1`, `kubelet_started_containers_errors_total{code="RunContainerError",container_type="init_container"} 1`,
		`kubelet_started_containers_total{container_type="container"} 1`, `kubelet_pod_worker_duration_seconds_sum{operation_type="create"} 1`,
		`kubelet_pod_start_total_duration_seconds_bucket{le="10"} 0`, `kubelet_pod_start_total_duration_seconds_bucket{le="20"} 1`,
		`kubelet_pod_start_sli_duration_seconds_bucket{le="5"} 0`, `kubelet_pod_start_sli_duration_seconds_bucket{le="6"} 1`, // of 10 s, 2 for images and 3 for the init container
		`kubelet_image_pull_duration_seconds_bucket{image_size_in_bytes="10MB-100MB",le="5"} 1`,
		`kubelet_image_volume_requested_total 3`, `kubelet_image_volume_mounted_succeed_total 2`, `kubelet_image_volume_mounted_errors_total 1`,
		`kubelet_container_requested_resizes_total{operation="add",requirement="limits",resource="cpu"} 1`,
		`kubelet_pod_resize_duration_milliseconds_sum{success="true"} 20`, `kubelet_pod_pending_resizes{reason="deferred"} 1`, `kubelet_pod_in_progress_resizes 1`,
		`kubelet_managed_ephemeral_containers 2`, `kubelet_evictions{eviction_signal="memory.available"} 1`, `kubelet_preemptions{preemption_signal="cpu"} 1`,
		`kubelet_pleg_relist_duration_seconds_count 2`, `kubelet_pleg_relist_interval_seconds_sum 60`, `kubelet_evented_pleg_connection_success_count 1`,
		`kubelet_cpu_manager_pinning_requests_total 2`, `kubelet_cpu_manager_pinning_errors_total 1`, `kubelet_cpu_manager_shared_pool_size_millicores 3000`,
		`kubelet_pod_resources_endpoint_requests_total{server_api_version="v1"} 3`, `kubelet_pod_resources_endpoint_errors_get{server_api_version="v1"} 1`,
		`kubernetes_feature_enabled{name="SidecarContainers",stage=""} 1`, `kubernetes_feature_enabled{name="MemoryQoS",stage="ALPHA"} 0`,
		`kubelet_running_pods 1`, `kubelet_running_containers{container_state="running"} 2`, `kubelet_running_containers{container_state="exited"} 1`,
		`kubelet_desired_pods{static=""} 3`, `kubelet_desired_pods{static="true"} 1`, `kubelet_active_pods{static=""} 2`, `kubelet_mirror_pods 1`,
		`kubelet_node_name{node="n1"} 1`, `kubelet_volume_stats_used_bytes{namespace="default",persistentvolumeclaim="db"} 1`,
		`kubelet_volume_stats_health_status_abnormal{namespace="default",persistentvolumeclaim="db"} 1`,
		`kubelet_runtime_operations_total{operation_type="run_podsandbox"} 2`, `kubelet_runtime_operations_errors_total{operation_type="run_podsandbox"} 1`,
		`kubelet_runtime_operations_total{operation_type="list_containers"} 1`, `kubelet_started_pods_total 2`, `kubelet_started_pods_errors_total 1`,
		`kubelet_run_podsandbox_errors_total{runtime_handler=""} 1`, `kubelet_http_requests_total{long_running="false",method="GET",path="pods",server_type="readwrite"} 1`,
		`kubelet_http_inflight_requests{long_running="false",method="GET",path="pods",server_type="readwrite"} 0`,
		`kubelet_certificate_manager_server_ttl_seconds +Inf`, `kubelet_websocket_streaming_requests_total{subresource="exec"} 1`, `kubelet_metrics_provider{provider="cri"} 1`,
	)
	if text := scrape(t, m, "/metrics"); !strings.Contains(text, `kubernetes_build_info{build_date="",compiler="gc",git_commit="abc",git_tree_state="",git_version="v1.36.3",go_version="go`) || !strings.Contains(text, `major="1",minor="36"`) {
		t.Error("no build info")
	}
	has(t, scrape(t, m, "/metrics/slis"), `kubernetes_healthcheck{name="ping",type="healthz"} 1`, `kubernetes_healthcheck{name="syncloop",type="healthz"} 0`,
		`kubernetes_healthchecks_total{name="syncloop",status="error",type="healthz"} 1`)
	has(t, scrape(t, m, "/metrics/cadvisor"), `container_scrape_error 0`,
		`container_cpu_usage_seconds_total{container="app",cpu="total",id="/kubepods/podu1/c1",image="nginx",name="c1",namespace="default",pod="web"} 7.25 1764288001000`, // the statistics' own
		`container_cpu_usage_seconds_total{container="",cpu="total",id="/kubepods/podu1",image="",name="sb",namespace="default",pod="web"} 9 1764288000000`)
}

func TestAFailingRuntimeShowsInTheScrapeErrors(t *testing.T) {
	m := newMetrics(t, errors.New("gone"), errors.New("gone"))
	has(t, scrape(t, m, "/metrics/resource"), "resource_scrape_error 1")
	has(t, scrape(t, m, "/metrics/cadvisor"), "container_scrape_error 1")
	has(t, scrape(t, m, "/metrics"), `kubelet_node_name{node="n1"} 1`)
}

func TestProbesOfAPodThatIsGoneAreForgotten(t *testing.T) {
	m := newMetrics(t, nil, nil)
	tell(m)
	has(t, scrape(t, m, "/metrics/probes"), `prober_probe_total{container="app",namespace="default",pod="web",pod_uid="u1",probe_type="Liveness",result="failed"} 1`,
		`prober_probe_duration_seconds_count{container="app",namespace="default",pod="web",probe_type="Readiness"} 1`)
	m.Forget(testPod())
	if text := scrape(t, m, "/metrics/probes"); strings.Contains(text, "prober_probe") {
		t.Error(text)
	}
}

func TestMetricsAsProtobuf(t *testing.T) {
	m := newMetrics(t, nil, nil)
	r := httptest.NewRequest("GET", "/metrics/resource", nil)
	r.Header.Set("Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited")
	w := httptest.NewRecorder()
	m.Handlers()["/metrics/resource"].ServeHTTP(w, r)
	found := map[string]bool{}
	for {
		var f dto.MetricFamily
		err := protodelim.UnmarshalFrom(w.Body, &f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[f.GetName()] = true
	}
	if !found["container_cpu_usage_seconds_total"] || !found["node_memory_working_set_bytes"] {
		t.Errorf("%v", found)
	}
}

func TestTheInterceptorCounts(t *testing.T) {
	m := newMetrics(t, nil, nil)
	err := m.Interceptor()(t.Context(), "/runtime.v1.RuntimeService/Version", nil, nil, nil, func(context.Context, string, any, any, *grpc.ClientConn, ...grpc.CallOption) error {
		return errors.New("no")
	})
	if err == nil {
		t.Error("the error is lost")
	}
	has(t, scrape(t, m, "/metrics"), `kubelet_runtime_operations_errors_total{operation_type="version"} 1`)
}

func TestRequestsToTheAPIServerAreCounted(t *testing.T) {
	m := newMetrics(t, nil, nil)
	m.ObserveClients()
	u := url.URL{Host: "api:6443"}
	metrics.RequestResult.Increment(t.Context(), "200", "GET", u.Host)
	metrics.RequestLatency.Observe(t.Context(), "GET", u, time.Second)
	metrics.RequestRetry.IncrementRetry(t.Context(), "429", "GET", u.Host)
	metrics.ResponseSize.Observe(t.Context(), "GET", u.Host, 100)
	has(t, scrape(t, m, "/metrics"), `rest_client_requests_total{code="200",host="api:6443",method="GET"} 1`,
		`rest_client_request_duration_seconds_count{host="api:6443",verb="GET"} 1`, `rest_client_request_retries_total{code="429",host="api:6443",verb="GET"} 1`)
}
