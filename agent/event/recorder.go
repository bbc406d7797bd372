// Package event records what happened to pods, in the API's Event form and
// with the kubelet's reasons. Events of this boot and before are kept in a
// bounded file, so that a restarted agent still has them.
package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/sys/atomicwriter"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
)

// Config of a Recorder.
type Config struct {
	// Path of the file that keeps events over a restart, one JSON object a
	// line; a later line of the same name supersedes an earlier one.
	Path     string
	NodeName string
	// Keep is how many events are kept; older ones are forgotten.
	Keep int
	// Forward is told of each event as well, for an API server; nil: there is
	// none.
	Forward record.EventRecorder
	Log     *slog.Logger
}

// sameFor is how long an equal event counts up the one before, as client-go's
// event correlator does, instead of making a new one.
const sameFor = 10 * time.Minute

// Recorder keeps events, newest last.
type Recorder struct {
	config Config

	mu     sync.Mutex
	events []*v1.Event
	file   *os.File
	lines  int
	named  int64 // the number in the newest event's name
}

// Open reads what was recorded before. A line that cannot be read, the torn
// last line of a crash above all, is skipped.
func Open(c Config) (*Recorder, error) {
	r := &Recorder{config: c}
	old, err := os.ReadFile(c.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read recorded events: %w", err)
	}
	for line := range bytes.Lines(old) {
		var e v1.Event
		if json.Unmarshal(line, &e) == nil && e.Name != "" {
			r.take(&e)
		}
	}
	if err := r.dropUnfinished(); err != nil {
		return nil, err
	}
	if err := r.rewrite(); err != nil {
		return nil, err
	}
	return r, nil
}

// dropUnfinished removes what a kill in the middle of rewrite left.
func (r *Recorder) dropUnfinished() error {
	dir, name := filepath.Split(r.config.Path)
	unfinished, err := filepath.Glob(filepath.Join(dir, ".tmp-"+name+"*"))
	if err != nil {
		return err
	}
	for _, path := range unfinished {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove an unfinished event file: %w", err)
		}
	}
	return nil
}

// Close releases the file.
func (r *Recorder) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.file.Close()
}

// Pod records an event about a pod.
func (r *Recorder) Pod(pod *v1.Pod, eventType, reason, format string, args ...any) {
	r.record(podReference(pod), eventType, reason, fmt.Sprintf(format, args...))
}

// Container records an event about one container of a pod.
func (r *Recorder) Container(pod *v1.Pod, container string, init bool, eventType, reason, format string, args ...any) {
	ref := podReference(pod)
	list := "containers"
	switch {
	case init:
		list = "initContainers"
	case slices.ContainsFunc(pod.Spec.EphemeralContainers, func(c v1.EphemeralContainer) bool { return c.Name == container }):
		list = "ephemeralContainers"
	}
	ref.FieldPath = fmt.Sprintf("spec.%s{%s}", list, container)
	r.record(ref, eventType, reason, fmt.Sprintf(format, args...))
}

// Node records an event about this node, for example a rejected manifest.
func (r *Recorder) Node(eventType, reason, format string, args ...any) {
	// The kubelet's events have the name as UID, and kubectl looks for that.
	ref := v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: r.config.NodeName, UID: types.UID(r.config.NodeName)}
	r.record(ref, eventType, reason, fmt.Sprintf(format, args...))
}

// List returns copies of the events, oldest first.
func (r *Recorder) List() []v1.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]v1.Event, len(r.events))
	for i, e := range r.events {
		e.DeepCopyInto(&out[i])
	}
	return out
}

func podReference(pod *v1.Pod) v1.ObjectReference {
	return v1.ObjectReference{
		Kind: "Pod", APIVersion: "v1",
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
	}
}

func (r *Recorder) record(ref v1.ObjectReference, eventType, reason, message string) {
	if r.config.Forward != nil {
		r.config.Forward.Event(&ref, eventType, reason, message)
	}
	now := metav1.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.similar(ref, eventType, reason, message, now.Time)
	if e == nil {
		e = &v1.Event{
			TypeMeta:            metav1.TypeMeta{Kind: "Event", APIVersion: "v1"},
			InvolvedObject:      ref,
			Type:                eventType,
			Reason:              reason,
			Message:             message,
			FirstTimestamp:      now,
			Source:              v1.EventSource{Component: "kubelet", Host: r.config.NodeName},
			ReportingController: "kubelet",
			ReportingInstance:   r.config.NodeName,
		}
		e.Namespace = ref.Namespace
		if e.Namespace == "" {
			e.Namespace = metav1.NamespaceDefault
		}
		// The time makes the name unique, as client-go does; one step on where
		// the clock did not move or was set back.
		r.named = max(r.named+1, now.UnixNano())
		e.Name = fmt.Sprintf("%s.%x", ref.Name, r.named)
		e.CreationTimestamp = now
	}
	e.Count++
	e.LastTimestamp = now
	r.take(e)
	if err := r.append(e); err != nil {
		r.config.Log.Warn("an event is not kept over a restart", "reason", reason, "err", err)
	}
}

func (r *Recorder) similar(ref v1.ObjectReference, eventType, reason, message string, now time.Time) *v1.Event {
	for _, e := range slices.Backward(r.events) {
		if now.Sub(e.LastTimestamp.Time) > sameFor {
			return nil
		}
		if e.Reason == reason && e.Message == message && e.Type == eventType && e.InvolvedObject == ref {
			return e
		}
	}
	return nil
}

// take makes e the newest event; an older one of its name is superseded.
func (r *Recorder) take(e *v1.Event) {
	r.events = slices.DeleteFunc(r.events, func(o *v1.Event) bool { return o.Name == e.Name && o.Namespace == e.Namespace })
	r.events = append(r.events, e)
	if over := len(r.events) - r.config.Keep; over > 0 {
		r.events = slices.Delete(r.events, 0, over)
	}
}

// append adds a line, and rewrites the file once superseded lines outnumber
// the events.
func (r *Recorder) append(e *v1.Event) error {
	if r.lines > 2*r.config.Keep {
		return r.rewrite()
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	r.lines++
	_, err = r.file.Write(append(line, '\n'))
	return err
}

func (r *Recorder) rewrite() error {
	var all bytes.Buffer
	enc := json.NewEncoder(&all)
	for _, e := range r.events {
		if err := enc.Encode(e); err != nil {
			return fmt.Errorf("encode event %s: %w", e.Name, err)
		}
	}
	if err := atomicwriter.WriteFile(r.config.Path, all.Bytes(), 0o640); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	f, err := os.OpenFile(r.config.Path, os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("open events: %w", err)
	}
	if r.file != nil {
		r.file.Close()
	}
	r.file, r.lines = f, len(r.events)
	return nil
}
