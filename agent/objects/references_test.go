package objects

import (
	"maps"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func TestReferencesAreFoundInEveryPlaceOfAPod(t *testing.T) {
	pod := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(`
spec:
  imagePullSecrets: [{name: pull}]
  initContainers:
  - {name: i, env: [{name: A, valueFrom: {secretKeyRef: {name: init-env, key: k}}}]}
  containers:
  - name: c
    env:
    - {name: A, valueFrom: {configMapKeyRef: {name: env, key: k}}}
    - {name: B, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: C, value: v}
    envFrom: [{configMapRef: {name: env-from}}, {secretRef: {name: env-from}}, {configMapRef: {name: vol}}]
  ephemeralContainers:
  - {name: e, envFrom: [{secretRef: {name: debug}}]}
  volumes:
  - {name: a, configMap: {name: vol}}
  - {name: b, secret: {secretName: vol}}
  - name: c
    projected:
      sources:
      - {configMap: {name: proj}}
      - {secret: {name: proj}}
      - {serviceAccountToken: {path: token}}
      - {clusterTrustBundle: {name: b, path: p}}
      - {downwardAPI: {}}
  - {name: d, csi: {driver: d, nodePublishSecretRef: {name: csi}}}
  - {name: e, iscsi: {targetPortal: p, iqn: i, lun: 0, secretRef: {name: iscsi}}}
  - {name: f, azureFile: {shareName: s, secretName: azure}}
  - {name: g, emptyDir: {}}
  - {name: h, rbd: {monitors: [m], image: i}}
`), pod); err != nil {
		t.Fatal(err)
	}
	r := referencesOf(pod)
	if want := map[string]bool{"env": false, "env-from": false, "vol": true, "proj": true}; !maps.Equal(r.configMaps, want) {
		t.Errorf("config maps %v, want %v", r.configMaps, want)
	}
	if want := map[string]bool{"pull": false, "init-env": false, "env-from": false, "debug": false, "vol": true, "proj": true, "csi": false, "iscsi": false, "azure": false}; !maps.Equal(r.secrets, want) {
		t.Errorf("secrets %v, want %v", r.secrets, want)
	}
	if len(r.tokens) != 1 || !r.bundles {
		t.Errorf("tokens %v, bundles %v", r.tokens, r.bundles)
	}
}
