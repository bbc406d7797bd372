// Package podsource says which pods the API server has bound to this node. It
// tells pods that are to run apart from mirror pods, which only show in the API
// what the node runs from manifests.
package podsource

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"github.com/berth-io/berth/agent/apiwatch"
	"github.com/berth-io/berth/agent/manifest"
)

// Source is the API server's pods of one node.
type Source struct {
	*apiwatch.Set[*v1.Pod]
	changed chan struct{} // capacity one

	mu   sync.Mutex
	gone []*v1.Pod
}

// New prepares the watch of a node's pods. Client is of the core group.
func New(client cache.Getter, nodeName string, log *slog.Logger) *Source {
	s := &Source{changed: make(chan struct{}, 1)}
	s.Set = apiwatch.New(apiwatch.Config[*v1.Pod]{
		Client: client, Resource: "pods", Selector: fields.OneTermEqualSelector("spec.nodeName", nodeName),
		Example: &v1.Pod{}, Trim: mark, Changed: s.tell, Gone: s.keep, Log: log,
	})
	return s
}

// Changed receives after the pods have changed; several changes may be
// reported once. It has one receiver.
func (s *Source) Changed() <-chan struct{} { return s.changed }

// keep remembers a pod that was deleted until TakeGone.
func (s *Source) keep(pod *v1.Pod) {
	if Mirror(pod) {
		return
	}
	s.mu.Lock()
	s.gone = append(s.gone, pod)
	s.mu.Unlock()
}

// TakeGone returns pods that were deleted since the last call, as they were
// last: a pod that is deleted by force is being deleted, and gone, at the same
// moment, and how long it may take to end is in it and nowhere else.
func (s *Source) TakeGone() []*v1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.gone
	s.gone = nil
	return gone
}

func (s *Source) tell() {
	select {
	case s.changed <- struct{}{}:
	default: // the receiver has not taken the last one and will see this change
	}
}

// mark says of a pod where it came from, as the kubelet does. Who made the pod
// cannot make it another node's static pod by saying so.
func mark(pod *v1.Pod) {
	pod.Kind, pod.APIVersion = "Pod", "v1"
	if Mirror(pod) {
		return
	}
	annotations := maps.Clone(pod.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[manifest.AnnotationConfigSource] = manifest.SourceAPI
	annotations[manifest.AnnotationConfigSeen] = pod.CreationTimestamp.UTC().Format(time.RFC3339Nano)
	pod.Annotations = annotations
}

// Mirror tells whether a pod only shows a static pod.
func Mirror(pod *v1.Pod) bool {
	_, ok := pod.Annotations[manifest.AnnotationConfigMirror]
	return ok
}

// Pods returns the pods that are to run, the oldest first, and the mirror pods.
// Complete is false until the API server has told all there are.
func (s *Source) Pods() (pods, mirrors []*v1.Pod, complete bool) {
	all, complete := s.List()
	for _, pod := range all {
		if Mirror(pod) {
			mirrors = append(mirrors, pod)
		} else {
			pods = append(pods, pod)
		}
	}
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
			return c
		}
		return strings.Compare(string(a.UID), string(b.UID))
	})
	return pods, mirrors, complete
}
