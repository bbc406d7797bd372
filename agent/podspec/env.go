package podspec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-io/berth/csi/volume"
)

// Env is the environment that a container's spec asks for; the image's own is
// the runtime's to add below it. envFrom comes first, in order and with the
// keys of an object sorted, then env in order; a later value replaces an
// earlier one, and $(NAME) sees the values set so far, and those of services. Errors are *ConfigError.
func Env(c Container, node Node, objects volume.Objects) ([]*runtimeapi.KeyValue, error) {
	e := environment{
		Container:  c,
		node:       node,
		objects:    objects,
		index:      map[string]int{},
		configMaps: map[string]*v1.ConfigMap{},
		secrets:    map[string]*v1.Secret{},
	}
	for _, from := range c.Container.EnvFrom {
		if err := e.addFrom(from); err != nil {
			return nil, err
		}
	}
	for _, v := range c.Container.Env {
		if err := e.add(v); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.ServiceEnv)) {
		if _, own := e.index[name]; own {
			continue
		}
		if err := e.set(name, c.ServiceEnv[name], "a service"); err != nil {
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
		value, ok := e.ServiceEnv[name]
		return value, ok
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

func (e *environment) addFrom(from v1.EnvFromSource) error {
	data := map[string]string{}
	var source string
	switch {
	case from.ConfigMapRef != nil:
		ref := from.ConfigMapRef
		source = fmt.Sprintf("ConfigMap %s/%s", e.Pod.Namespace, ref.Name)
		cm, err := e.configMap(ref.Name, isTrue(ref.Optional))
		if err != nil || cm == nil {
			return err
		}
		data = cm.Data
	case from.SecretRef != nil:
		ref := from.SecretRef
		source = fmt.Sprintf("Secret %s/%s", e.Pod.Namespace, ref.Name)
		secret, err := e.secret(ref.Name, isTrue(ref.Optional))
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

func (e *environment) add(v v1.EnvVar) error {
	if v.Value != "" || v.ValueFrom == nil {
		return e.set(v.Name, expand(v.Value, e.lookup), "the pod")
	}
	value, source, found, err := e.resolve(v.ValueFrom)
	if err != nil || !found {
		return err
	}
	return e.set(v.Name, value, source)
}

// resolve returns a value from elsewhere and where it came from; found is
// false for an optional one that is not there.
func (e *environment) resolve(from *v1.EnvVarSource) (value, source string, found bool, err error) {
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
		cm, err := e.configMap(ref.Name, isTrue(ref.Optional))
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
		secret, err := e.secret(ref.Name, isTrue(ref.Optional))
		if err != nil || secret == nil {
			return "", "", false, err
		}
		raw, found := secret.Data[ref.Key]
		if !found && !isTrue(ref.Optional) {
			err = configErrorf("couldn't find key %v in %s", ref.Key, source)
		}
		return string(raw), source, found, err
	case from.FileKeyRef != nil:
		return "", "", false, configErrorf("environment variables from files (fileKeyRef) are not supported")
	default:
		return "", "the pod", true, nil
	}
}

// configMap returns nil without an error for an optional one that does not exist.
func (e *environment) configMap(name string, optional bool) (*v1.ConfigMap, error) {
	cm, ok := e.configMaps[name]
	if !ok {
		var err error
		if cm, err = e.objects.ConfigMap(e.Pod.Namespace, name); err != nil {
			return nil, &ConfigError{Message: err.Error(), Err: err}
		}
		e.configMaps[name] = cm
	}
	if cm == nil && !optional {
		return nil, configErrorf("configmap %q not found", name)
	}
	return cm, nil
}

// secret returns nil without an error for an optional one that does not exist.
func (e *environment) secret(name string, optional bool) (*v1.Secret, error) {
	s, ok := e.secrets[name]
	if !ok {
		var err error
		if s, err = e.objects.Secret(e.Pod.Namespace, name); err != nil {
			return nil, &ConfigError{Message: err.Error(), Err: err}
		}
		e.secrets[name] = s
	}
	if s == nil && !optional {
		return nil, configErrorf("secret %q not found", name)
	}
	return s, nil
}

func isTrue(b *bool) bool { return b != nil && *b }
