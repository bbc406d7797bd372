package objects

import (
	v1 "k8s.io/api/core/v1"
)

// references is what a pod refers to in its namespace.
type references struct {
	// By name; true where a volume is made from it, which a change makes old. An
	// environment is made once, with its container.
	configMaps, secrets map[string]bool
	tokens              []*v1.ServiceAccountTokenProjection
	bundles             bool
}

func (r *references) inVolumes() bool {
	for _, names := range []map[string]bool{r.configMaps, r.secrets} {
		for _, inVolume := range names {
			if inVolume {
				return true
			}
		}
	}
	return false
}

// referencesOf looks in every place of a pod that names a ConfigMap or a Secret
// (pkg/api/v1/pod/util.go, VisitPodSecretNames and VisitPodConfigmapNames).
func referencesOf(pod *v1.Pod) references {
	r := references{configMaps: map[string]bool{}, secrets: map[string]bool{}}
	for i := range pod.Spec.ImagePullSecrets {
		note(r.secrets, pod.Spec.ImagePullSecrets[i].Name, false)
	}
	for i := range pod.Spec.Volumes {
		r.volume(&pod.Spec.Volumes[i].VolumeSource)
	}
	for _, list := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			r.environment(list[i].Env, list[i].EnvFrom)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		r.environment(pod.Spec.EphemeralContainers[i].Env, pod.Spec.EphemeralContainers[i].EnvFrom)
	}
	return r
}

func note(names map[string]bool, name string, inVolume bool) {
	if name != "" {
		names[name] = names[name] || inVolume
	}
}

func (r *references) environment(env []v1.EnvVar, from []v1.EnvFromSource) {
	for i := range from {
		if ref := from[i].ConfigMapRef; ref != nil {
			note(r.configMaps, ref.Name, false)
		}
		if ref := from[i].SecretRef; ref != nil {
			note(r.secrets, ref.Name, false)
		}
	}
	for i := range env {
		source := env[i].ValueFrom
		if source == nil {
			continue
		}
		if ref := source.ConfigMapKeyRef; ref != nil {
			note(r.configMaps, ref.Name, false)
		}
		if ref := source.SecretKeyRef; ref != nil {
			note(r.secrets, ref.Name, false)
		}
	}
}

func (r *references) volume(s *v1.VolumeSource) {
	switch {
	case s.ConfigMap != nil:
		note(r.configMaps, s.ConfigMap.Name, true)
	case s.Secret != nil:
		note(r.secrets, s.Secret.SecretName, true)
	case s.Projected != nil:
		for i := range s.Projected.Sources {
			r.projection(&s.Projected.Sources[i])
		}
	default:
		// Kinds that are mounted once, with credentials from a Secret.
		note(r.secrets, mountSecret(s), false)
	}
}

func (r *references) projection(s *v1.VolumeProjection) {
	switch {
	case s.ConfigMap != nil:
		note(r.configMaps, s.ConfigMap.Name, true)
	case s.Secret != nil:
		note(r.secrets, s.Secret.Name, true)
	case s.ServiceAccountToken != nil:
		r.tokens = append(r.tokens, s.ServiceAccountToken)
	case s.ClusterTrustBundle != nil:
		r.bundles = true
	}
}

// mountSecret names the Secret that a volume is mounted with; empty for none.
func mountSecret(s *v1.VolumeSource) string {
	var ref *v1.LocalObjectReference
	switch {
	case s.AzureFile != nil:
		return s.AzureFile.SecretName
	case s.CephFS != nil:
		ref = s.CephFS.SecretRef
	case s.Cinder != nil:
		ref = s.Cinder.SecretRef
	case s.FlexVolume != nil:
		ref = s.FlexVolume.SecretRef
	case s.RBD != nil:
		ref = s.RBD.SecretRef
	case s.ScaleIO != nil:
		ref = s.ScaleIO.SecretRef
	case s.ISCSI != nil:
		ref = s.ISCSI.SecretRef
	case s.StorageOS != nil:
		ref = s.StorageOS.SecretRef
	case s.CSI != nil:
		ref = s.CSI.NodePublishSecretRef
	}
	if ref == nil {
		return ""
	}
	return ref.Name
}
