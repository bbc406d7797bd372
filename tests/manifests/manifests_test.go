// Package manifests gives a node manifests that it must refuse, and asserts
// the exact words it refuses them with, and that what runs goes on running.
package manifests

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berth-io/berth/tests/harness"
)

// bad manifests, each with what the node says: line, field and reason, as they
// follow the file's name. One fault a file, except where the point is that all
// are reported.
var bad = []struct{ name, yaml, want string }{
	{"syntax", "apiVersion: v1\nkind: Pod\nmetadata: {name: x\n", ":2: not valid YAML: did not find expected ',' or '}'"},
	{"tab", "apiVersion: v1\nkind: Pod\nmetadata:\n\tname: x\n", ":4: not valid YAML: found character that cannot start any token"},
	{"not-an-object", "- just\n- a list\n", ":1: must be a Kubernetes object with apiVersion and kind"},
	{"no-kind", "apiVersion: v1\nmetadata: {name: x}\n", ":1: apiVersion and kind are required (supported: " + supported + ")"},
	{"unknown-kind", "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: x}\n", ":1: kind: apps/v1 StatefulSet is not supported (supported: " + supported + ")"},
	{"unknown-field", pod("  - {name: main, image: a, comand: [x]}"), ":6: spec.containers[0].comand: unknown field (did you mean command?)"},
	{"duplicate-key", pod("  - name: main\n    image: a\n    image: b"), ":8: spec.containers[0].image: duplicate key, first set on line 7"},
	{"number-for-string", pod("  - {name: main, image: a, env: [{name: PORT, value: 8080}]}"), ":6: spec.containers[0].env[0].value: must be a string, not the number 8080; put it in quotes"},
	{"no-name", "apiVersion: v1\nkind: Pod\nmetadata: {}\nspec:\n  containers:\n  - {name: main, image: a}\n", ":3: metadata.name: Required value"},
	{"bad-name", "apiVersion: v1\nkind: Pod\nmetadata: {name: My_Pod}\nspec:\n  containers:\n  - {name: main, image: a}\n", ":3: metadata.name: Invalid value: \"My_Pod\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"},
	{"no-containers", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n", ":4: spec.containers: Required value"},
	{"no-image", pod("  - {name: main}"), ":6: spec.containers[0].image: Required value"},
	{"bad-image", pod("  - {name: main, image: Registry.test/App}"), ":6: spec.containers[0].image: Invalid value: \"Registry.test/App\": not an image reference: invalid reference format: repository name (App) must be lowercase"},
	{"twin-containers", pod("  - {name: main, image: a}\n  - {name: main, image: b}"), ":7: spec.containers[1].name: Duplicate value: \"main\""},
	{"bad-port", pod("  - {name: main, image: a, ports: [{containerPort: 70000}]}"), ":6: spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"},
	{"bad-quantity", pod("  - {name: main, image: a, resources: {limits: {cpu: fast}}}"), ":6: spec.containers[0].resources.limits[cpu]: must be a quantity such as 250m, 1.5 or 64Mi, not the string \"fast\""},
	{"request-over-limit", pod("  - {name: main, image: a, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}"), ":6: spec.containers[0].resources.requests[cpu]: Invalid value: \"2\": must be less than or equal to cpu limit of 1"},
	{"no-such-volume", pod("  - {name: main, image: a, volumeMounts: [{name: v, mountPath: /v}]}"), ":6: spec.containers[0].volumeMounts[0].name: Not found: \"v\""},
	{"volume-kind", pod("  - {name: main, image: a}\n  volumes: [{name: v, nfs: {server: s, path: /p}}]"), ":7: spec.volumes[0].nfs: Forbidden: volumes of this kind are not supported by this version; supported are configMap, downwardAPI, emptyDir, hostPath, image, persistentVolumeClaim, projected, secret"},
	{"subpath-up", pod("  - {name: main, image: a, volumeMounts: [{name: v, mountPath: /v, subPath: ../x}]}\n  volumes: [{name: v, emptyDir: {}}]"), ":6: spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'"},
	{"two-handlers", pod("  - {name: main, image: a, livenessProbe: {tcpSocket: {port: 1}, exec: {command: [x]}}}"), ":6: spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"},
	{"bad-policy", pod("  - {name: main, image: a}\n  restartPolicy: Sometimes"), ":7: spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\", \"OnFailure\""},
	{"other-node", pod("  - {name: main, image: a}\n  nodeName: elsewhere"), ":7: spec.nodeName: Invalid value: \"elsewhere\": this node is $NODE"},
	{"selector", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec:\n  selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: b}}\n    spec: {containers: [{name: main, image: a}]}\n", ":7: spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template `labels`"},
	{"not-base64", "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\ndata: {password: \"hunter2!\"}\n", ":4: data[password]: must be base64 (plain text goes into stringData of a Secret): illegal base64 data at input byte 7"},
	{"taken-name", "apiVersion: v1\nkind: Pod\nmetadata: {name: steady}\nspec:\n  containers:\n  - {name: main, image: a}\n", ": metadata.name: Pod default/steady is already defined in good.yaml"},
}

