package cluster_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
)

// pods has a web server on each node, which says its host's name, and a service
// of both.
const pods = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
`

const pod = `---
apiVersion: v1
kind: Pod
metadata: {name: web-%[1]s, labels: {app: web}}
spec:
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: registry.test/box:1
    command: [sh, -c, 'mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www']
    readinessProbe: {httpGet: {port: 80}, periodSeconds: 1, timeoutSeconds: 10}
`

func TestPodsOfABerthAndAStockNodeReachEachOther(t *testing.T) {
	cluster.Need(t, cluster.Berth, cluster.Stock)
	c := cluster.New(t, cluster.Config{Nodes: []cluster.NodeConfig{{Kind: cluster.Berth}, {Kind: cluster.Stock}}})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	kubectl := func(t *testing.T, args ...string) string {
		t.Helper()
		out, err := c.Kubectl(ctx, args...)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.TrimSpace(out)
	}
	manifest := t.TempDir() + "/pods.yaml"
	if err := os.WriteFile(manifest, []byte(pods+fmt.Sprintf(pod, "n1")+fmt.Sprintf(pod, "n2")), 0o644); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-f", manifest)
	kubectl(t, "wait", "--for=condition=Ready", "--timeout=3m", "pod/web-n1", "pod/web-n2")
	for from, to := range map[string]string{"n1": "n2", "n2": "n1"} {
		t.Run("from "+from, func(t *testing.T) {
			address := kubectl(t, "get", "pod", "web-"+to, "-o", "jsonpath={.status.podIP}")
			if got := kubectl(t, "exec", "web-"+from, "--", "testbox", "get", "http://"+address); got != "web-"+to {
				t.Errorf("the pod on %s says %q", to, got)
			}
			// A node hears of the service's pods when it does.
			answers := map[string]bool{}
			harness.Eventually(t, 2*time.Minute, "both pods answer for the service", func() string {
				out, err := c.Kubectl(ctx, "exec", "web-"+from, "--", "testbox", "get", "http://web.default.svc.cluster.local")
				if err != nil {
					return err.Error()
				}
				answers[strings.TrimSpace(out)] = true
				if !answers["web-n1"] || !answers["web-n2"] {
					return fmt.Sprintf("answers: %v", answers)
				}
				return ""
			})
		})
	}
	kubectl(t, "delete", "-f", manifest)
	c.CheckNothingLeft(t)
	t.Run("a cluster that is gone leaves nothing on the machine", func(t *testing.T) {
		if err := cluster.Down(c.Config.Name); err != nil {
			t.Fatal(err)
		}
		left, err := cluster.Left(c.Config.Name)
		if err != nil {
			t.Fatal(err)
		}
		if len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
	})
}
