package volume

import (
	"context"
	"errors"
	"fmt"

	v1 "k8s.io/api/core/v1"
)

// configMap is the keys of a ConfigMap as files.
type configMap struct{ source *v1.ConfigMapVolumeSource }

func (configMap) plugin() string { return "kubernetes.io~configmap" }

func (c configMap) setUp(ctx context.Context, r request) (Mounted, error) {
	files := payload{}
	err := files.addConfigMap(ctx, r, c.source.Name, projection{
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
	err := files.addSecret(ctx, r, s.source.SecretName, projection{
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

func (f payload) addConfigMap(ctx context.Context, r request, name string, p projection) error {
	object, err := r.manager.objects.ConfigMap(ctx, r.pod.Pod, name)
	if err != nil {
		return p.tolerate(err)
	}
	data := make(map[string][]byte, len(object.Data)+len(object.BinaryData))
	for key, value := range object.Data {
		data[key] = []byte(value)
	}
	for key, value := range object.BinaryData {
		data[key] = value
	}
	if key, err := f.project(data, p); err != nil {
		if errors.Is(err, ErrNotFound) {
			return fmt.Errorf("configmap references non-existent config key: %s", key)
		}
		return fmt.Errorf("configmap %q: key %q: %w", name, key, err)
	}
	return nil
}

func (f payload) addSecret(ctx context.Context, r request, name string, p projection) error {
	object, err := r.manager.objects.Secret(ctx, r.pod.Pod, name)
	if err != nil {
		return p.tolerate(err)
	}
	if key, err := f.project(object.Data, p); err != nil {
		if errors.Is(err, ErrNotFound) {
			return fmt.Errorf("references non-existent secret key: %s", key)
		}
		return fmt.Errorf("secret %q: key %q: %w", name, key, err)
	}
	return nil
}

func (p projection) isOptional() bool { return p.optional != nil && *p.optional }

// tolerate drops the error of an optional object that does not exist.
func (p projection) tolerate(err error) error {
	if p.isOptional() && errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// project adds the files of an object's keys; an error is about the key that is
// returned with it, which ErrNotFound says is not there.
func (f payload) project(data map[string][]byte, p projection) (key string, err error) {
	if len(p.items) == 0 {
		for key, value := range data {
			if err := f.add(key, payloadFile{data: value, mode: p.mode}); err != nil {
				return key, err
			}
		}
		return "", nil
	}
	for _, item := range p.items {
		value, found := data[item.Key]
		if !found {
			if p.isOptional() {
				continue
			}
			return item.Key, ErrNotFound
		}
		if err := f.add(item.Path, payloadFile{data: value, mode: modeOr(item.Mode, p.mode)}); err != nil {
			return item.Key, err
		}
	}
	return "", nil
}
