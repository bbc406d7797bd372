package volume

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
)

var errNotFound = errors.New("not found")

// configMap is the keys of a ConfigMap as files.
type configMap struct{ source *v1.ConfigMapVolumeSource }

func (configMap) plugin() string { return "kubernetes.io~configmap" }

func (c configMap) setUp(ctx context.Context, r request) (Mounted, error) {
	files := payload{}
	err := files.addConfigMap(r, c.source.LocalObjectReference, projection{
		items: c.source.Items, mode: modeOr(c.source.DefaultMode, v1.ConfigMapVolumeSourceDefaultMode), optional: c.source.Optional,
	})
	if err != nil {
		return Mounted{}, err
	}
	return r.write(ctx, files, onDisk)
}

// secret is the keys of a Secret as files in memory.
type secret struct{ source *v1.SecretVolumeSource }

func (secret) plugin() string { return "kubernetes.io~secret" }

func (s secret) setUp(ctx context.Context, r request) (Mounted, error) {
	files := payload{}
	err := files.addSecret(r, s.source.SecretName, projection{
		items: s.source.Items, mode: modeOr(s.source.DefaultMode, v1.SecretVolumeSourceDefaultMode), optional: s.source.Optional,
	})
	if err != nil {
		return Mounted{}, err
	}
	return r.write(ctx, files, inMemory)
}

// projection is which keys of an object become which files.
type projection struct {
	items    []v1.KeyToPath // none: all keys, each a file of its name
	mode     int32
	optional *bool
}

func modeOr(mode *int32, otherwise int32) int32 {
	if mode != nil {
		return *mode
	}
	return otherwise
}

func (f payload) addConfigMap(r request, ref v1.LocalObjectReference, p projection) error {
	object, err := r.manager.objects.ConfigMap(r.pod.Namespace, ref.Name)
	if err == nil && object != nil {
		data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
		for key, value := range object.Data {
			data[key] = []byte(value)
		}
		for key, value := range object.BinaryData {
			data[key] = value
		}
		err = f.project(data, p)
	} else if err == nil {
		err = p.missing()
	}
	if err != nil {
		return fmt.Errorf("configmap %s/%s: %w", r.pod.Namespace, ref.Name, err)
	}
	return nil
}

func (f payload) addSecret(r request, name string, p projection) error {
	object, err := r.manager.objects.Secret(r.pod.Namespace, name)
	if err == nil && object != nil {
		err = f.project(object.Data, p)
	} else if err == nil {
		err = p.missing()
	}
	if err != nil {
		return fmt.Errorf("secret %s/%s: %w", r.pod.Namespace, name, err)
	}
	return nil
}

func (p projection) isOptional() bool { return p.optional != nil && *p.optional }

func (p projection) missing() error {
	if p.isOptional() {
		return nil
	}
	return errNotFound
}

func (f payload) project(data map[string][]byte, p projection) error {
	if len(p.items) == 0 {
		for key, value := range data {
			if err := f.add(key, value, p.mode); err != nil {
				return fmt.Errorf("key %q: %w", key, err)
			}
		}
		return nil
	}
	for _, item := range p.items {
		value, found := data[item.Key]
		if !found {
			if p.isOptional() {
				continue
			}
			return fmt.Errorf("key %q: %w", item.Key, errNotFound)
		}
		if err := f.add(item.Path, value, modeOr(item.Mode, p.mode)); err != nil {
			return fmt.Errorf("key %q: %w", item.Key, err)
		}
	}
	return nil
}
