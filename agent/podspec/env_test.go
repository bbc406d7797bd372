package podspec

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-io/berth/csi/volume"
)

var testObjects = objects{
	configMaps: map[string]*v1.ConfigMap{
		"ns/cm": {Data: map[string]string{"B": "cm-b", "A": "cm-a", "with.dot": "dot"}},
	},
	secrets: map[string]*v1.Secret{
		"ns/s": {Data: map[string][]byte{"A": []byte("secret-a"), "PW": []byte("pw")}},
		"ns/z": {Data: map[string][]byte{"BIN": {1, 0, 2}}},
	},
}

func TestEnv(t *testing.T) {
	for _, tt := range []struct {
		name string
		spec string // of the container
		want string // NAME=value, joined by |
		err  string
	}{
		{"literals keep their order", `env: [{name: Z, value: "1"}, {name: A, value: "2"}]`, "Z=1|A=2", ""},
		{"a later literal replaces an earlier one", `env: [{name: A, value: "1"}, {name: B, value: b}, {name: A, value: "2"}]`, "A=2|B=b", ""},
		{"a literal sees the variables before it and not those after it",
			`env: [{name: A, value: "[$(B)]"}, {name: B, value: b}, {name: C, value: "[$(B)]"}]`, "A=[$(B)]|B=b|C=[b]", ""},
		{"an empty value is set", `env: [{name: A}]`, "A=", ""},
		{"envFrom takes every key in sorted order", `envFrom: [{configMapRef: {name: cm}}]`, "A=cm-a|B=cm-b|with.dot=dot", ""},
		{"a prefix is put before every key", `envFrom: [{prefix: P_, secretRef: {name: s}}]`, "P_A=secret-a|P_PW=pw", ""},
		{"a later envFrom replaces an earlier one and env replaces both",
			`{envFrom: [{configMapRef: {name: cm}}, {secretRef: {name: s}}], env: [{name: B, value: "$(A)!"}]}`,
			"A=secret-a|B=secret-a!|with.dot=dot|PW=pw", ""},
		{"an optional object that does not exist is skipped",
			`{envFrom: [{configMapRef: {name: gone, optional: true}}, {secretRef: {name: gone, optional: true}}], env: [{name: A, valueFrom: {configMapKeyRef: {name: gone, key: k, optional: true}}}]}`, "", ""},
		{"an optional key that does not exist is skipped", `env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: gone, optional: true}}}]`, "", ""},
		{"a key of each kind", `env: [{name: X, valueFrom: {configMapKeyRef: {name: cm, key: A}}}, {name: W, valueFrom: {secretKeyRef: {name: s, key: PW}}}]`, "X=cm-a|W=pw", ""},
		{"a missing configmap", `envFrom: [{configMapRef: {name: gone}}]`, "", `configmap "gone" not found`},
		{"a missing secret", `env: [{name: A, valueFrom: {secretKeyRef: {name: gone, key: k}}}]`, "", `secret "gone" not found`},
		{"a missing key of a configmap", `env: [{name: A, valueFrom: {configMapKeyRef: {name: cm, key: k}}}]`, "", `couldn't find key k in ConfigMap ns/cm`},
		{"a missing key of a secret", `env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]`, "", `couldn't find key k in Secret ns/s`},
		{"a name that no process can have is skipped", `env: [{name: "A=B", value: x}, {name: C, value: c}]`, "C=c", ""},
		{"a value that no process can have is refused", `env: [{name: A, valueFrom: {secretKeyRef: {name: z, key: BIN}}}]`, "",
			`environment variable A: the value from Secret ns/z contains a NUL byte`},
		{"a key of a file", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: K}}}, {name: B, value: $(A)!}]`, "A=from file|B=from file!", ""},
		{"an optional key that the file has not is skipped", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: gone, optional: true}}}]`, "", ""},
		{"a key that the file has not", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: p, key: gone}}}]`, "",
			`environment variable key "gone" not found in file "p"`},
		{"a file that is no list of variables", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: bad, key: K, optional: true}}}]`, "", "couldn't parse env file"},
		{"a file that cannot be read", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: gone, key: K, optional: true}}}]`, "", "couldn't parse env file"},
		{"a file of a volume that is not there", `env: [{name: A, valueFrom: {fileKeyRef: {volumeName: w, path: p, key: K}}}]`, "", `cannot find the volume "w" referenced by FileKeyRef`},
		{"metadata fields", fields("metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels['app']", "metadata.annotations['Note']", "metadata.labels['none']"),
			"V=web|V=ns|V=uid-1|V=shop|V=two\nlines|V=", ""},
		{"all labels and annotations are quoted and sorted", fields("metadata.labels", "metadata.annotations"), "V=app=\"shop\"\ntier=\"1\"|V=Note=\"two\\nlines\"", ""},
		{"spec fields", fields("spec.nodeName", "spec.serviceAccountName"), "V=node-1|V=robot", ""},
		{"status fields", fields("status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"),
			"V=192.0.2.1|V=192.0.2.1,2001:db8::1|V=10.1.0.7|V=10.1.0.7,fd00::7", ""},
		{"an unknown field", fields("spec.hostname"), "", "field label not supported: spec.hostname"},
		{"a subscript of another field", fields("spec.nodeName['x']"), "", "field label does not support subscript: spec.nodeName['x']"},
		{"limits in units of the divisor, rounded up", `{resources: {limits: {cpu: 1500m, memory: 100Mi}}, env: [
			{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}},
			{name: B, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}},
			{name: C, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Gi}}},
			{name: D, valueFrom: {resourceFieldRef: {resource: limits.memory}}}]}`, "A=2|B=1500|C=1|D=104857600", ""},
		{"without a limit the node's allocatable, without a request zero", `env: [
			{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}},
			{name: B, valueFrom: {resourceFieldRef: {resource: requests.memory}}}]`, "A=1500|B=0", ""},
		{"another container's resources", `env: [{name: A, valueFrom: {resourceFieldRef: {containerName: other, resource: requests.cpu, divisor: 1m}}}]`, "A=250", ""},
		{"huge pages", `{resources: {requests: {hugepages-2Mi: 4Mi}}, env: [{name: A, valueFrom: {resourceFieldRef: {resource: requests.hugepages-2Mi, divisor: 1Mi}}}]}`, "A=4", ""},
		{"a container that does not exist", `env: [{name: A, valueFrom: {resourceFieldRef: {containerName: gone, resource: limits.cpu}}}]`, "", "container gone not found"},
		{"a resource that does not exist", `env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.gpu}}}]`, "", "unsupported container resource : limits.gpu"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := envContainer(t, tt.spec)
			env, err := Env(t.Context(), c, testNode, testObjects)
			if tt.err != "" {
				var configErr *ConfigError
				if !errors.As(err, &configErr) || configErr.Message != tt.err {
					t.Fatalf("error %#v, want ConfigError %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, kv := range env {
				key := kv.Key
				if strings.HasPrefix(key, "V_") {
					key = "V"
				}
				got = append(got, key+"="+string(kv.Value))
			}
			if s := strings.Join(got, "|"); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

func TestPodLevelLimitsComeBeforeTheNodesAllocatable(t *testing.T) {
	c := envContainer(t, `env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}]`)
	if err := yaml.Unmarshal([]byte(`{limits: {cpu: 700m}}`), &c.Pod.Spec.Resources); err != nil {
		t.Fatal(err)
	}
	env, err := Env(t.Context(), c, testNode, testObjects)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(env[0].Value); got != "700" {
		t.Errorf("limits.cpu = %s, want 700", got)
	}
}

func TestAnUnreadableObjectIsAConfigErrorWithItsCause(t *testing.T) {
	cause := errors.New("cache is closed")
	_, err := Env(t.Context(), envContainer(t, `envFrom: [{secretRef: {name: s, optional: true}}]`), testNode, objects{err: cause})
	var configErr *ConfigError
	if !errors.As(err, &configErr) || !errors.Is(err, cause) {
		t.Errorf("error %#v, want a ConfigError that wraps %v", err, cause)
	}
}

// fields asks for field references as variables V_0, V_1, ...
func fields(paths ...string) string {
	var b strings.Builder
	b.WriteString("env:\n")
	for i, p := range paths {
		b.WriteString("- {name: V_" + string(rune('0'+i)) + `, valueFrom: {fieldRef: {fieldPath: "` + p + "\"}}}\n")
	}
	return b.String()
}

// envFile is the files of the volume v.
func envFile(vol, path string) ([]byte, error) {
	if vol != "v" {
		return nil, volume.ErrNotFound
	}
	switch path {
	case "p":
		return []byte("# made by init\nJ='x'\nK='from file'\n"), nil
	case "bad":
		return []byte("K=unquoted\n"), nil
	}
	return nil, fs.ErrNotExist
}

func envContainer(t *testing.T, spec string) Container {
	t.Helper()
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(`
metadata: {name: web, namespace: ns, uid: uid-1, labels: {tier: "1", app: shop}, annotations: {Note: "two\nlines"}}
spec:
  serviceAccountName: robot
  containers: [{name: app}, {name: other, resources: {requests: {cpu: 250m}}}]
`), pod); err != nil {
		t.Fatal(err)
	}
	c := &pod.Spec.Containers[0]
	// A flow mapping may contain tabs only as white space between tokens.
	if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(spec, "\t", " ")), c); err != nil {
		t.Fatal(err)
	}
	return Container{Pod: pod, Container: c, PodIPs: []string{"10.1.0.7", "fd00::7"}, EnvFile: envFile}
}
