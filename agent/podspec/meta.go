package podspec

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"path/filepath"
	"strconv"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/dump"
)

// Labels on sandboxes and containers: the kubelet's names, which crictl, log
// shippers and a restarted agent find a pod by.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
)

// Annotations on containers. They carry what a restarted agent needs to know
// of a container whose pod is gone from every source.
const (
	AnnotationHash                     = "io.kubernetes.container.hash" // base 16
	AnnotationRestartCount             = "io.kubernetes.container.restartCount"
	AnnotationTerminationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	AnnotationTerminationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationPreStopHandler           = "io.kubernetes.container.preStopHandler" // JSON of v1.LifecycleHandler
	AnnotationPorts                    = "io.kubernetes.container.ports"          // JSON of []v1.ContainerPort
	AnnotationDeletionGracePeriod      = "io.kubernetes.pod.deletionGracePeriod"  // seconds
	AnnotationTerminationGracePeriod   = "io.kubernetes.pod.terminationGracePeriod"
	AnnotationBackoff                  = "berth.io/backoff"
	AnnotationRound                    = "berth.io/round"
)

func podLabels(pod *v1.Pod) map[string]string {
	labels := make(map[string]string, len(pod.Labels)+3)
	maps.Copy(labels, pod.Labels)
	labels[LabelPodName] = pod.Name
	labels[LabelPodNamespace] = pod.Namespace
	labels[LabelPodUID] = string(pod.UID)
	return labels
}

func containerLabels(pod *v1.Pod, c *v1.Container) map[string]string {
	return map[string]string{
		LabelPodName:       pod.Name,
		LabelPodNamespace:  pod.Namespace,
		LabelPodUID:        string(pod.UID),
		LabelContainerName: c.Name,
	}
}

func containerAnnotations(c Container) (map[string]string, error) {
	pod, spec := c.Pod, c.Container
	a := map[string]string{
		AnnotationHash:                     strconv.FormatUint(Hash(spec), 16),
		AnnotationRestartCount:             strconv.FormatUint(uint64(c.Attempt), 10),
		AnnotationTerminationMessagePath:   spec.TerminationMessagePath,
		AnnotationTerminationMessagePolicy: string(spec.TerminationMessagePolicy),
	}
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		a[AnnotationDeletionGracePeriod] = strconv.FormatInt(*s, 10)
	}
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		a[AnnotationTerminationGracePeriod] = strconv.FormatInt(*s, 10)
	}
	if spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
		raw, err := json.Marshal(spec.Lifecycle.PreStop)
		if err != nil {
			return nil, fmt.Errorf("encode preStop handler of container %s: %w", spec.Name, err)
		}
		a[AnnotationPreStopHandler] = string(raw)
	}
	if len(spec.Ports) > 0 {
		raw, err := json.Marshal(spec.Ports)
		if err != nil {
			return nil, fmt.Errorf("encode ports of container %s: %w", spec.Name, err)
		}
		a[AnnotationPorts] = string(raw)
	}
	if c.Backoff != "" {
		a[AnnotationBackoff] = c.Backoff
	}
	if c.Round > 0 {
		a[AnnotationRound] = strconv.FormatUint(uint64(c.Round), 10)
	}
	return a, nil
}

// Hash identifies what makes a running container differ from its spec: its
// name and image, the only fields of a container that an API server lets
// change in place. The value is the kubelet's, so that agent and kubelet can
// take over each other's containers.
func Hash(c *v1.Container) uint64 {
	picked, err := json.Marshal(map[string]string{"name": c.Name, "image": c.Image})
	if err != nil {
		panic(err) // a map of strings always encodes
	}
	h := fnv.New32a()
	fmt.Fprint(h, dump.ForHash(picked))
	return uint64(h.Sum32())
}

// LogDir is the directory of a pod's logs, PODLOGS/NAMESPACE_NAME_UID.
func LogDir(podLogsDir string, pod *v1.Pod) string {
	return filepath.Join(podLogsDir, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// LogPath is the path of a container's log below its pod's LogDir.
func LogPath(container string, attempt uint32) string {
	return filepath.Join(container, strconv.FormatUint(uint64(attempt), 10)+".log")
}
