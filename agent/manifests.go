package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/atomicwriter"
	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/agent/manifest"
	"github.com/berth-io/berth/agent/source"
)

// manifests writes to the manifest directory what `berth run` asks for. The
// files are manifests like any others: they come into force by being there.
type manifests struct {
	dir     string
	source  *source.Dir
	options manifest.Options
}

// prefix marks files that this node wrote itself, and may remove.
const prefix = "berth-run-"

// Add validates a manifest of one pod and keeps it. An error that is the
// manifest's is a manifest.Rejection.
func (m *manifests) Add(data []byte) (*v1.Pod, error) {
	options := m.options
	options.Now = time.Now()
	set, rejected := manifest.Parse("manifest", data, options)
	if len(rejected) > 0 {
		return nil, rejected[0]
	}
	if len(set.Pods) != 1 {
		return nil, manifest.Rejection{File: "manifest", Reason: fmt.Sprintf("it holds %d pods; exactly one can be run this way", len(set.Pods))}
	}
	pod := set.Pods[0]
	for _, p := range m.source.Snapshot().Set.Pods {
		if p.Namespace == pod.Namespace && p.Name == pod.Name {
			return nil, fmt.Errorf("pod %s/%s exists already", pod.Namespace, pod.Name)
		}
	}
	path := filepath.Join(m.dir, prefix+pod.Namespace+"-"+pod.Name+".json")
	if err := atomicwriter.WriteFile(path, data, 0o600); err != nil {
		return nil, fmt.Errorf("keep the manifest: %w", err)
	}
	return pod, nil
}

// Remove deletes the file of a pod that Add wrote.
func (m *manifests) Remove(pod *v1.Pod) error {
	file := pod.Annotations[manifest.AnnotationManifest]
	if !strings.HasPrefix(file, prefix) || strings.ContainsRune(file, '/') {
		return fmt.Errorf("pod %s/%s is defined in %s: remove it there", pod.Namespace, pod.Name, filepath.Join(m.dir, file))
	}
	if err := os.Remove(filepath.Join(m.dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the manifest: %w", err)
	}
	return nil
}

// Rejected lists manifests that are not in force.
func (m *manifests) Rejected() []manifest.Rejection { return m.source.Snapshot().Rejected }
