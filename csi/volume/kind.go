package volume

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// kind is one source of volumes.
type kind interface {
	// plugin names the directory of this kind's volumes below volumes/, in the
	// kubelet's spelling. It is empty for volumes that have no directory there.
	plugin() string
	// setUp makes the volume at r.dir or brings it up to date. It may be called
	// on what an earlier call left half done.
	setUp(ctx context.Context, r request) (Mounted, error)
}

// request is one volume to be set up.
type request struct {
	manager *Manager
	at      *step
	pod     *Pod
	spec    *v1.Volume
	dir     string
}

func kindOf(spec *v1.Volume) (kind, error) {
	s := &spec.VolumeSource
	switch {
	case s.EmptyDir != nil:
		return emptyDir{s.EmptyDir}, nil
	case s.HostPath != nil:
		return hostPath{s.HostPath}, nil
	case s.PersistentVolumeClaim != nil:
		return claim{s.PersistentVolumeClaim}, nil
	case s.ConfigMap != nil:
		return configMap{s.ConfigMap}, nil
	case s.Secret != nil:
		return secret{s.Secret}, nil
	case s.DownwardAPI != nil:
		return downwardAPI{s.DownwardAPI}, nil
	case s.Projected != nil:
		return projected{s.Projected}, nil
	case s.Image != nil:
		return imageVolume{}, nil
	}
	if name := sourceName(s); name != "" {
		return nil, fmt.Errorf("%s volumes are not supported", name)
	}
	// The API server reads a volume without a source as an emptyDir.
	return emptyDir{&v1.EmptyDirVolumeSource{}}, nil
}

// sourceName is the field of the source that is set, as in a manifest.
func sourceName(s *v1.VolumeSource) string {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if !v.Field(i).IsNil() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return ""
}
