package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourceapi "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/dradriver"
	"github.com/berth-io/berth/tests/harness"
)

// lanes are nodes that die side by side.
const lanes = 3

const namespace = corev1.NamespaceDefault

// What a node with an API server does beside: it registers, reports, shows its
// static pods, keeps volumes of the API's objects up to date, gets tokens,
// records its pulls, has a claim's device prepared, and resizes.
const apiManifest = `apiVersion: v1
kind: Pod
metadata: {name: $NAME}
spec:
  nodeName: $NODE
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  initContainers:
  - name: init
    image: $BOX
    imagePullPolicy: Always
    command: [sh, -c, 'echo init >> /out/runs']
    volumeMounts: [{name: out, mountPath: /out}]
  containers:
  - name: server
    image: $BOX
    imagePullPolicy: Always
    command: [sh, -c, 'echo server >> /out/runs; exec testbox serve --http :8080']
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    volumeMounts: [{name: out, mountPath: /out}, {name: map, mountPath: /map}]
  - name: short
    image: $BOX
    imagePullPolicy: Always
    command: [sh, -c, 'echo short >> /out/runs; exec testbox exit --after 200ms --code 7 --message done']
    volumeMounts: [{name: out, mountPath: /out}]
  volumes:
  - {name: out, hostPath: {path: $OUT, type: DirectoryOrCreate}}
  - {name: map, configMap: {name: $NAME}}
`

// The API server lets no pod be resized that has a claim: it is another's.
const claimManifest = `apiVersion: v1
kind: Pod
metadata: {name: $NAME-claim}
spec:
  nodeName: $NODE
  restartPolicy: Never
  terminationGracePeriodSeconds: 5
  resourceClaims: [{name: device, resourceClaimName: $NAME}]
  containers:
  - name: claim
    image: $BOX
    command: [sh, -c, 'echo claim $DEVICE_ONE >> /out/runs; exec testbox serve --http :8080']
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    resources: {claims: [{name: device}]}
    volumeMounts: [{name: out, mountPath: /out}]
  volumes:
  - {name: out, hostPath: {path: $OUT, type: DirectoryOrCreate}}
`

const staticManifest = `apiVersion: v1
kind: Pod
metadata: {name: static}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: static
    image: $BOX
    imagePullPolicy: Always
    command: [sh, -c, 'echo static >> /out/runs; exec testbox serve --http :8080']
    volumeMounts: [{name: out, mountPath: /out}]
  volumes:
  - {name: out, hostPath: {path: $OUT, type: DirectoryOrCreate}}
`

// others are failpoints that TestDaemonKilledAtEachFailpoint has died at: they
// do not ask where a pod came from.
func others(p point) bool {
	return !strings.HasPrefix(p.name, "agent/") || slices.Contains([]string{
		"agent/manifest-accepted", "agent/cgroup-made", "agent/cgroup-removed", "agent/volumes-up", "agent/volumes-down",
		"agent/directory-removed", "agent/sandbox-made", "agent/sandbox-stopped", "agent/sandbox-removed",
		"agent/container-created", "agent/container-started", "agent/container-stopped", "agent/container-removed", "agent/container-files-removed",
	}, p.name)
}

func TestAgentOfAClusterKilledAtEachFailpoint(t *testing.T) {
	cluster.Need(t, cluster.Berth)
	config := cluster.Config{NoDNS: true}
	for range lanes {
		config.Nodes = append(config.Nodes, cluster.NodeConfig{Kind: cluster.Berth, Bin: harness.FailpointBin(t)})
	}
	c := cluster.New(t, config)
	free := make(chan *cluster.Node, lanes)
	for _, n := range c.Nodes {
		stop(t, n)
		free <- n
	}
	n := c.Nodes[0]
	traced := filepath.Join(c.Dir, "trace")
	newLane(t, c, n).live("BERTH_FAILPOINT_TRACE=" + traced)
	points := slices.DeleteFunc(passed(t, traced), others)
	t.Logf("%d failpoints to die at: %v", len(points), points)
	if len(points) < 10 {
		t.Fatalf("only %d failpoints were passed", len(points))
	}
	t.Run("at", func(t *testing.T) {
		for _, p := range points {
			t.Run(p.test(), func(t *testing.T) {
				t.Parallel()
				n := <-free
				defer func() { free <- n }()
				if died := newLane(t, c, n).live("BERTH_FAILPOINT=" + p.String()); !died && p.n == 1 {
					t.Errorf("the pods came and went without passing %s", p.name)
				} else if !died {
					t.Logf("not passed %d times this time", p.n)
				}
			})
		}
	})
}

