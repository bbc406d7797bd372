// Package mirror shows a node's static pods in the API, as mirror pods. A
// mirror pod is a projection: it decides nothing about the pod it shows, and one
// that somebody deletes is made again.
package mirror

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/internal/failpoint"
)

// State is what the mirror pods are compared with.
type State struct {
	Static  []*v1.Pod
	Mirrors []*v1.Pod
	// Complete: both lists are whole. Before that nothing is deleted.
	Complete bool
	// Node owns the mirror pods; nil: it is not registered yet.
	Node *v1.Node
}

// Config of a Reconciler.
type Config struct {
	Client corev1.PodsGetter
	State  func() State
	Log    *slog.Logger
}

// Reconciler makes the mirror pods what the static pods are.
type Reconciler struct {
	config Config
	wake   chan struct{} // capacity one
}

// New returns a Reconciler; Run reconciles.
func New(c Config) *Reconciler { return &Reconciler{config: c, wake: make(chan struct{}, 1)} }

// Poke tells that the state has changed.
func (r *Reconciler) Poke() {
	select {
	case r.wake <- struct{}{}:
	default: // it has not looked at the last one yet
	}
}

const (
	requestTimeout           = 30 * time.Second
	firstPause, longestPause = time.Second, time.Minute
)

// Run reconciles until ctx ends, and returns its error. What did not work is
// tried again, ever slower.
func (r *Reconciler) Run(ctx context.Context) error {
	pause := firstPause
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
		case <-again.C:
		}
		err := r.reconcile(ctx)
		switch {
		case err == nil:
			pause = firstPause
		case ctx.Err() == nil:
			r.config.Log.Warn("static pods are not all shown in the API; it is tried again", "err", err, "pause", pause)
			again.Reset(pause)
			pause = min(2*pause, longestPause)
		}
	}
}

func (r *Reconciler) reconcile(ctx context.Context) error {
	state := r.config.State()
	if state.Node == nil {
		return nil // its registration is a change of the state
	}
	var errs []error
	for _, pod := range Superfluous(state) {
		errs = append(errs, r.remove(ctx, pod))
	}
	for _, pod := range Missing(state) {
		errs = append(errs, r.create(ctx, pod, state.Node))
	}
	return errors.Join(errs...)
}

// Missing are static pods that no mirror pod shows as they are. One that is
// shown otherwise has to wait: the name is free only once that one is gone,
// which is a change of the state.
func Missing(s State) []*v1.Pod {
	if s.Node.DeletionTimestamp != nil {
		return nil
	}
	taken := map[string]bool{}
	for _, m := range s.Mirrors {
		taken[fullName(m)] = true
	}
	var missing []*v1.Pod
	for _, pod := range s.Static {
		if !taken[fullName(pod)] {
			missing = append(missing, pod)
		}
	}
	return missing
}

// Superfluous are mirror pods of static pods that are not there any more, that
// have other content by now, or that somebody is deleting.
func Superfluous(s State) []*v1.Pod {
	if !s.Complete {
		return nil
	}
	want := map[string]string{}
	for _, pod := range s.Static {
		want[fullName(pod)] = pod.Annotations[manifest.AnnotationConfigHash]
	}
	var out []*v1.Pod
	for _, m := range s.Mirrors {
		hash, ok := want[fullName(m)]
		if !ok || hash != m.Annotations[manifest.AnnotationConfigMirror] || m.DeletionTimestamp != nil {
			out = append(out, m)
		}
	}
	return out
}

func (r *Reconciler) remove(ctx context.Context, m *v1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := r.config.Client.Pods(m.Namespace).Delete(ctx, m.Name, metav1.DeleteOptions{
		GracePeriodSeconds: new(int64), Preconditions: &metav1.Preconditions{UID: &m.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete mirror pod %s: %w", fullName(m), err)
	}
	failpoint.Hit("agent/mirror-removed")
	return nil
}

func (r *Reconciler) create(ctx context.Context, pod *v1.Pod, node *v1.Node) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	pods, mirror := r.config.Client.Pods(pod.Namespace), Of(pod, node)
	_, err := pods.Create(ctx, mirror, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		// Of another pod that has the name nobody tells when it goes: it may be
		// another node's.
		taken, readErr := pods.Get(ctx, pod.Name, metav1.GetOptions{})
		if readErr == nil && taken.Annotations[manifest.AnnotationConfigMirror] == mirror.Annotations[manifest.AnnotationConfigMirror] {
			return nil // it is there, and the watch has not told yet
		}
	}
	if err != nil {
		return fmt.Errorf("create the mirror pod of %s: %w", fullName(pod), err)
	}
	failpoint.Hit("agent/mirror-made")
	return nil
}

// Of returns the mirror pod of a static pod, owned by the node, which the API
// server's NodeRestriction demands.
func Of(pod *v1.Pod, node *v1.Node) *v1.Pod {
	m := &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels, Annotations: maps.Clone(pod.Annotations),
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true),
			}},
		},
		Spec: pod.Spec,
	}
	m.Annotations[manifest.AnnotationConfigMirror] = pod.Annotations[manifest.AnnotationConfigHash]
	return m
}

func fullName(pod *v1.Pod) string { return pod.Namespace + "/" + pod.Name }
