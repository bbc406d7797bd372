package manifest

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// identify makes a pod this node's: name, UID, creation time and annotations.
// What only an API server or a controller acts on (status, resource version,
// owner references, finalizers) is dropped.
//
// As with the kubelet's static pods the UID is a hash of node, file, name and
// content, so that a changed pod is another pod and an unchanged one is
// recognised after a restart. It is taken before defaults are filled in: a
// version of Berth that knows more of them must not restart every pod.
func (p *parser) identify(pod *v1.Pod) error {
	if pod.Namespace == "" {
		pod.Namespace = metav1.NamespaceDefault
	}
	pod.Name += p.opts.NameSuffix
	if len(pod.Labels) == 0 {
		pod.Labels = nil // no labels and an empty list of them are the same pod
	}
	pod.ObjectMeta = metav1.ObjectMeta{
		Name:        pod.Name,
		Namespace:   pod.Namespace,
		Labels:      pod.Labels,
		Annotations: withoutIdentity(pod.Annotations),
	}
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	pod.Status = v1.PodStatus{Phase: v1.PodPending}

	uid, err := p.uid(pod)
	if err != nil {
		return err
	}
	pod.UID = uid
	pod.CreationTimestamp = metav1.NewTime(p.opts.Now.Truncate(1e9))
	pod.Annotations[AnnotationConfigHash] = string(uid)
	pod.Annotations[AnnotationConfigSource] = SourceFile
	pod.Annotations[AnnotationConfigSeen] = p.opts.Now.UTC().Format("2006-01-02T15:04:05.000000000Z")
	pod.Annotations[AnnotationManifest] = p.file
	return nil
}

func (p *parser) uid(pod *v1.Pod) (types.UID, error) {
	content, err := json.Marshal(struct {
		Node, File, Namespace, Name string
		Labels, Annotations         map[string]string
		Spec                        *v1.PodSpec
	}{p.opts.NodeName, p.file, pod.Namespace, pod.Name, pod.Labels, pod.Annotations, &pod.Spec})
	if err != nil {
		return "", fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	h := sha256.Sum256(content)
	h[6] = h[6]&0x0f | 0x80 // version 8: custom (RFC 9562)
	h[8] = h[8]&0x3f | 0x80 // variant
	return types.UID(fmt.Sprintf("%x-%x-%x-%x-%x", h[0:4], h[4:6], h[6:8], h[8:10], h[10:16])), nil
}

// Static tells whether a pod comes from a manifest, and not from an API server.
func Static(pod *v1.Pod) bool { return pod.Annotations[AnnotationConfigSource] == SourceFile }

// Replaced tells whether a controller of a cluster would make another pod in
// place of this one when it has failed: that of a Deployment, ReplicaSet or
// DaemonSet.
func Replaced(pod *v1.Pod) bool {
	return pod.Annotations[AnnotationOwner] != "" && pod.Spec.RestartPolicy == v1.RestartPolicyAlways
}

// withoutIdentity copies annotations without those that identify sets: a pod
// written back to a file, with kubectl get -o yaml for example, keeps its UID.
func withoutIdentity(annotations map[string]string) map[string]string {
	out := make(map[string]string, len(annotations)+4)
	for k, v := range annotations {
		switch k {
		case AnnotationConfigHash, AnnotationConfigSource, AnnotationConfigSeen, AnnotationManifest:
		default:
			out[k] = v
		}
	}
	return out
}
