package workloads

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/images"
)

//go:embed metrics-server.yaml
var metricsServer string

const metricsServerImage = "registry.test/metrics-server:1"

func TestNodeShowsWhatPodsUseAsMetricsServerReadsIt(t *testing.T) {
	s := newSpace(t)
	s.pod("busy", `nodeName: n1`, `containers: [{name: box, image: $BOX, command: [testbox, burn, -cpu=0], resources: {limits: {cpu: 100m, memory: 32Mi}}}]`)
	labels := `container="box",namespace="` + s.ns + `",pod="busy"`
	value := func(metrics, name string) (float64, error) {
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)(?: \d{13})?$`).FindStringSubmatch(metrics)
		if m == nil {
			return 0, fmt.Errorf("there is no %s", name)
		}
		return strconv.ParseFloat(m[1], 64)
	}
	s.eventually(func() error {
		metrics, err := s.try("get", "--raw", "/api/v1/nodes/n1/proxy/metrics/resource")
		if err != nil {
			return err
		}
		for name, least := range map[string]float64{
			"container_cpu_usage_seconds_total{" + labels + "}":                 0.1,
			"container_memory_working_set_bytes{" + labels + "}":                1,
			"container_start_time_seconds{" + labels + "}":                      1e9,
			`pod_cpu_usage_seconds_total{namespace="` + s.ns + `",pod="busy"}`:  0.1,
			`pod_memory_working_set_bytes{namespace="` + s.ns + `",pod="busy"}`: 1,
			"node_cpu_usage_seconds_total":                                      0.1,
			"node_memory_working_set_bytes":                                     1 << 20,
		} {
			got, err := value(metrics, name)
			if err != nil {
				return err
			}
			if got < least {
				return fmt.Errorf("%s is %v, want at least %v", name, got, least)
			}
		}
		failed, err := value(metrics, "resource_scrape_error")
		if err == nil && failed != 0 {
			err = fmt.Errorf("resource_scrape_error is %v", failed)
		}
		return err
	})
}

func TestAutoscalerFollowsTheCPUAndTopShowsIt(t *testing.T) {
	if shared != nil {
		if _, err := os.Stat(filepath.Join(shared.Config.Bin, "peers", "metrics-server")); err != nil {
			if strings.Contains(os.Getenv("BERTH_TEST_REQUIRE"), "metrics-server") {
				t.Fatalf("%v (made by: make metrics-server)", err)
			}
			t.Skipf("%v (made by: make metrics-server)", err)
		}
	}
	s := newSpace(t)
	b := &images.Builder{Peers: filepath.Join(shared.Config.Bin, "peers")}
	img, err := b.MetricsServer()
	if err != nil {
		t.Fatal(err)
	}
	if err := shared.Registry.PushReference(metricsServerImage, img); err != nil {
		t.Fatal(err)
	}
	// It has a role in another namespace as well.
	if out, err := shared.Kubectl(s.ctx, "apply", "-f", s.file("metrics-server.yaml", strings.ReplaceAll(metricsServer, "NAMESPACE", s.ns))); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	// Namespaces are not removed while an API is not served.
	t.Cleanup(func() { s.kubectl("delete", "apiservice", "v1beta1.metrics.k8s.io") })
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy}
spec:
  selector: {matchLabels: {app: busy}}
  template:
    metadata: {labels: {app: busy}}
    spec: {containers: [{name: box, image: $BOX, command: [testbox, burn, -cpu=0], resources: {requests: {cpu: 50m}, limits: {cpu: 100m}}}]}
`)
	s.kubectl("autoscale", "deployment", "busy", "--cpu=50%", "--min=1", "--max=3")
	s.kubectl("rollout", "status", "deployment/metrics-server", wait)
	s.kubectl("wait", "--for=condition=Available", "apiservice/v1beta1.metrics.k8s.io", wait)
	s.eventually(func() error {
		out, err := s.try("top", "pods", "-l", "app=busy", "--no-headers")
		if err == nil && !regexp.MustCompile(`(?m)^busy-\S+ +([1-9]\d+)m +\d+Mi`).MatchString(out) {
			err = fmt.Errorf("kubectl top pods shows %q", out)
		}
		return err
	})
	s.eventually(func() error { // each node is asked when its turn comes
		out, err := s.try("top", "nodes", "--no-headers")
		if err == nil && !regexp.MustCompile(`(?m)^n1 +\d+m +\d+% +\d+Mi +\d+%`).MatchString(out) {
			err = fmt.Errorf("kubectl top nodes shows %q", out)
		}
		return err
	})
	s.want("deployment/busy", ".spec.replicas", "3")
	s.kubectl("rollout", "status", "deployment/busy", wait)
	s.want("hpa/busy", ".status.conditions[?(@.type=='ScalingActive')].reason", "ValidMetricFound")
}