func stop(t *testing.T, n *cluster.Node) {
	t.Helper()
	if err := n.Stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// lane is the life of a pod and a static pod on one node.
type lane struct {
	*cluster.Cluster
	t    *testing.T
	n    *cluster.Node
	name string // of the pod, its ConfigMap and its ResourceClaim
	out  string // where its containers write
}

func newLane(t *testing.T, c *cluster.Cluster, n *cluster.Node) *lane {
	return &lane{Cluster: c, t: t, n: n, name: "crash-" + n.Name, out: filepath.Join(n.Dir, "out")}
}

// live starts the node's agent, has the pods come, change and go, and tells
// whether the agent died meanwhile. It is started again then, as a service
// manager would. At the end the node has no agent.
func (l *lane) live(env string) (died bool) {
	l.t.Helper()
	if err := errors.Join(os.RemoveAll(l.out), l.n.Start(env)); err != nil {
		l.t.Fatal(err)
	}
	driver, err := dradriver.Start(l.t.Context(), dradriver.Config{
		Name: l.name + ".berth.test", Node: l.n.Name, KubeletDir: l.n.KubeletDir(), CDIDir: "/var/run/cdi", Devices: []string{"red"}, Client: l.Client,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = driver.Stop() }() // for when the test fails
	l.removeDevices(driver)              // of a test that failed before
	over, watched := make(chan struct{}), make(chan error)
	go func() {
		var err error
		died, err = l.restart(over)
		watched <- err
	}()
	defer func() {
		close(over)
		if err := <-watched; err != nil {
			l.t.Errorf("start the agent again: %v", err)
		}
		stop(l.t, l.n)
	}()
	l.create()
	before := l.waitSettled()
	l.change()
	after := l.waitChanged(before)
	l.checkUntouched(before, after)
	l.remove()
	checkRan(l.t, l.out+"/runs", "claim init red server short static")
	if files, err := driver.CDIFiles(); err != nil || len(files) > 0 {
		l.t.Errorf("the claim is still prepared: %q, %v", files, err)
	}
	if err := driver.Stop(); err != nil {
		l.t.Error(err)
	}
	l.n.CheckNothingLeft(l.t)
	return died
}

func (l *lane) removeDevices(driver *dradriver.Driver) {
	l.t.Helper()
	files, err := driver.CDIFiles()
	if err != nil {
		l.t.Fatal(err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			l.t.Fatal(err)
		}
	}
}

// restart starts the agent once more when it has died at its failpoint.
func (l *lane) restart(over <-chan struct{}) (died bool, err error) {
	for {
		select {
		case <-over:
			return died, nil
		case <-time.After(20 * time.Millisecond):
		}
		if l.n.Running() {
			continue
		}
		if died {
			return true, errors.New("it ended by itself, without a failpoint")
		}
		died = true
		time.Sleep(300 * time.Millisecond) // what ends now ends without an agent to see it
		if err := l.n.Start(); err != nil {
			return true, err
		}
	}
}

func (l *lane) manifest(text string) []byte {
	return []byte(strings.NewReplacer("$NAME", l.name, "$NODE", l.n.Name, "$OUT", l.out, "$BOX", harness.Box).Replace(text))
}

func (l *lane) create() {
	l.t.Helper()
	part := filepath.Join(l.n.ManifestDir(), ".static.part")
	if err := os.WriteFile(part, l.manifest(staticManifest), 0o644); err != nil {
		l.t.Fatal(err)
	}
	if err := os.Rename(part, l.static()); err != nil {
		l.t.Fatal(err)
	}
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: l.name}, Data: map[string]string{"key": "first"}}
	if _, err := l.Client.CoreV1().ConfigMaps(namespace).Create(l.t.Context(), m, metav1.CreateOptions{}); err != nil {
		l.t.Fatal(err)
	}
	l.createClaim()
	for _, text := range []string{apiManifest, claimManifest} {
		var pod corev1.Pod
		if err := yaml.Unmarshal(l.manifest(text), &pod); err != nil {
			l.t.Fatal(err)
		}
		if _, err := l.Client.CoreV1().Pods(namespace).Create(l.t.Context(), &pod, metav1.CreateOptions{}); err != nil {
			l.t.Fatal(err)
		}
	}
}

