package main

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/watch"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// side is one of the nodes.
type side struct {
	t    harness.TB
	name string
	node *cluster.Node
	pods typedv1.PodInterface
	made int
}

// sideLabel has the name of a pod's side.
const sideLabel = "side"

// startSides returns Berth's and the stock node's, each with the image of the
// pods and with the caches warm.
func startSides(t harness.TB, c *cluster.Cluster) [2]*side {
	sides := [2]*side{{name: "berth"}, {name: "stock"}}
	for i, s := range sides {
		s.t, s.node, s.pods = t, c.Nodes[i], c.Client.CoreV1().Pods(metav1.NamespaceDefault)
		// Pods are refused until their service account is there.
		harness.Eventually(t, timeout, "service account of the pods", func() string {
			ctx, cancel := within()
			defer cancel()
			if _, err := c.Client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{}); err != nil {
				return err.Error()
			}
			return ""
		})
		s.live()
		ctx, cancel := within()
		n, err := s.node.Get(ctx)
		cancel()
		if err != nil {
			t.Fatalf("%v", err)
		}
		fmt.Printf("%s: kubelet %s, %s\n", s.name, n.Status.NodeInfo.KubeletVersion, n.Status.NodeInfo.ContainerRuntimeVersion)
	}
	fmt.Println()
	return sides
}

// pod is bound to the side's node when it is made: a scheduler is no part of
// either. Its process ends at once on SIGTERM.
func (s *side) pod() *corev1.Pod {
	s.made++
	grace := int64(1)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", s.name, s.made), Labels: map[string]string{sideLabel: s.name}},
		Spec: corev1.PodSpec{
			NodeName: s.node.Name, TerminationGracePeriodSeconds: &grace,
			Containers: []corev1.Container{{
				Name: "main", Image: harness.Busybox, Command: bare.Command,
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("5m"), corev1.ResourceMemory: resource.MustParse("8Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("64Mi")},
				},
			}},
		},
	}
}

// watch follows the side's pods from now on.
func (s *side) watch(ctx context.Context) watch.Interface {
	s.t.Helper()
	selector := labels.SelectorFromSet(labels.Set{sideLabel: s.name}).String()
	list, err := s.pods.List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		s.t.Fatalf("list the pods of %s: %v", s.name, err)
	}
	w, err := s.pods.Watch(ctx, metav1.ListOptions{LabelSelector: selector, ResourceVersion: list.ResourceVersion})
	if err != nil {
		s.t.Fatalf("watch the pods of %s: %v", s.name, err)
	}
	return w
}

// await hands what a watch tells to done until that returns true.
func (s *side) await(ctx context.Context, w watch.Interface, what string, done func(watch.EventType, *corev1.Pod) bool) {
	s.t.Helper()
	last := "nothing"
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				s.t.Fatalf("%s: %s: the watch ended; it told last: %s", s.name, what, last)
			}
			p, ok := e.Object.(*corev1.Pod)
			if !ok {
				s.t.Fatalf("%s: %s: the watch told %v", s.name, what, e.Object)
			}
			if done(e.Type, p) {
				return
			}
			last = fmt.Sprintf("%s %s", e.Type, harness.Summary(*p))
		case <-ctx.Done():
			s.t.Fatalf("%s: %s: not within %v; the watch told last: %s", s.name, what, timeout, last)
		}
	}
}

func (s *side) create(ctx context.Context, p *corev1.Pod) {
	s.t.Helper()
	if _, err := s.pods.Create(ctx, p, metav1.CreateOptions{}); err != nil {
		s.t.Fatalf("create pod %s: %v", p.Name, err)
	}
}

func ready(e watch.EventType, p *corev1.Pod) bool { return e != watch.Deleted && harness.Ready(*p) }
func gone(e watch.EventType, _ *corev1.Pod) bool  { return e == watch.Deleted }

// started makes a pod and returns it, and how long it took to be Ready for one
// who watches.
func (s *side) started(ctx context.Context, w watch.Interface) (*corev1.Pod, time.Duration) {
	p := s.pod()
	start := time.Now()
	s.create(ctx, p)
	s.await(ctx, w, "pod Ready", ready)
	return p, time.Since(start)
}

// ended deletes a pod and returns how long it took to be gone.
func (s *side) ended(ctx context.Context, w watch.Interface, p *corev1.Pod) time.Duration {
	start := time.Now()
	if err := s.pods.Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
		s.t.Fatalf("delete pod %s: %v", p.Name, err)
	}
	s.await(ctx, w, "pod gone", gone)
	return time.Since(start)
}

// life of one pod, in milliseconds, and what the node says of it in between.
type life struct {
	ready, gone float64
	timeline    string
}

func (s *side) live() life {
	ctx, cancel := within()
	defer cancel()
	w := s.watch(ctx)
	defer w.Stop()
	p, ready := s.started(ctx, w)
	l := life{ready: measure.Milliseconds(ready)}
	if s.node.Kind == cluster.Berth {
		var err error
		if l.timeline, err = s.node.Explain(ctx, metav1.NamespaceDefault, p.Name); err != nil {
			s.t.Fatalf("%v", err)
		}
	}
	l.gone = measure.Milliseconds(s.ended(ctx, w, p))
	return l
}

// processes of the side's node by program.
func (s *side) processes() map[string][]int {
	s.t.Helper()
	all, err := s.node.Processes()
	if err != nil {
		s.t.Fatalf("%v", err)
	}
	pids := map[string][]int{}
	for _, p := range all {
		pids[p.Program] = append(pids[p.Program], p.Pid)
	}
	return pids
}

// sum of a figure over the processes of some programs.
func sum[T int | float64](pids map[string][]int, of func(int) T, programs ...string) (total T) {
	for _, program := range programs {
		for _, pid := range pids[program] {
			total += of(pid)
		}
	}
	return total
}
