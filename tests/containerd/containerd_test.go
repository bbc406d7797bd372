// Package containerd runs the agent alone on a stock containerd: what it does
// to pods goes through the CRI only, whoever serves it.
package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/stock"
)

const pauseImage = harness.Registry + "/pause:1"

// The pod has what the agent and the runtime make together: a network, probes,
// volumes, an init container, and a container that ends and is started again.
const manifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: smoke}
data: {key: value}
---
apiVersion: v1
kind: Pod
metadata: {name: smoke}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: init
    image: $BOX
    command: [sh, -c, 'cat /map/key >/v/index.html']
    volumeMounts: [{name: v, mountPath: /v}, {name: map, mountPath: /map}]
  containers:
  - name: web
    image: $BOX
    command: [sh, -c, 'trap "exit 0" TERM; httpd -p 8080 -h /v; echo serving; sleep 100000 & wait']
    readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}
    livenessProbe: {exec: {command: [cat, /v/index.html]}, periodSeconds: 1, timeoutSeconds: 10}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts: [{name: v, mountPath: /v}]
  - name: short
    image: $BOX
    command: [testbox, exit, --after, 500ms, --code, "7"]
  volumes:
  - {name: v, emptyDir: {medium: Memory}}
  - {name: map, configMap: {name: smoke}}
`

func TestAgentRunsAPodOnContainerd(t *testing.T) { runsAPod(t, true) }

// What containers do is then seen by asking every second.
func TestAgentRunsAPodOnARuntimeWithoutEvents(t *testing.T) { runsAPod(t, false) }

func runsAPod(t *testing.T, events bool) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.NewNode(t, harness.Options{
		Amend: func(c *harness.Config) {
			c.Roles, c.CRISocket = []string{"agent"}, filepath.Join(c.RunDir, "containerd.sock")
			if !events {
				c.CRISocket = filepath.Join(c.RunDir, "eventless.sock")
			}
		},
		MoreImages: func(n *harness.Node) error {
			img, err := n.Builder().Pause()
			if err != nil {
				return err
			}
			return n.Registry.PushReference(pauseImage, img)
		},
	})
	bin := filepath.Join(n.Bin, "peers")
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "runc", "bridge", "host-local", "loopback", "portmap"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			if strings.Contains(os.Getenv("BERTH_TEST_REQUIRE"), "containerd") {
				t.Fatalf("%v (make containerd builds it)", err)
			}
			t.Skipf("%v: make containerd builds it, from the Go module github.com/containerd/containerd", err)
		}
	}
	c := stock.StartContainerd(t, n, bin, pauseImage)
	var proxy *eventless
	if !events {
		proxy = serveEventless(t, filepath.Join(filepath.Dir(c.Socket), "eventless.sock"), c.Socket)
	}
	n.Start()
	smoke := n.Apply(t, "smoke", strings.ReplaceAll(manifest, "$BOX", harness.Box))
	web := func(p corev1.Pod) corev1.ContainerStatus {
		s, _ := harness.Container(p, "web")
		return s
	}
	before := smoke.Wait("has a server that is ready, and a container that was started again", func(p corev1.Pod) string {
		short, _ := harness.Container(p, "short")
		last := short.LastTerminationState.Terminated
		switch {
		case !web(p).Ready:
			return "the server is not ready"
		case last == nil || short.RestartCount == 0:
			return "the other was not started again"
		case last.ExitCode != 7 || last.Reason != "Error":
			t.Fatalf("it ended with %d %s", last.ExitCode, last.Reason)
		}
		return ""
	})
	if !strings.HasPrefix(web(before).ContainerID, "containerd://") {
		t.Errorf("the container is %s", web(before).ContainerID)
	}
	if log := smoke.WaitLog("web", "\n"); log != "serving\n" {
		t.Errorf("the log is %q", log)
	}
	if log := n.MustCLI("logs", "smoke", "-c", "web"); log != "serving\n" {
		t.Errorf("the command line says that the log is %q", log)
	}
	if got := n.MustCLI("exec", "smoke", "-c", "web", "--", "wget", "-qO-", "http://"+before.Status.PodIP+":8080/"); got != "value" {
		t.Errorf("the server says %q", got)
	}

	n.Kill()
	n.Start()
	after := smoke.Wait("is known again", func(p corev1.Pod) string {
		if !web(p).Ready {
			return "the server is not ready"
		}
		return ""
	})
	if was, is := web(before), web(after); is.ContainerID != was.ContainerID || is.RestartCount != was.RestartCount {
		t.Errorf("the server was %s, restarts %d; after the agent was killed it is %s, restarts %d",
			was.ContainerID, was.RestartCount, is.ContainerID, is.RestartCount)
	}

	if proxy != nil {
		if proxy.refused.Load() == 0 || proxy.lists.Load() < 5 {
			t.Errorf("events were asked for %d times, and sandboxes %d times", proxy.refused.Load(), proxy.lists.Load())
		}
		proxy.learned.Store(true)
		harness.Eventually(t, harness.PodTimeout, "the runtime's events are followed", func() string {
			if proxy.followed.Load() == 0 {
				return "they are not asked for"
			}
			return ""
		})
		time.Sleep(time.Second) // the list that comes with it
		before := proxy.lists.Load()
		time.Sleep(5 * time.Second)
		if got := proxy.lists.Load() - before; got > 2 {
			t.Errorf("sandboxes were asked for %d times in five seconds although events tell of them", got)
		}
	}
	smoke.Delete()
	client := harness.DialCRI(t, c.Socket)
	harness.Eventually(t, harness.PodTimeout, "the runtime has nothing of the pod", func() string {
		containers, err := client.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err.Error()
		}
		sandboxes, err := client.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err.Error()
		}
		if len(containers.Containers) > 0 || len(sandboxes.Items) > 0 {
			return containers.String() + sandboxes.String()
		}
		return ""
	})
	harness.Eventually(t, harness.PodTimeout, "nothing else is left of the pod", func() string {
		for _, dir := range []string{n.Config.KubeletDir + "/pods", n.Config.PodLogsDir} {
			if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
				return fmt.Sprintf("%s has %v, %v", dir, left, err)
			}
		}
		if pods, err := filepath.Glob("/sys/fs/cgroup/*" + n.Config.CgroupRoot + "/kubepods/*/pod*"); len(pods) > 0 || err != nil {
			return fmt.Sprintf("cgroups are left: %v, %v", pods, err)
		}
		return ""
	})
	n.Stop()
}
