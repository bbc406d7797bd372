package objects

import (
	"context"
	"errors"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/csi/volume"
)

// Manifests are the objects of manifest files: agent/source.Dir. An object that
// does not exist is nil, a claim that does not exist has no path.
type Manifests interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, error)
	Secret(namespace, name string) (*v1.Secret, error)
	Claim(namespace, name string) (hostPath string, readOnly bool, err error)
}

// Local gives pods from manifests the objects of the manifests. Tokens and trust
// bundles are the API server's to give: such a pod has none.
type Local struct{ Manifests }

var _ volume.Objects = Local{}

// ConfigMap returns a ConfigMap of the pod's namespace.
func (l Local) ConfigMap(_ context.Context, pod *v1.Pod, name string) (*v1.ConfigMap, error) {
	object, err := l.Manifests.ConfigMap(pod.Namespace, name)
	if err == nil && object == nil {
		err = volume.NotFound("configmap", name)
	}
	return object, err
}

// Secret returns a Secret of the pod's namespace.
func (l Local) Secret(_ context.Context, pod *v1.Pod, name string) (*v1.Secret, error) {
	object, err := l.Manifests.Secret(pod.Namespace, name)
	if err == nil && object == nil {
		err = volume.NotFound("secret", name)
	}
	return object, err
}

// Claim returns what a PersistentVolumeClaim of the pod's namespace is bound to.
func (l Local) Claim(_ context.Context, pod *v1.Pod, name string) (hostPath string, readOnly bool, err error) {
	hostPath, readOnly, err = l.Manifests.Claim(pod.Namespace, name)
	if err == nil && hostPath == "" {
		err = volume.NotFound("persistentvolumeclaim", name)
	}
	return hostPath, readOnly, err
}

// Token refuses: a pod from a manifest has no service account.
func (Local) Token(context.Context, *v1.Pod, *v1.ServiceAccountTokenProjection) (string, error) {
	return "", errors.New("projected serviceAccountToken needs an API server, which a pod from a manifest has not: leave it out")
}

// TrustBundle refuses: trust bundles are objects of a cluster.
func (Local) TrustBundle(context.Context, *v1.Pod, *v1.ClusterTrustBundleProjection) ([]byte, error) {
	return nil, errors.New("projected clusterTrustBundle needs an API server, which a pod from a manifest has not: leave it out")
}

// sourceAnnotation says where a pod comes from; the kubelet calls it
// ConfigSourceAnnotationKey. The API server's pods have none on them.
const sourceAnnotation = "kubernetes.io/config.source"

// BySource gives each pod the objects of where it comes from.
type BySource struct {
	// File is for pods from manifests, API for all others.
	File, API volume.Objects
}

var _ volume.Objects = BySource{}

func (s BySource) of(pod *v1.Pod) volume.Objects {
	if isLocal(pod) {
		return s.File
	}
	return s.API
}

func isLocal(pod *v1.Pod) bool {
	source := pod.Annotations[sourceAnnotation]
	return source == "file" || source == "http"
}

// ConfigMap returns a ConfigMap of the pod's namespace.
func (s BySource) ConfigMap(ctx context.Context, pod *v1.Pod, name string) (*v1.ConfigMap, error) {
	return s.of(pod).ConfigMap(ctx, pod, name)
}

// Secret returns a Secret of the pod's namespace.
func (s BySource) Secret(ctx context.Context, pod *v1.Pod, name string) (*v1.Secret, error) {
	return s.of(pod).Secret(ctx, pod, name)
}

// Claim returns what a PersistentVolumeClaim of the pod's namespace is bound to.
func (s BySource) Claim(ctx context.Context, pod *v1.Pod, name string) (hostPath string, readOnly bool, err error) {
	return s.of(pod).Claim(ctx, pod, name)
}

// Token returns a token of the pod's service account.
func (s BySource) Token(ctx context.Context, pod *v1.Pod, want *v1.ServiceAccountTokenProjection) (string, error) {
	return s.of(pod).Token(ctx, pod, want)
}

// TrustBundle returns the certificates of trust bundles.
func (s BySource) TrustBundle(ctx context.Context, pod *v1.Pod, want *v1.ClusterTrustBundleProjection) ([]byte, error) {
	return s.of(pod).TrustBundle(ctx, pod, want)
}
