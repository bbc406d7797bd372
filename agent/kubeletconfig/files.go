package kubeletconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	kubeletv1beta1 "k8s.io/kubelet/config/v1beta1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// dropInSuffix is that of files in --config-dir; others are left alone.
const dropInSuffix = ".conf"

// maxFileBytes bounds one file. A configuration has a few kilobytes.
const maxFileBytes = 4 << 20

// NotJoined tells whether a kubelet's command line is that of a host that has
// not joined a cluster yet: it names a configuration and a kubeconfig, and
// neither is there, nor one to bootstrap with. A command line that cannot be read
// is Load's to tell about.
func NotJoined(args []string) bool {
	c := newConfig()
	if _, _, err := c.parse(args); err != nil || c.Help || c.Version != "" || c.ConfigFile == "" || c.Kubeconfig == "" {
		return false
	}
	for _, path := range []string{c.ConfigFile, c.Kubeconfig, c.BootstrapKubeconfig} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}

// loadFile takes a --config file in place of what c says. Relative paths in it
// are relative to it (pkg/kubelet/kubeletconfig/configfiles, fsLoader.Load).
// Unlike the kubelet, which then reads the file again and is lenient, an unknown
// field is an error.
func (c *Config) loadFile(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("--config %s: %w", path, err)
	}
	data, err := readDocument(path)
	if err != nil {
		return err
	}
	fresh := kubeletv1beta1.KubeletConfiguration{}
	if err := decodeStrict(data, &fresh); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := c.finish(&fresh); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, ref := range []*string{
		&fresh.StaticPodPath, &fresh.Authentication.X509.ClientCAFile, &fresh.TLSCertFile, &fresh.TLSPrivateKeyFile,
		fresh.ResolverConfig, &fresh.VolumePluginDir, &fresh.PodLogsDir,
	} {
		if *ref != "" && !filepath.IsAbs(*ref) {
			*ref = filepath.Join(filepath.Dir(path), *ref)
		}
	}
	switch {
	case fresh.EvictionHard == nil:
		fresh.EvictionHard = defaultEvictionHard()
	case *fresh.MergeDefaultEvictionSettings:
		for signal, threshold := range defaultEvictionHard() {
			if _, said := fresh.EvictionHard[signal]; !said {
				fresh.EvictionHard[signal] = threshold
			}
		}
	}
	c.KubeletConfiguration = fresh
	c.Sources = append(c.Sources, path)
	return nil
}

// finish checks the gates, on which defaults depend, and sets defaults.
func (c *Config) finish(fresh *kubeletv1beta1.KubeletConfiguration) error {
	gates, err := newGates(fresh.FeatureGates)
	if err != nil {
		return fmt.Errorf("featureGates: %w", err)
	}
	setDefaults(fresh, gates)
	return nil
}

// loadDropIns merges the *.conf files below dir over what c says, in the order
// of their paths, each as a JSON merge patch (RFC 7386): a map is merged by its
// keys, a list is replaced, null takes the default (cmd/kubelet/app/server.go,
// mergeKubeletConfigurations).
func (c *Config) loadDropIns(dir string) error {
	merged, err := json.Marshal(c.KubeletConfiguration)
	if err != nil {
		return fmt.Errorf("encode the kubelet configuration: %w", err)
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(entry.Name()) != dropInSuffix {
			return err
		}
		patch, err := readDocument(path)
		if err != nil {
			return err
		}
		if err := decodeStrict(patch, new(kubeletv1beta1.KubeletConfiguration)); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		merged, err = jsonpatch.MergePatch(merged, patch)
		if err != nil {
			return fmt.Errorf("merge %s: %w", path, err)
		}
		c.Sources = append(c.Sources, path)
		return nil
	})
	if err != nil {
		return fmt.Errorf("--config-dir %s: %w", dir, err)
	}
	fresh := kubeletv1beta1.KubeletConfiguration{}
	if err := decodeStrict(merged, &fresh); err != nil {
		return fmt.Errorf("%s: %w", c.from(), err)
	}
	if err := c.finish(&fresh); err != nil {
		return fmt.Errorf("%s: %w", c.from(), err)
	}
	c.KubeletConfiguration = fresh
	return nil
}

