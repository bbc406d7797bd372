package restart

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
)

// soon bounds how long the API may say something else than what is. What was
// measured is printed.
const soon = 90 * time.Second

// An hour without an API server is, to the node, a time that it was away in
// which its lease has run out and its pods were taken for lost. The short grace
// period brings that about within seconds.
func TestHundredPodsOutliveTheAPIServerAndTheAgent(t *testing.T) {
	cluster.Need(t, cluster.Berth)
	a := &away{t: t, Cluster: cluster.New(t, cluster.Config{
		NoDNS: true,
		Nodes: []cluster.NodeConfig{{Kind: cluster.Berth, Kubelet: map[string]any{"nodeLeaseDurationSeconds": 4}}},
		Args: map[string][]string{cluster.ControllerManager: {
			"--node-monitor-period=500ms", "--node-monitor-grace-period=5s",
		}},
	})}
	a.node = a.Nodes[0]
	start := time.Now()
	a.createPods()
	harness.Eventually(t, 6*time.Minute, "all pods ready", func() string { return a.allReady(pods) })
	t.Logf("%d pods ready after %.1f s", pods, time.Since(start).Seconds())
	// A container has started before its program has.
	harness.Eventually(t, soon, "all containers run their programs", func() string {
		if n := len(a.running()); n != pods {
			return fmt.Sprintf("%d do", n)
		}
		return ""
	})
	before, running := a.statuses(), a.running()

	// The agent alone: a container that ends is started again.
	a.do(a.Stop(cluster.APIServer, syscall.SIGKILL))
	a.killContainer("pod-000")
	harness.Eventually(t, soon, "the container of pod-000 runs again", func() string {
		if a.processes("pod-000") == 0 {
			return "it does not run"
		}
		return ""
	})
	a.do(a.node.Stop(syscall.SIGKILL))

	// The API server alone: the node is lost, and a pod is deleted.
	a.do(a.Start(cluster.APIServer))
	grace := int64(1)
	harness.Eventually(t, soon, "pod-099 is being deleted", func() string {
		return text(a.Client.CoreV1().Pods(namespace).Delete(t.Context(), "pod-099", metav1.DeleteOptions{GracePeriodSeconds: &grace}))
	})
	harness.Eventually(t, 2*soon, "the node is taken for lost", func() string { return a.nodeIs(corev1.ConditionUnknown) })

	// The agent alone again: it knows nothing yet of what it is to run, and is
	// killed once more.
	a.do(a.Stop(cluster.APIServer, syscall.SIGKILL))
	a.do(a.node.Start())
	a.killContainer("pod-001")
	time.Sleep(2 * time.Second) // what it does wrong it does now
	a.do(a.node.Stop(syscall.SIGKILL))
	a.do(a.node.Start())
	harness.Eventually(t, soon, "the agent is there", func() string {
		_, err := a.node.Pods()
		return text(err)
	})

	back := time.Now()
	a.do(a.Start(cluster.APIServer))
	harness.Eventually(t, soon, "the API server is ready", func() string {
		_, err := a.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(t.Context())
		return text(err)
	})
	up := time.Now()
	harness.Eventually(t, soon, "the lease is renewed", func() string {
		lease, err := a.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), a.node.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if lease.Spec.RenewTime.Time.Before(back) {
			return "it was renewed last at " + lease.Spec.RenewTime.String()
		}
		return ""
	})
	harness.Eventually(t, soon, "the node is ready", func() string { return a.nodeIs(corev1.ConditionTrue) })
	ready := time.Since(up)
	harness.Eventually(t, soon, "the pods are as they are, and the deleted one is gone", func() string { return a.allReady(pods - 1) })
	harness.Eventually(t, soon, "the containers that were killed run again", func() string { return a.restartedOnce("pod-000", "pod-001") })
	t.Logf("after the API server was ready: node ready after %.1f s, pods after %.1f s", ready.Seconds(), time.Since(up).Seconds())

	time.Sleep(2 * time.Second) // as above
	a.compare(before, a.statuses())
	after := a.running()
	for p, name := range running {
		if !after[p].is(name) && name != "pod-000" && name != "pod-001" && name != "pod-099" {
			t.Errorf("process %d of %s is gone", p.Pid, name)
		}
	}
	for p, name := range after {
		if !running[p].is(name) && name != "pod-000" && name != "pod-001" {
			t.Errorf("process %d of %s is new", p.Pid, name)
		}
	}
	start = time.Now()
	a.do(a.Client.CoreV1().Pods(namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	a.CheckNothingLeft(t)
	t.Logf("%d pods gone after %.1f s", pods-1, time.Since(start).Seconds())
}

const namespace = corev1.NamespaceDefault

// away is the cluster of the test.
type away struct {
	*cluster.Cluster
	t    *testing.T
	node *cluster.Node
}

func (a *away) do(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func text(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

func (a *away) createPods() {
	a.t.Helper()
	group, ctx := errgroup.WithContext(a.t.Context())
	group.SetLimit(8)
	harness.Eventually(a.t, soon, "there is a service account for pods", func() string {
		_, err := a.Client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return text(err)
	})
	for i := range pods {
		group.Go(func() error { return a.createPod(ctx, fmt.Sprintf("pod-%03d", i)) })
	}
	a.do(group.Wait())
}

// createPod makes a pod whose processes have its name among their arguments.
func (a *away) createPod(ctx context.Context, name string) error {
	grace := int64(5)
	_, err := a.Client.CoreV1().Pods(namespace).Create(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			NodeName: a.node.Name, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: harness.Busybox,
				Command: []string{"sh", "-c", `trap "exit 0" TERM; sleep 100000 & wait`, name},
			}},
		},
	}, metav1.CreateOptions{})
	return err
}

