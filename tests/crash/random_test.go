package crash

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-io/berth/tests/harness"
)

// Between the failpoints there is much that has no name. This kills the daemon
// at no particular place while pods come, change and go, and looks only at
// where it ends.
func TestDaemonKilledAgainAndAgainWhilePodsComeAndGo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	const kills, pods = 25, 5
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	n := harness.StartNode(t, harness.Options{})
	n.MustCLI("image", "pull", harness.Box)
	wanted := map[string]string{} // name to content
	for range kills {
		name := fmt.Sprintf("pod-%d", random.IntN(pods))
		if _, there := wanted[name]; there && random.IntN(2) == 0 {
			n.RemoveManifest(name + ".yaml")
			delete(wanted, name)
		} else {
			wanted[name] = churnPod(name, random.IntN(1000))
			n.WriteManifest(name+".yaml", wanted[name])
		}
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		n.Kill()
		n.Launch()
	}
	n.WaitReady()
	harness.Eventually(t, settleTimeout, "exactly the wanted pods are ready", func() string { return churnSettled(n, wanted) })
	n.RemoveAll()
	n.CheckNothingLeft()
}

func churnPod(name string, version int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {version: "%d"}}
spec:
  terminationGracePeriodSeconds: 2
  initContainers:
  - {name: init, image: %[3]s, command: [sh, -c, 'echo x > /v/f'], volumeMounts: [{name: v, mountPath: /v}]}
  containers:
  - {name: one, image: %[3]s, command: [testbox, serve], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}
  - {name: two, image: %[3]s, command: [testbox, term, --delay, 100ms], volumeMounts: [{name: v, mountPath: /v}]}
  volumes: [{name: v, emptyDir: {medium: Memory}}]
`, name, version, harness.Box)
}

// churnSettled compares pods and their processes with what is wanted.
func churnSettled(n *harness.Node, wanted map[string]string) string {
	pods, err := n.TryPods()
	if err != nil {
		return err.Error()
	}
	if len(pods) != len(wanted) {
		return fmt.Sprintf("%d pods, want %d", len(pods), len(wanted))
	}
	for _, p := range pods {
		if !strings.Contains(wanted[p.Name], `version: "`+p.Labels["version"]+`"`) || !harness.Ready(p) {
			return harness.Summary(p)
		}
	}
	if got := len(n.Containers()); got != 2*len(wanted) {
		return fmt.Sprintf("%d container processes, want %d", got, 2*len(wanted))
	}
	leases, err := filepath.Glob(n.Config.RunDir + "/cni/berth/10.*")
	if err != nil {
		return err.Error()
	}
	if len(leases) != len(wanted) {
		return fmt.Sprintf("%d address leases, want %d", len(leases), len(wanted))
	}
	return ""
}