// createClaim makes a claim that has its device already, as no scheduler looks at
// the pod; that the pod may use it is the controller manager's to say.
func (l *lane) createClaim() {
	l.t.Helper()
	claims := l.Client.ResourceV1().ResourceClaims(namespace)
	claim := &resourceapi.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Name: l.name}, Spec: resourceapi.ResourceClaimSpec{Devices: resourceapi.DeviceClaim{
		Requests: []resourceapi.DeviceRequest{{Name: "one", Exactly: &resourceapi.ExactDeviceRequest{DeviceClassName: "any"}}}}}}
	claim, err := claims.Create(l.t.Context(), claim, metav1.CreateOptions{})
	if err != nil {
		l.t.Fatal(err)
	}
	claim.Status.Allocation = &resourceapi.AllocationResult{Devices: resourceapi.DeviceAllocationResult{Results: []resourceapi.DeviceRequestAllocationResult{
		{Request: "one", Driver: l.name + ".berth.test", Pool: l.n.Name, Device: "red"}}}}
	if _, err := claims.UpdateStatus(l.t.Context(), claim, metav1.UpdateOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lane) static() string   { return filepath.Join(l.n.ManifestDir(), "static.yaml") }
func (l *lane) mirror() string   { return "static-" + l.n.Name }
func (l *lane) claimant() string { return l.name + "-claim" }

// get is what the API says of a pod.
func (l *lane) get(name string) (*corev1.Pod, error) {
	return l.Client.CoreV1().Pods(namespace).Get(l.t.Context(), name, metav1.GetOptions{})
}

// wait waits until check finds nothing missing in what the API says of the pod.
func (l *lane) wait(what string, check func(*corev1.Pod) string) *corev1.Pod {
	l.t.Helper()
	var last *corev1.Pod
	harness.Eventually(l.t, settleTimeout, "pod "+l.name+" "+what, func() string {
		p, err := l.get(l.name)
		if err != nil {
			return err.Error()
		}
		last = p
		if reason := check(p); reason != "" {
			return reason + "; " + harness.Summary(*p)
		}
		return ""
	})
	return last
}

// waitSettled waits for the pod as settled wants it, and for a static pod that
// the API shows to be ready.
func (l *lane) waitSettled() *corev1.Pod {
	l.t.Helper()
	pod := l.wait("is as wanted", func(p *corev1.Pod) string {
		for _, name := range []string{"init", "short"} {
			if s, _ := harness.Container(*p, name); s.State.Terminated == nil {
				return name + " has not ended"
			}
		}
		if s, _ := harness.Container(*p, "server"); !s.Ready {
			return "the server is not ready"
		}
		return ""
	})
	s, _ := harness.Container(*pod, "short")
	if got := s.State.Terminated; got.ExitCode != 7 || got.Reason != "Error" || got.Message != "done" {
		l.t.Errorf("short ended with %d %s %q", got.ExitCode, got.Reason, got.Message)
	}
	for _, name := range []string{l.mirror(), l.claimant()} {
		harness.Eventually(l.t, settleTimeout, name+" is ready in the API", func() string {
			p, err := l.get(name)
			if err != nil {
				return err.Error()
			}
			if !harness.Ready(*p) {
				return harness.Summary(*p)
			}
			return ""
		})
	}
	return pod
}

