package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/berth-io/berth/tests/bare"
	"github.com/berth-io/berth/tests/cluster"
	"github.com/berth-io/berth/tests/harness"
	"github.com/berth-io/berth/tests/measure"
)

// floor is what a burst cannot be faster than here, in seconds: the control plane
// with a node that only says so, and the bare containers. Both keep all cores
// busy, so that their sum is the floor.
type floor struct{ control, bare float64 }

// idleNode is the node that makes nothing.
const idleNode = "nothing"

// measureFloor looks at both parts, one after the other.
func measureFloor(t harness.TB, c *cluster.Cluster, maker *bare.Maker, count int) floor {
	var f floor
	ctx, cancel := within()
	defer cancel()
	s := &side{t: t, name: idleNode, node: &cluster.Node{Name: idleNode}, pods: c.Client.CoreV1().Pods(metav1.NamespaceDefault)}
	nodes := c.Client.CoreV1().Nodes()
	if _, err := nodes.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: idleNode}}, metav1.CreateOptions{}); err != nil {
		t.Fatalf("make a node of no machine: %v", err)
	}
	w := s.watch(ctx)
	defer w.Stop()
	f.control = s.timed(func() {
		failed := s.createAll(ctx, count)
		if err := s.pretend(ctx, c, w, count); err != nil {
			t.Fatalf("%v", err)
		}
		if err := <-failed; err != nil {
			t.Fatalf("%v", err)
		}
	}) / 1000
	err := errors.Join(
		s.pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{LabelSelector: sideLabel + "=" + idleNode}),
		nodes.Delete(ctx, idleNode, metav1.DeleteOptions{}))
	if err != nil {
		t.Fatalf("remove the node of no machine: %v", err)
	}
	f.bare = measure.Milliseconds(maker.Burst(t, count, runtime.NumCPU())) / 1000
	return f
}

// pretend asks for each pod's token and says that it is Ready: no node needs
// less. It returns when the watch has told of all.
func (s *side) pretend(ctx context.Context, c *cluster.Cluster, w watch.Interface, count int) error {
	todo := make(chan *corev1.Pod, count)
	errs := make([]error, runtime.NumCPU())
	var workers sync.WaitGroup
	for i := range errs {
		workers.Go(func() {
			for p := range todo {
				errs[i] = errors.Join(errs[i], s.sayReady(ctx, c, p))
			}
		})
	}
	are := map[string]bool{}
	s.await(ctx, w, "the pods of no machine Ready", func(e watch.EventType, p *corev1.Pod) bool {
		if e == watch.Added {
			todo <- p
		}
		if ready(e, p) {
			are[p.Name] = true
		}
		return len(are) == count
	})
	close(todo)
	workers.Wait()
	return errors.Join(errs...)
}

func (s *side) sayReady(ctx context.Context, c *cluster.Cluster, p *corev1.Pod) error {
	_, err := c.Client.CoreV1().ServiceAccounts(p.Namespace).CreateToken(ctx, "default", &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		BoundObjectRef: &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("token of pod %s: %w", p.Name, err)
	}
	now := metav1.NewTime(time.Now())
	status := corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &now, ContainerStatuses: []corev1.ContainerStatus{{
		Name: "main", Image: p.Spec.Containers[0].Image, Ready: true, Started: new(true),
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
	}}}
	for _, kind := range []corev1.PodConditionType{corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		status.Conditions = append(status.Conditions, corev1.PodCondition{Type: kind, Status: corev1.ConditionTrue, LastTransitionTime: now})
	}
	data, err := json.Marshal(corev1.Pod{Status: status})
	if err != nil {
		return err
	}
	_, err = s.pods.Patch(ctx, p.Name, types.StrategicMergePatchType, data, metav1.PatchOptions{}, "status")
	return err
}

func (f floor) print(count int) {
	fmt.Printf("floor of the burst on %d cores: %.2f s = control plane alone %.2f + %d bare containers %.2f\n",
		runtime.NumCPU(), f.control+f.bare, f.control, count, f.bare)
}
