package volume

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

func TestAllKindsTogether(t *testing.T) {
	e := newEnv(t)
	e.objects.configMaps["web"] = &v1.ConfigMap{Data: map[string]string{"a": "1"}, BinaryData: map[string][]byte{"b": {0, 1}}}
	e.objects.secrets["tls"] = &v1.Secret{Data: map[string][]byte{"key": []byte("s")}}
	e.objects.claims["data"] = e.root + "/claims/default/data"
	pod := newPod(
		vol("scratch", v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}),
		vol("cfg", v1.VolumeSource{ConfigMap: &v1.ConfigMapVolumeSource{LocalObjectReference: v1.LocalObjectReference{Name: "web"}}}),
		vol("tls", v1.VolumeSource{Secret: &v1.SecretVolumeSource{SecretName: "tls"}}),
		vol("data", v1.VolumeSource{PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}),
		vol("me", v1.VolumeSource{DownwardAPI: &v1.DownwardAPIVolumeSource{Items: []v1.DownwardAPIVolumeFile{
			{Path: "name", FieldRef: &v1.ObjectFieldSelector{FieldPath: "metadata.name"}},
		}}}),
	)
	for range 2 {
		mounted := e.setUp(pod)
		e.wantMode(mounted["scratch"].HostPath, 0o777, 0)
		e.wantFile(mounted["cfg"].HostPath+"/a", "1")
		e.wantFile(mounted["cfg"].HostPath+"/b", "\x00\x01")
		e.wantFile(mounted["tls"].HostPath+"/key", "s")
		e.wantFile(mounted["me"].HostPath+"/name", "web")
		e.wantMode(e.root+"/claims/default/data", 0o777, 0)
	}
	e.tearDown(pod)
}
