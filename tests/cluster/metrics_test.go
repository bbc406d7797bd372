package cluster_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
)

// counted is what moves the metrics of the node n1: a pod of which everything
// goes well, one that fills more of a volume than it may, and two of which only
// one has room, and the second is critical.
const counted = `apiVersion: v1
kind: Pod
metadata: {name: well}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  initContainers:
  - {name: first, image: registry.test/box:1, imagePullPolicy: Always, command: ["true"]}
  containers:
  - name: app
    image: registry.test/box:1
    command: [sh, -c, 'exec sleep 3600']
    livenessProbe: {exec: {command: ["true"]}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: full}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: registry.test/box:1
    command: [sh, -c, 'dd if=/dev/zero of=/data/x bs=1M count=4; exec sleep 3600']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - {name: data, emptyDir: {sizeLimit: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: large}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: registry.test/box:1
    command: [sh, -c, 'exec sleep 3600']
    resources: {requests: {cpu: %[1]dm}}
`

const critical = `apiVersion: v1
kind: Pod
metadata: {name: critical, namespace: kube-system}
spec:
  nodeName: n1
  priorityClassName: system-node-critical
  terminationGracePeriodSeconds: 0
  containers:
  - name: app
    image: registry.test/box:1
    command: [sh, -c, 'exec sleep 3600']
    resources: {requests: {cpu: %[1]dm}}
`

// moved are series that have a value above zero by then.
var moved = []string{
	`kubelet_pod_start_duration_seconds_count`, `kubelet_pod_start_sli_duration_seconds_count`, `kubelet_pod_start_total_duration_seconds_count`,
	`kubelet_pod_worker_duration_seconds_count{operation_type="create"}`, `kubelet_pod_worker_start_duration_seconds_count`,
	`kubelet_pod_status_sync_duration_seconds_count`, `kubelet_containers_per_pod_count_count`,
	`kubelet_running_pods`, `kubelet_running_containers{container_state="running"}`, `kubelet_desired_pods{static=""}`,
	`kubelet_image_pull_duration_seconds_count{image_size_in_bytes="0-10MB"}`,
	`kubelet_started_containers_total{container_type="container"}`, `kubelet_started_containers_total{container_type="init_container"}`,
	`kubelet_terminated_containers_total{container_type="init_container",exit_code="0",reason="Completed"}`,
	`kubelet_evictions{eviction_signal="emptydirfs.limit"}`, `kubelet_preemptions{preemption_signal="cpu"}`,
	`kubelet_runtime_operations_total{operation_type="run_podsandbox"}`, `kubelet_runtime_operations_duration_seconds_count{operation_type="start_container"}`,
	`kubelet_run_podsandbox_duration_seconds_count{runtime_handler=""}`, `kubelet_started_pods_total`,
	`kubelet_pleg_relist_duration_seconds_count`, `kubelet_pleg_last_seen_seconds`, `kubelet_pleg_pod_relist_duration_seconds_count`,
	`kubelet_evented_pleg_connection_success_count`, `kubelet_evented_pleg_connection_latency_seconds_count`,
	`kubelet_node_startup_duration_seconds`, `kubelet_node_startup_registration_duration_seconds`, `kubelet_node_startup_post_registration_duration_seconds`,
	`kubelet_cgroup_manager_duration_seconds_count{operation_type="create"}`, `kubelet_topology_manager_admission_requests_total`,
	`kubelet_certificate_manager_client_ttl_seconds`, `kubelet_working_pods{config="desired",lifecycle="sync",static=""}`,
	`kubelet_image_manager_ensure_image_requests_total{present_locally="true",pull_policy="ifnotpresent",pull_required="false"}`,
	`kubelet_image_manager_ensure_image_requests_total{present_locally="unknown",pull_policy="always",pull_required="true"}`,
	`kubelet_imagemanager_image_mustpull_checks_total{result="credentialRecordFound"}`, `kubelet_imagemanager_ondisk_pulledrecords`,
}