// readDocument reads the one YAML or JSON document of a file, as JSON.
func readDocument(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the kubelet configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the kubelet configuration: %w", err)
	case len(data) > maxFileBytes:
		return nil, fmt.Errorf("%s: it is larger than %d bytes", path, maxFileBytes)
	}
	out, err := oneDocument(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

func oneDocument(data []byte) ([]byte, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("it is empty: it must have apiVersion and kind at least")
	}
	decoder := yamlv3.NewDecoder(bytes.NewReader(data))
	var node yamlv3.Node
	if err := decoder.Decode(&node); err != nil {
		return nil, fmt.Errorf("it is no YAML: %w", err)
	}
	if err := decoder.Decode(&node); !errors.Is(err, io.EOF) {
		return nil, errors.New("it has more than one document")
	}
	out, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, err // it names line and key
	}
	return out, nil
}

// decodeStrict reads JSON that must be a KubeletConfiguration and nothing else.
// The error has one line for each mistake, with the path of its field.
func decodeStrict(data []byte, c *kubeletv1beta1.KubeletConfiguration) error {
	var raw map[string]any
	if err := json.Unmarshal(data, &raw); err != nil {
		return errors.New("it must be a map of fields")
	}
	want := kubeletv1beta1.SchemeGroupVersion.String()
	if v := raw["apiVersion"]; v != want {
		return fmt.Errorf("apiVersion: %s must be %s", said(v), want)
	}
	if k := raw["kind"]; k != "KubeletConfiguration" {
		return fmt.Errorf("kind: %s must be KubeletConfiguration", said(k))
	}
	strict, err := kjson.UnmarshalStrict(data, c)
	if err == nil && len(strict) == 0 {
		return nil
	}
	if found := mistakes(raw, "", func(v any) any { return v }); len(found) > 0 {
		return errors.Join(found...)
	}
	return errors.Join(append(strict, err)...)
}

func said(v any) string {
	if v == nil {
		return "it is missing and"
	}
	return fmt.Sprintf("%v", v)
}

// mistakes looks for the fields that cannot be decoded, each by itself: a
// decoder tells of the first wrong type only, and of no path where a type
// decodes itself. around makes a whole document of the part at path.
func mistakes(part any, path string, around func(any) any) []error {
	var out []error
	inner := func(key string, value any, around func(any) any) {
		err := try(around(value))
		if err == nil {
			return
		}
		if deeper := mistakes(value, key, around); len(deeper) > 0 {
			out = append(out, deeper...)
			return
		}
		out = append(out, fmt.Errorf("%s: %w", key, err))
	}
	switch v := part.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			name := key
			if path != "" {
				name = path + "." + key
			}
			inner(name, v[key], func(value any) any { return around(map[string]any{key: value}) })
		}
	case []any:
		for i, value := range v {
			inner(fmt.Sprintf("%s[%d]", path, i), value, func(value any) any { return around([]any{value}) })
		}
	}
	return out
}

// try decodes a document with one field.
func try(document any) error {
	data, err := json.Marshal(document)
	if err != nil {
		return err
	}
	strict, err := kjson.UnmarshalStrict(data, new(kubeletv1beta1.KubeletConfiguration))
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return fmt.Errorf("it must be %s, not %s", kindOf(wrong.Type), wrong.Value)
	case err != nil:
		return err
	case len(strict) > 0 && strings.HasPrefix(strict[0].Error(), "unknown field"):
		return errors.New("unknown field")
	}
	return errors.Join(strict...)
}

// kindOf says in words what a Go type is in a file.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return kindOf(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a string"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a map"
	default:
		return "an integer (" + t.Kind().String() + ")"
	}
}
