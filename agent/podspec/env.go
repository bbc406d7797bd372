package podspec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/csi/volume"
)

// Env is the environment that a container's spec asks for; the image's own is
// the runtime's to add below it. The variables of services come first, then
// envFrom, in order and with the keys of an object sorted, then env in order; a
// later value replaces an earlier one, and $(NAME) sees the values set so far.
// Errors are *ConfigError.
func Env(ctx context.Context, c Container, node Node, objects volume.Objects) ([]*runtimeapi.KeyValue, error) {
	e := environment{
		Container:  c,
		node:       node,
		objects:    objects,
		index:      map[string]int{},
		configMaps: map[string]*v1.ConfigMap{},
		secrets:    map[string]*v1.Secret{},
	}
	for _, name := range slices.Sorted(maps.Keys(c.ServiceEnv)) {
		if err := e.set(name, c.ServiceEnv[name], "a service"); err != nil {
			return nil, err
		}
	}
	for _, from := range c.Container.EnvFrom {
		if err := e.addFrom(ctx, from); err != nil {
			return nil, err
		}
	}
	for _, v := range c.Container.Env {
		if err := e.add(ctx, v); err != nil {
			return nil, err
		}
	}
	return e.out, nil
}

// environment is an environment being built.
type environment struct {
	Container
	node    Node
	objects volume.Objects

	out   []*runtimeapi.KeyValue
	index map[string]int // of a name in out

	// One container sees one version of each object.
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
}

func (e *environment) lookup(name string) (string, bool) {
	i, ok := e.index[name]
	if !ok {
		return "", false
	}
	return string(e.out[i].Value), true
}

// set gives a variable its value. Names are the API server's to judge; only
// what no process could be given is skipped here, as the kubelet used to do.
func (e *environment) set(name, value, source string) error {
	if name == "" || strings.ContainsAny(name, "=\x00") {
		return nil
	}
	if strings.ContainsRune(value, 0) {
		return configErrorf("environment variable %s: the value from %s contains a NUL byte", name, source)
	}
	kv := &runtimeapi.KeyValue{Key: name, Value: []byte(value)}
	if i, ok := e.index[name]; ok {
		e.out[i] = kv
		return nil
	}
	e.index[name] = len(e.out)
	e.out = append(e.out, kv)
	return nil
}

func (e *environment) addFrom(ctx context.Context, from v1.EnvFromSource) error {
	data := map[string]string{}
	var source string
	switch {
	case from.ConfigMapRef != nil:
		ref := from.ConfigMapRef
		source = fmt.Sprintf("ConfigMap %s/%s", e.Pod.Namespace, ref.Name)
		cm, err := e.configMap(ctx, ref.Name, isTrue(ref.Optional))
		if err != nil || cm == nil {
			return err
		}
		data = cm.Data
	case from.SecretRef != nil:
		ref := from.SecretRef
		source = fmt.Sprintf("Secret %s/%s", e.Pod.Namespace, ref.Name)
		secret, err := e.secret(ctx, ref.Name, isTrue(ref.Optional))
		if err != nil || secret == nil {
			return err
		}
		for k, v := range secret.Data {
			data[k] = string(v)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(data)) {
		if err := e.set(from.Prefix+k, data[k], source); err != nil {
			return err
		}
	}
	return nil
}

func (e *environment) add(ctx context.Context, v v1.EnvVar) error {
	if v.Value != "" || v.ValueFrom == nil {
		return e.set(v.Name, expand(v.Value, e.lookup), "the pod")
	}
	value, source, found, err := e.resolve(ctx, v.ValueFrom)
	if err != nil || !found {
		return err
	}
	return e.set(v.Name, value, source)
}

// resolve returns a value from elsewhere and where it came from; found is
// false for an optional one that is not there.
func (e *environment) resolve(ctx context.Context, from *v1.EnvVarSource) (value, source string, found bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = downwardValue(from, e.Container, e.node)
		return value, from.FieldRef.FieldPath, true, err
	case from.ResourceFieldRef != nil:
		value, err = downwardValue(from, e.Container, e.node)
		return value, from.ResourceFieldRef.Resource, true, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		source = fmt.Sprintf("ConfigMap %s/%s", e.Pod.Namespace, ref.Name)
		cm, err := e.configMap(ctx, ref.Name, isTrue(ref.Optional))
		if err != nil || cm == nil {
			return "", "", false, err
		}
		value, found = cm.Data[ref.Key]
		if !found && !isTrue(ref.Optional) {
			err = configErrorf("couldn't find key %v in %s", ref.Key, source)
		}
		return value, source, found, err
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		source = fmt.Sprintf("Secret %s/%s", e.Pod.Namespace, ref.Name)
		secret, err := e.secret(ctx, ref.Name, isTrue(ref.Optional))
		if err != nil || secret == nil {
			return "", "", false, err
		}
		raw, found := secret.Data[ref.Key]
		if !found && !isTrue(ref.Optional) {
			err = configErrorf("couldn't find key %v in %s", ref.Key, source)
		}
		return string(raw), source, found, err
	case from.FileKeyRef != nil:
		return e.fromFile(from.FileKeyRef)
	default:
		return "", "the pod", true, nil
	}
}

// fromFile takes a variable from a file of a volume, which an init container has
// written. A file that is not there is an error even where the key is optional,
// as in the kubelet.
func (e *environment) fromFile(ref *v1.FileKeySelector) (value, source string, found bool, err error) {
	if e.EnvFile == nil {
		return "", "", false, configErrorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	source = fmt.Sprintf("file %s of volume %s", ref.Path, ref.VolumeName)
	content, err := e.EnvFile(ref.VolumeName, ref.Path)
	if errors.Is(err, volume.ErrNotFound) {
		return "", "", false, configErrorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	if err == nil {
		value, err = envFileValue(content, ref.Key)
	}
	if err != nil {
		return "", "", false, &ConfigError{Message: "couldn't parse env file", Err: fmt.Errorf("%s: %w", source, err)}
	}
	if value == "" && !isTrue(ref.Optional) {
		return "", "", false, configErrorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
	}
	return value, source, value != "", nil
}

// configMap returns nil without an error for an optional one that does not exist.
func (e *environment) configMap(ctx context.Context, name string, optional bool) (*v1.ConfigMap, error) {
	return once(e.configMaps, name, optional, func() (*v1.ConfigMap, error) {
		return e.objects.ConfigMap(ctx, e.Pod, name)
	})
}

// secret returns nil without an error for an optional one that does not exist.
func (e *environment) secret(ctx context.Context, name string, optional bool) (*v1.Secret, error) {
	return once(e.secrets, name, optional, func() (*v1.Secret, error) {
		return e.objects.Secret(ctx, e.Pod, name)
	})
}

// once gets an object that was not seen yet.
func once[T any](seen map[string]*T, name string, optional bool, get func() (*T, error)) (*T, error) {
	if object, ok := seen[name]; ok {
		return object, nil
	}
	object, err := get()
	switch {
	case errors.Is(err, volume.ErrNotFound) && optional:
		return nil, nil
	case errors.Is(err, volume.ErrNotFound):
		return nil, &ConfigError{Message: err.Error()}
	case err != nil:
		return nil, &ConfigError{Message: err.Error(), Err: err}
	}
	seen[name] = object
	return object, nil
}

func isTrue(b *bool) bool { return b != nil && *b }