func (a *away) list() ([]corev1.Pod, error) {
	list, err := a.Client.CoreV1().Pods(namespace).List(a.t.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// allReady compares the API with what is to be there.
func (a *away) allReady(want int) string {
	list, err := a.list()
	if err != nil {
		return err.Error()
	}
	for _, p := range list {
		if !harness.Ready(p) || p.DeletionTimestamp != nil {
			return harness.Summary(p)
		}
	}
	if len(list) != want {
		return fmt.Sprintf("%d pods, want %d", len(list), want)
	}
	return ""
}

func (a *away) nodeIs(ready corev1.ConditionStatus) string {
	node, err := a.node.Get(a.t.Context())
	if err != nil {
		return err.Error()
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == ready {
			return ""
		} else if c.Type == corev1.NodeReady {
			return fmt.Sprintf("Ready is %s: %s", c.Status, c.Message)
		}
	}
	return "there is no condition Ready"
}

// podStatus is what must be the same before and after.
type podStatus struct {
	phase         corev1.PodPhase
	ip, container string
	restarts      int32
	started       time.Time // the container
	accepted      time.Time // the pod
}

func (a *away) statuses() map[string]podStatus {
	a.t.Helper()
	list, err := a.list()
	a.do(err)
	out := map[string]podStatus{}
	for _, p := range list {
		c, _ := harness.Container(p, "main")
		s := podStatus{phase: p.Status.Phase, ip: p.Status.PodIP, container: c.ContainerID, restarts: c.RestartCount}
		if c.State.Running != nil {
			s.started = c.State.Running.StartedAt.UTC()
		}
		if p.Status.StartTime != nil {
			s.accepted = p.Status.StartTime.UTC()
		}
		out[p.Name] = s
	}
	return out
}

// restartedOnce waits for what the API says of pods whose container was killed:
// that they are ready it has said before.
func (a *away) restartedOnce(names ...string) string {
	now := a.statuses()
	for _, name := range names {
		if s := now[name]; s.restarts != 1 || s.started.IsZero() {
			return fmt.Sprintf("%s is %+v", name, s)
		}
	}
	return ""
}

func (a *away) compare(before, after map[string]podStatus) {
	a.t.Helper()
	delete(before, "pod-099")
	for name, was := range before {
		is := after[name]
		if name == "pod-000" || name == "pod-001" {
			if is.restarts != 1 || is.container == was.container || is.ip != was.ip {
				a.t.Errorf("%s, whose container was killed: was %+v, is %+v", name, was, is)
			}
			continue
		}
		if is != was {
			a.t.Errorf("%s: was %+v, is %+v", name, was, is)
		}
	}
}

// podName is the pod of a process, by the last of its arguments.
type podName string

func (n podName) is(other podName) bool { return n != "" && n == other }

// running are the first processes of the pods' containers.
func (a *away) running() map[harness.Process]podName {
	a.t.Helper()
	list, err := a.node.Containers()
	a.do(err)
	out := map[harness.Process]podName{}
	for _, p := range list {
		if args := strings.Fields(p.Args); strings.HasPrefix(p.Args, "sh -c trap") {
			out[p] = podName(args[len(args)-1])
		}
	}
	return out
}

func (a *away) processes(pod podName) int {
	count := 0
	for _, name := range a.running() {
		if name == pod {
			count++
		}
	}
	return count
}

// killContainer kills all that runs in a pod, as an OOM kill would.
func (a *away) killContainer(pod podName) {
	a.t.Helper()
	before := a.running()
	killed := map[harness.Process]bool{}
	for p, name := range before {
		if name == pod {
			a.do(syscall.Kill(p.Pid, syscall.SIGKILL))
			killed[p] = true
		}
	}
	if len(killed) == 0 {
		a.t.Fatalf("nothing runs in %s", pod)
	}
	harness.Eventually(a.t, soon, "the container of "+string(pod)+" has ended", func() string {
		for p := range a.running() {
			if killed[p] {
				return fmt.Sprintf("process %d has not", p.Pid)
			}
		}
		return ""
	})
}
