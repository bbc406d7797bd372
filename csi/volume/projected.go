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
			err = f.add(item.Path, []byte(value), modeOr(item.Mode, mode))
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
		if source.Secret != nil {
			where = inMemory
		}
		if err := files.addSource(r, source, mode); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return Mounted{}, errors.Join(errs...)
	}
	return r.write(ctx, files, where)
}

func (f payload) addSource(r request, s *v1.VolumeProjection, mode int32) error {
	switch {
	case s.ConfigMap != nil:
		return f.addConfigMap(r, s.ConfigMap.LocalObjectReference, projection{items: s.ConfigMap.Items, mode: mode, optional: s.ConfigMap.Optional})
	case s.Secret != nil:
		return f.addSecret(r, s.Secret.Name, projection{items: s.Secret.Items, mode: mode, optional: s.Secret.Optional})
	case s.DownwardAPI != nil:
		return f.addDownward(r, s.DownwardAPI.Items, mode)
	case s.ServiceAccountToken != nil:
		return errors.New("projected serviceAccountToken needs an API server, which this node has not: leave it out")
	case s.ClusterTrustBundle != nil:
		return errors.New("projected clusterTrustBundle needs an API server, which this node has not: leave it out")
	case s.PodCertificate != nil:
		return errors.New("projected podCertificate needs an API server, which this node has not: leave it out")
	}
	return errors.New("projected source of no known kind: use configMap, secret or downwardAPI")
}
