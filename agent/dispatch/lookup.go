package dispatch

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/worker"
)

// Pods returns all pods with their statuses, by namespace and name; among them
// those that wait for a predecessor, or to be admitted.
func (d *Dispatcher) Pods() []*v1.Pod {
	d.mu.Lock()
	defer d.mu.Unlock()
	var pods []*v1.Pod
	for _, w := range d.workers {
		pods = append(pods, w.Pod())
	}
	for _, p := range d.waitingPods() {
		if d.workers[string(p.UID)] == nil {
			pods = append(pods, p)
		}
	}
	pods = append(pods, d.undecided()...)
	slices.SortFunc(pods, func(a, b *v1.Pod) int { return strings.Compare(fullName(a), fullName(b)) })
	return pods
}

// Worker finds the worker of a pod by name; nil when there is none. Of two pods
// of one name, of which one is leaving, it is the other's.
func (d *Dispatcher) Worker(namespace, name string) *worker.Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	var leaving *worker.Worker
	for _, w := range d.workers {
		if p := w.Pod(); p.Namespace != namespace || p.Name != name {
			continue
		}
		if !w.Forgotten() {
			return w
		}
		leaving = w
	}
	return leaving
}

// Stop asks a pod to end and to stay so; it is kept until its source drops it.
func (d *Dispatcher) Stop(namespace, name string, grace *int64) error {
	w := d.Worker(namespace, name)
	if w == nil {
		return fmt.Errorf("pod %s/%s is not on this node", namespace, name)
	}
	s := worker.Killing(w.Pod())
	if grace != nil {
		s.Grace = *grace
	}
	w.Stop(s)
	return nil
}

func fullName(pod *v1.Pod) string { return pod.Namespace + "/" + pod.Name }