const supported = "v1 Pod, ConfigMap, Secret, PersistentVolumeClaim, Service, Namespace, List; apps/v1 Deployment, ReplicaSet, DaemonSet; batch/v1 Job"

// pod is a manifest whose containers start on line 6.
func pod(containers string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: rejected}\nspec:\n  containers:\n" + containers + "\n"
}

const steady = "apiVersion: v1\nkind: Pod\nmetadata: {name: steady}\nspec:\n  containers:\n  - {name: main, image: " + harness.Box + "}\n"

func TestBadManifestsAreRefusedAndWhatRunsIsLeftAlone(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces, mounts and cgroups")
	}
	n := harness.StartNode(t, harness.Options{})
	n.WriteManifest("good.yaml", steady)
	p := n.Pod(t, "default", "steady")
	before := p.WaitReady()

	for _, b := range bad {
		n.WriteManifest(b.name+".yaml", b.yaml)
	}
	harness.Eventually(t, harness.PodTimeout, "all are refused", func() string {
		got := rejections(n)
		for _, b := range bad {
			if len(got[b.name+".yaml"]) == 0 {
				return b.name + " is not"
			}
		}
		return ""
	})
	got := rejections(n)
	for _, b := range bad {
		t.Run(b.name, func(t *testing.T) {
			want := strings.ReplaceAll(b.want, "$NODE", n.Name)
			if lines := got[b.name+".yaml"]; len(lines) != 1 || lines[0] != want {
				t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(lines, "\n  "), want)
			}
		})
	}
	if pods := n.Pods(); len(pods) != 1 {
		t.Errorf("got %d pods, want the one that was there", len(pods))
	}
	after := p.WaitReady()
	if after.UID != before.UID || after.Status.ContainerStatuses[0].ContainerID != before.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("the running pod was touched:\n%s\n%s", harness.Summary(before), harness.Summary(after))
	}

	// A refused change of a manifest in force leaves the pods of that manifest.
	n.WriteManifest("good.yaml", strings.Replace(steady, "image:", "imagge:", 1))
	harness.Eventually(t, harness.PodTimeout, "the change is refused", func() string {
		if len(rejections(n)["good.yaml"]) == 0 {
			return "it is not"
		}
		return ""
	})
	if again := p.WaitReady(); again.UID != before.UID {
		t.Error("a refused change replaced the pod")
	}

	// Mended manifests are accepted, removed ones are no longer complained of.
	n.WriteManifest("good.yaml", steady)
	for _, b := range bad {
		n.RemoveManifest(b.name + ".yaml")
	}
	harness.Eventually(t, harness.PodTimeout, "no complaints", func() string {
		var files []string
		for file := range rejections(n) {
			files = append(files, file)
		}
		slices.Sort(files)
		return strings.Join(files, " ")
	})
	if again := p.WaitReady(); again.UID != before.UID {
		t.Error("mending replaced the pod")
	}
	n.RemoveAll()
	n.CheckNothingLeft()
}

// rejections returns what the command line says of refused manifests, by file.
func rejections(n *harness.Node) map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(n.CLI("get", "pods").Stderr) {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "warning: manifest not in force: ")
		if !ok {
			continue
		}
		rest = strings.TrimPrefix(rest, n.Config.ManifestDir+"/")
		i := strings.Index(rest, ":")
		out[rest[:i]] = append(out[rest[:i]], rest[i:])
	}
	return out
}
