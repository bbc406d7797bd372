package restart

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/tests/harness"
)

// Nothing may depend on a shim living for ever: someone can always kill it, and
// the kernel does when memory is short.
func TestPodWhoseShimIsKilledIsServedByANewOne(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.StartNode(t, harness.Options{})
	p := n.Apply(t, "orphan", `
apiVersion: v1
kind: Pod
metadata: {name: orphan}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - {name: main, image: `+harness.Box+`, command: [testbox, serve]}
`)
	before := p.WaitReady()
	for _, process := range n.Processes() {
		if process.Program == "berth-shim" {
			if err := syscall.Kill(process.Pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	after := p.Wait("ready again", func(pod corev1.Pod) string {
		s, _ := harness.Container(pod, "main")
		if !harness.Ready(pod) || s.ContainerID == before.Status.ContainerStatuses[0].ContainerID {
			return "not yet"
		}
		return ""
	})
	if after.UID != before.UID {
		t.Error("it is another pod")
	}
	harness.Eventually(t, harness.PodTimeout, "the new container's process is alone", func() string {
		if running := len(n.Containers()); running != 1 {
			return fmt.Sprintf("%d container processes", running)
		}
		return ""
	})
	n.RemoveAll()
	n.CheckNothingLeft()
}
