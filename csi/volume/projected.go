package volume

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/berth-io/berth/csi/downward"
)

// downwardAPI is fields of the pod as files.
type downwardAPI struct{ source *v1.DownwardAPIVolumeSource }

func (downwardAPI) plugin() string { return "kubernetes.io~downward-api" }

func (d downwardAPI) setUp(ctx context.Context, r request) (Mounted, error) {
	files := payload{}
	mode := modeOr(d.source.DefaultMode, v1.DownwardAPIVolumeSourceDefaultMode)
	if err := files.addDownward(r, d.source.Items, mode); err != nil {
		return Mounted{}, err
	}
	return r.write(ctx, files, onDisk)
}

func (f payload) addDownward(r request, items []v1.DownwardAPIVolumeFile, mode int32) error {
	pod := downward.Pod{Pod: r.pod.Pod, HostIPs: r.pod.HostIPs, PodIPs: r.pod.PodIPs, Allocatable: r.pod.Allocatable}
	for _, item := range items {
		var value string
		err := errors.New("has neither fieldRef nor resourceFieldRef")
		switch {
		case item.FieldRef != nil:
			value, err = pod.Field(item.FieldRef)
		case item.ResourceFieldRef != nil:
			value, err = pod.Resource(item.ResourceFieldRef, nil)
		}
		if err == nil {
			err = f.add(item.Path, payloadFile{data: []byte(value), mode: modeOr(item.Mode, mode)})
		}
		if err != nil {
			return fmt.Errorf("downwardAPI item %q: %w", item.Path, err)
		}
	}
	return nil
}

// projected puts several sources into one directory; of two sources with the
// same path the later one wins.
type projected struct{ source *v1.ProjectedVolumeSource }

func (projected) plugin() string { return "kubernetes.io~projected" }

func (p projected) setUp(ctx context.Context, r request) (Mounted, error) {
	mode := modeOr(p.source.DefaultMode, v1.ProjectedVolumeSourceDefaultMode)
	files, where := payload{}, onDisk
	var errs []error
	for i := range p.source.Sources {
		source := &p.source.Sources[i]
		if source.Secret != nil || source.ServiceAccountToken != nil {
			where = inMemory
		}
		if err := files.addSource(ctx, r, source, mode); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return Mounted{}, errors.Join(errs...)
	}
	return r.write(ctx, files, where)
}

func (f payload) addSource(ctx context.Context, r request, s *v1.VolumeProjection, mode int32) error {
	switch {
	case s.ConfigMap != nil:
		return f.addConfigMap(ctx, r, s.ConfigMap.Name, projection{items: s.ConfigMap.Items, mode: mode, optional: s.ConfigMap.Optional})
	case s.Secret != nil:
		return f.addSecret(ctx, r, s.Secret.Name, projection{items: s.Secret.Items, mode: mode, optional: s.Secret.Optional})
	case s.DownwardAPI != nil:
		return f.addDownward(r, s.DownwardAPI.Items, mode)
	case s.ServiceAccountToken != nil:
		token, err := r.manager.objects.Token(ctx, r.pod.Pod, s.ServiceAccountToken)
		if err != nil {
			return err
		}
		return f.add(s.ServiceAccountToken.Path, private(r.pod, []byte(token), mode))
	case s.ClusterTrustBundle != nil:
		if s.ClusterTrustBundle.Name == nil && s.ClusterTrustBundle.SignerName == nil {
			return errors.New("ClusterTrustBundle projection requires either name or signerName to be set")
		}
		bundle, err := r.manager.objects.TrustBundle(ctx, r.pod.Pod, s.ClusterTrustBundle)
		if err != nil {
			return err
		}
		return f.add(s.ClusterTrustBundle.Path, private(r.pod, bundle, mode))
	case s.PodCertificate != nil:
		return errors.New("projected podCertificate is not supported (the feature PodCertificateRequest, off by default): leave it out")
	}
	return errors.New("projected source of no known kind: use configMap, secret, downwardAPI, serviceAccountToken or clusterTrustBundle")
}

// private is a file that only the pod's own user, or its group, may read where
// there is one; without either it has the volume's mode (pkg/volume/projected,
// collectData).
func private(pod *Pod, data []byte, mode int32) payloadFile {
	owner := pod.user()
	if owner != nil || pod.fsGroup() != nil {
		mode = 0o600
	}
	return payloadFile{data: data, mode: mode, owner: owner}
}