func TestMetricsAreTheKubeletsAndMove(t *testing.T) {
	cluster.Need(t, cluster.Berth, cluster.Stock)
	rotating := map[string]any{"rotateCertificates": true} // otherwise there is nothing to tell of certificates
	c := cluster.New(t, cluster.Config{Nodes: []cluster.NodeConfig{{Kind: cluster.Berth, Kubelet: rotating}, {Kind: cluster.Stock, Kubelet: rotating}}})
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	try := func(args ...string) (string, error) { return c.Kubectl(ctx, args...) }
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := try(args...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.TrimSpace(out)
	}
	apply := func(name, content string) string {
		t.Helper()
		path := t.TempDir() + "/" + name
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		kubectl("apply", "-f", path)
		return path
	}
	most := 700 * cpusOf(t, kubectl("get", "node", "n1", "-o", "jsonpath={.status.allocatable.cpu}"))
	first := apply("pods.yaml", fmt.Sprintf(counted, most)+fmt.Sprintf(pod, "n2"))
	kubectl("wait", "--for=condition=Ready", "--timeout=60s", "pod/well", "pod/large", "pod/web-n2")
	second := apply("critical.yaml", fmt.Sprintf(critical, most))
	kubectl("wait", "--for=condition=Ready", "--timeout=60s", "-n", "kube-system", "pod/critical")

	scrape := func(node, path string) string { return kubectl("get", "--raw", "/api/v1/nodes/"+node+"/proxy"+path) }
	harness.Eventually(t, time.Minute, "what happened is counted", func() string {
		text := scrape("n1", "/metrics")
		var still []string
		for _, series := range moved {
			if value(text, series) <= 0 {
				still = append(still, series)
			}
		}
		return strings.Join(still, "\n")
	})
	for _, path := range []string{"/metrics", "/metrics/resource", "/metrics/probes", "/metrics/slis"} {
		berth, stock := families(scrape("n1", path)), families(scrape("n2", path))
		for _, name := range slices.Sorted(maps.Keys(stock)) {
			if _, served := berth[name]; !served && !notServed(name) && name != ofTheHost {
				t.Errorf("%s: the kubelet has %s (%s), and Berth has not", path, name, stock[name])
			}
			if mine, served := berth[name]; served && mine != stock[name] {
				t.Errorf("%s: %s is %s, the kubelet's is %s", path, name, mine, stock[name])
			}
		}
		for _, name := range slices.Sorted(maps.Keys(berth)) {
			if notServed(name) {
				t.Errorf("%s: %s is served, and said not to be", path, name)
			}
		}
	}
	kubectl("delete", "-f", first, "-f", second)
	c.CheckNothingLeft(t)
}

// absent are names, and beginnings of names, of metrics that the kubelet has for
// what a Berth node does not do, or does otherwise (docs/agent/api.md).
var absent = []string{
	// The machinery of Kubernetes' own metrics, and parts of the API server that
	// the kubelet is linked with.
	"aggregator_*", "apiserver_*", "authentication_*", "authorization_*", "cardinality_*", "disabled_metrics_total", "hidden_metrics_total", "registered_metrics_total",
	"field_validation_*", "get_token_*", "x509_*",
	// Queues of the kubelet's certificate authorities: Berth reads the files.
	"workqueue_*",
	// client-go's exec plugins, and how it keeps its connections.
	"rest_client_exec_plugin_*", "rest_client_transport_*", "rest_client_dns_*",
	// Volumes are set up by the pod's worker, which has no actual state of the
	// world to reconstruct, no operations that are forced, and no sweep for orphans.
	"force_cleaned_*", "reconstruct_volume_*", "storage_operation_*", "volume_manager_*", "volume_operation_*", "csi_operations_*",
	"kubelet_volume_metric_collection_duration_seconds", "kubelet_orphan_pod_cleaned_*",
	// Events of the runtime are never dropped, and nobody watches pods at the node.
	"kubelet_pleg_discard_events", "kubelet_pod_watch_events_dropped_total",
	// Records of pulls are read from the disk, which needs no copy in memory.
	"kubelet_imagemanager_inmemory_*",
	// Nobody tells the agent yet that the host goes down.
	"kubelet_graceful_shutdown_*",
}

// ofTheHost is there on a node that has what it tells of: here swap, which the
// kubelet also sees where none is configured.
const ofTheHost = "container_swap_limit_bytes"

func notServed(name string) bool {
	return slices.ContainsFunc(absent, func(a string) bool {
		beginning, cut := strings.CutSuffix(a, "*")
		return name == a || cut && strings.HasPrefix(name, beginning)
	})
}

// families are the metrics of a scrape, with how stable the kubelet calls them.
func families(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, "# HELP "); found {
			name, help, _ := strings.Cut(rest, " ")
			stability, _, _ := strings.Cut(strings.TrimPrefix(help, "["), "]")
			if !strings.HasPrefix(help, "[") {
				stability = "no stability"
			}
			all[name] = stability
		}
	}
	return all
}

// value of a series; zero if there is none.
func value(text, series string) float64 {
	for line := range strings.Lines(text) {
		if rest, found := strings.CutPrefix(line, series+" "); found {
			n, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

func cpusOf(t *testing.T, quantity string) int {
	t.Helper()
	if milli, found := strings.CutSuffix(quantity, "m"); found {
		quantity = milli[:max(0, len(milli)-3)]
	}
	n, err := strconv.Atoi(quantity)
	if err != nil || n == 0 {
		t.Fatalf("the node has %q CPUs", quantity)
	}
	return n
}