// change gives the server less CPU, and its ConfigMap another value.
func (l *lane) change() {
	l.t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"containers": []any{map[string]any{
		"name": "server", "resources": map[string]any{
			"limits": map[string]string{"cpu": "250m"}, "requests": map[string]string{"cpu": "250m"},
		},
	}}}})
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.Client.CoreV1().Pods(namespace).Patch(l.t.Context(), l.name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "resize"); err != nil {
		l.t.Fatal(err)
	}
	patch = []byte(`{"data": {"key": "second"}}`)
	if _, err := l.Client.CoreV1().ConfigMaps(namespace).Patch(l.t.Context(), l.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lane) waitChanged(pod *corev1.Pod) *corev1.Pod {
	l.t.Helper()
	file := filepath.Join(l.n.KubeletDir(), "pods", string(pod.UID), "volumes/kubernetes.io~configmap/map/key")
	want := resource.MustParse("250m")
	return l.wait("has changed", func(p *corev1.Pod) string {
		server, _ := harness.Container(*p, "server")
		switch {
		case server.Resources == nil || !server.Resources.Limits.Cpu().Equal(want):
			return fmt.Sprintf("the server has %v", server.Resources)
		case !server.Ready:
			return "the server is not ready"
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodResizeInProgress || c.Type == corev1.PodResizePending {
				return fmt.Sprintf("%s: %s", c.Type, c.Message)
			}
		}
		if data, err := os.ReadFile(file); err != nil || string(data) != "second" {
			return fmt.Sprintf("the volume has %q, %v", data, err)
		}
		return ""
	})
}

// checkUntouched asserts that no container was started anew, and that what has
// ended is told as before.
func (l *lane) checkUntouched(before, after *corev1.Pod) {
	l.t.Helper()
	if before.UID != after.UID || before.Status.PodIP != after.Status.PodIP {
		l.t.Errorf("was %s with %s, is %s with %s", before.UID, before.Status.PodIP, after.UID, after.Status.PodIP)
	}
	for _, name := range []string{"init", "short", "server"} {
		was, _ := harness.Container(*before, name)
		is, _ := harness.Container(*after, name)
		if is.ContainerID != was.ContainerID || is.RestartCount != 0 {
			l.t.Errorf("%s was %s, is %s with %d restarts", name, was.ContainerID, is.ContainerID, is.RestartCount)
		}
	}
}

// remove ends both pods, as their owners would, and waits until the API has
// neither.
func (l *lane) remove() {
	l.t.Helper()
	for _, name := range []string{l.name, l.claimant()} {
		if err := l.Client.CoreV1().Pods(namespace).Delete(l.t.Context(), name, metav1.DeleteOptions{}); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := os.Remove(l.static()); err != nil {
		l.t.Fatal(err)
	}
	for _, name := range []string{l.name, l.claimant(), l.mirror()} {
		harness.Eventually(l.t, settleTimeout, "the API does not have "+name, func() string {
			p, err := l.get(name)
			if err == nil {
				return harness.Summary(*p)
			}
			if !apierrors.IsNotFound(err) {
				return err.Error()
			}
			return ""
		})
	}
	if err := l.Client.CoreV1().ConfigMaps(namespace).Delete(l.t.Context(), l.name, metav1.DeleteOptions{}); err != nil {
		l.t.Fatal(err)
	}
	if err := l.Client.ResourceV1().ResourceClaims(namespace).Delete(l.t.Context(), l.name, metav1.DeleteOptions{}); err != nil {
		l.t.Fatal(err)
	}
	harness.Eventually(l.t, settleTimeout, "the node does not have them", func() string {
		pods, err := l.n.Pods()
		if err != nil {
			return err.Error()
		}
		if len(pods) > 0 {
			return harness.Summary(pods[0])
		}
		return ""
	})
}
